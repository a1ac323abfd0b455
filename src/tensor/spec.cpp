#include "attend/tensor/spec.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "attend/tensor/error.h"

namespace attend {
namespace {

constexpr size_t kMaxOptions = 256, kMaxSpecs = 64;

[[noreturn]] void fail(std::string_view argument, std::string_view got, std::string_view rule) {
  throw Error(ErrorKind::kSpec, "spec", argument, got.empty() ? got : fmt::format("\"{}\"", got.substr(0, 80)), rule);
}

bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

bool is_control(char c) {
  return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
}

bool is_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '.';
}

bool is_bare(char c) {
  return !is_space(c) && !is_control(c) && c != ',' && c != '+' && c != ';' && c != '"' && c != '\\';
}

// Reads a text of specs from left to right.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  bool at_end() {
    skip_spaces();
    return at_ == text_.size();
  }

  bool take(char c) {
    skip_spaces();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  std::string_view rest() const { return text_.substr(at_); }

  std::string word(std::string_view what) {
    skip_spaces();
    const size_t from = at_;
    while (at_ < text_.size() && is_word(text_[at_])) ++at_;
    if (from == at_) {
      fail(what, rest(), at_ == text_.size() ? "is missing" : "must be letters, digits, '_', '-' or '.'");
    }
    return std::string(text_.substr(from, at_ - from));
  }

  std::string value(std::string_view key) {
    if (take('"')) return quoted(key);
    skip_spaces();
    const size_t from = at_;
    while (at_ < text_.size() && is_bare(text_[at_])) ++at_;
    if (from == at_) fail(key, rest(), "needs a value, quoted if it holds spaces or one of , + ; \" \\");
    return std::string(text_.substr(from, at_ - from));
  }

  Spec spec() {
    Spec result{.name = word("name"), .options = {}};
    if (!take(':')) return result;
    do {
      std::string key = word("option");
      if (!take('=')) fail(key, rest(), "needs '=' and a value");
      if (result.find(key)) fail(key, "", "is given twice");
      if (result.options.size() == kMaxOptions) fail("options", "", "are too many");
      std::string text = value(key);
      result.options.emplace_back(std::move(key), std::move(text));
    } while (take(','));
    return result;
  }

 private:
  void skip_spaces() {
    while (at_ < text_.size() && is_space(text_[at_])) ++at_;
  }

  std::string quoted(std::string_view key) {
    std::string result;
    for (; at_ < text_.size(); ++at_) {
      char c = text_[at_];
      if (c == '"') return ++at_, result;
      if (is_control(c)) fail(key, "", "holds a control character");
      if (c == '\\') {
        if (++at_ == text_.size()) break;
        c = text_[at_];
        if (c != '"' && c != '\\') fail(key, "", "holds an unknown escape; only \\\" and \\\\ exist");
      }
      result += c;
    }
    fail(key, "", "has no closing quote");
  }

  std::string_view text_;
  size_t at_ = 0;
};

const std::string& required(const Spec& spec, std::string_view key) {
  if (const std::string* value = spec.find(key)) return *value;
  throw Error(ErrorKind::kSpec, spec.name, key, "", "is not among the options of this spec");
}

}  // namespace

const std::string* Spec::find(std::string_view key) const {
  for (const auto& [name_, value] : options) {
    if (name_ == key) return &value;
  }
  return nullptr;
}

void Spec::set(std::string_view key, std::string value) {
  for (auto& [name_, old] : options) {
    if (name_ == key) {
      old = std::move(value);
      return;
    }
  }
  options.emplace_back(key, std::move(value));
}

int64_t Spec::integer(std::string_view key) const {
  return parse_integer(required(*this, key), key);
}

double Spec::real(std::string_view key) const {
  return parse_real(required(*this, key), key);
}

bool Spec::flag(std::string_view key) const {
  const std::string& value = required(*this, key);
  if (value != "true" && value != "false") fail(key, value, "must be true or false");
  return value == "true";
}

const std::string& Spec::text(std::string_view key) const {
  return required(*this, key);
}

Spec parse_spec(std::string_view text) {
  Reader reader(text);
  Spec spec = reader.spec();
  if (!reader.at_end()) fail(spec.name, reader.rest(), "is more than one spec");
  return spec;
}

std::vector<Spec> parse_specs(std::string_view text) {
  Reader reader(text);
  std::vector<Spec> specs;
  do {
    if (specs.size() == kMaxSpecs) fail("policy", "", "holds too many specs");
    specs.push_back(reader.spec());
  } while (reader.take('+'));
  if (!reader.at_end()) fail(specs.back().name, reader.rest(), "must end here, or go on with '+', ':' or ','");
  return specs;
}

namespace {

// Parts between separators outside of quotes, trimmed; empty ones are left out, or refused as `what`.
std::vector<std::string> split(std::string_view text, char separator, std::string_view what = "") {
  std::vector<std::string> policies;
  bool in_quotes = false;
  size_t from = 0;
  auto add = [&](size_t to) {
    size_t first = from, last = to;
    while (first < last && is_space(text[first])) ++first;
    while (last > first && is_space(text[last - 1])) --last;
    if (first < last) policies.emplace_back(text.substr(first, last - first));
    if (first == last && !what.empty()) fail(what, "", "must not be empty");
    from = to + 1;
  };
  for (size_t i = 0; i < text.size(); ++i) {
    if (in_quotes && text[i] == '\\') {
      ++i;
    } else if (text[i] == '"') {
      in_quotes = !in_quotes;
    } else if (text[i] == separator && !in_quotes) {
      add(i);
    }
  }
  add(text.size());
  if (policies.empty()) fail("policies", "", "must name at least one policy");
  return policies;
}

}  // namespace

std::vector<std::string> split_policies(std::string_view text) {
  return split(text, ';');
}

std::vector<std::string> split_readings(std::string_view text) {
  return split(text, '|', "policy");
}

std::string to_string(const Spec& spec) {
  std::string text = spec.name;
  char separator = ':';
  for (const auto& [key, value] : spec.options) {
    text += separator;
    text.append(key).append("=");
    separator = ',';
    if (!value.empty() && std::all_of(value.begin(), value.end(), is_bare)) {
      text += value;
      continue;
    }
    text += '"';
    for (char c : value) {
      if (c == '"' || c == '\\') text += '\\';
      text += c;
    }
    text += '"';
  }
  return text;
}

int64_t parse_integer(std::string_view text, std::string_view what) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc::result_out_of_range) fail(what, text, "is too large");
  if (error != std::errc() || end != text.data() + text.size()) fail(what, text, "must be an integer");
  return value;
}

double parse_real(std::string_view text, std::string_view what) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) {
    fail(what, text, "must be a finite number");
  }
  return value;
}

}  // namespace attend
