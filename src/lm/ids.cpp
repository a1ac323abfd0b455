#include "attend/lm/ids.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "attend/tensor/error.h"
#include "attend/tensor/text.h"

namespace attend {
namespace {

using Json = nlohmann::json;

// Takes in events of the parser and no tree: what is passed over costs no memory.
class IdsReader {
 public:
  explicit IdsReader(std::string_view name) : name_(name) {}

  [[noreturn]] void fail(std::string_view rule) const {
    throw Error(ErrorKind::kFile, "ids", "file", printable(name_), rule);
  }

  std::vector<int32_t> take() {
    if (!found_) fail("has no list of ids, [1, 2, 3] or {\"tokens\": [1, 2, 3]}");
    return std::move(ids_);
  }

  bool null() { return other(); }
  bool boolean(bool) { return other(); }
  bool number_float(Json::number_float_t, const std::string& text) {
    if (in_list_)
      fail(fmt::format("has {} where an integer id is wanted (index {})", printable(text, 40), ids_.size()));
    return other();
  }
  bool string(std::string&) { return other(); }
  bool binary(Json::binary_t&) { return other(); }

  bool number_integer(Json::number_integer_t value) {
    if (in_list_) fail(fmt::format("has the id {}, which is negative (index {})", value, ids_.size()));
    return other();
  }
  bool number_unsigned(Json::number_unsigned_t value) {
    if (!in_list_) return other();
    if (value > INT32_MAX) fail(fmt::format("has the id {}, which is too large (index {})", value, ids_.size()));
    ids_.push_back(static_cast<int32_t>(value));
    return true;
  }

  bool start_array(size_t) {
    if (depth_ == 0 || (depth_ == 1 && wanted_key_)) {
      if (found_) fail("has more than one list of ids");
      found_ = in_list_ = true;
    } else if (in_list_) {
      other();
    }
    ++depth_;
    return true;
  }
  bool end_array() {
    --depth_;
    if (depth_ <= (in_object_ ? 1 : 0)) in_list_ = false;
    return true;
  }

  bool start_object(size_t) {
    other();
    if (depth_ == 0) in_object_ = true;
    ++depth_;
    return true;
  }
  bool key(std::string& text) {
    if (depth_ == 1) wanted_key_ = text == "tokens";
    return true;
  }
  bool end_object() {
    --depth_;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const Json::exception&) {
    fail(fmt::format("is no valid JSON (at byte {})", position));
  }

 private:
  // A value that is no id: fine beside the list, not in it.
  bool other() const {
    if (in_list_) fail(fmt::format("has something else where an integer id is wanted (index {})", ids_.size()));
    if (depth_ == 1 && in_object_ && wanted_key_) fail("has no list under \"tokens\"");
    return true;
  }

  std::string_view name_;
  std::vector<int32_t> ids_;
  int64_t depth_ = 0;
  bool in_object_ = false, in_list_ = false, wanted_key_ = false, found_ = false;
};

}  // namespace

std::vector<int32_t> parse_ids(std::string_view json, std::string_view name) {
  IdsReader reader(name);
  Json::sax_parse(json.begin(), json.end(), &reader);
  return reader.take();
}

}  // namespace attend
