#include "attend/kv/head_gates.h"

#include <fmt/format.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "attend/tensor/error.h"
#include "attend/tensor/text.h"

namespace attend {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kVersion = 1;
constexpr int64_t kMostLayers = 1 << 14, kMostHeads = 1 << 14;
constexpr std::streamsize kLargestFile = std::streamsize{4} << 20;

class Reader {
 public:
  explicit Reader(std::string_view name) : name_(name) {}

  [[noreturn]] void fail(std::string_view rule) const {
    throw Error(ErrorKind::kFile, "head gates", "file", printable(name_), rule);
  }
  const Json& member(const Json& object, const char* key) const {
    if (!object.is_object() || !object.contains(key)) fail(fmt::format("has no \"{}\" where it belongs", key));
    return object[key];
  }
  int integer(const Json& object, const char* key, int64_t max) const {
    const Json& value = member(object, key);
    if (!value.is_number_unsigned() || value.get<uint64_t>() < 1 || value.get<uint64_t>() > static_cast<uint64_t>(max))
      fail(fmt::format("has a \"{}\" that is no integer within 1..{}", key, max));
    return value.get<int>();
  }
  std::string text(const Json& object, const char* key) const {
    const Json& value = member(object, key);
    if (!value.is_string()) fail(fmt::format("has a \"{}\" that is no text", key));
    return value.get<std::string>();
  }
  const Json& list(const Json& value, int size, std::string_view what) const {
    if (!value.is_array() || value.size() != static_cast<size_t>(size))
      fail(fmt::format("has {} that are no list of {}", what, size));
    return value;
  }

 private:
  std::string_view name_;
};

}  // namespace

HeadGates parse_head_gates(std::string_view json, std::string_view name) {
  const Reader reader(name);
  const Json root = Json::parse(json, nullptr, false);
  if (root.is_discarded()) reader.fail("is no valid JSON");
  if (const int version = reader.integer(root, "head_gates", 1 << 30); version != kVersion)
    reader.fail(fmt::format("is of version {}; this program reads version {}", version, kVersion));
  HeadGates result;
  const Json& model = reader.member(root, "model");
  result.model = reader.text(model, "name");
  result.layers = reader.integer(model, "layers", kMostLayers);
  result.kv_heads = reader.integer(model, "kv_heads", kMostHeads);
  for (const Json& layer : reader.list(reader.member(root, "gates"), result.layers, "\"gates\"")) {
    if (layer.is_array() && layer.empty()) {
      result.gates.insert(result.gates.end(), static_cast<size_t>(result.kv_heads), HeadGates::kNone);
      continue;
    }
    for (const Json& gate : reader.list(layer, result.kv_heads, "gates of a layer")) {
      const double value = gate.is_number() ? gate.get<double>() : -1;
      if (!(value >= 0 && value <= 1)) reader.fail("has a gate that is no number within 0..1");
      result.gates.push_back(value);
    }
  }
  if (root.contains("made_by")) result.made_by = reader.text(root, "made_by");
  return result;
}

HeadGates read_head_gates(const std::filesystem::path& path) {
  const Reader reader(path.native());
  std::error_code ignored;
  std::ifstream file;
  if (!std::filesystem::is_directory(path, ignored)) file.open(path, std::ios::binary);
  if (!file.is_open()) reader.fail("can't be opened");
  std::string json(static_cast<size_t>(kLargestFile) + 1, '\0');
  file.read(json.data(), kLargestFile + 1);
  if (file.bad()) reader.fail("can't be read");
  if (file.gcount() > kLargestFile) reader.fail(fmt::format("is larger than {} bytes", kLargestFile));
  json.resize(static_cast<size_t>(file.gcount()));
  return parse_head_gates(json, path.native());
}

void require_model(const HeadGates& gates, std::string_view op, std::string_view model, int layers, int kv_heads) {
  if (model == gates.model && layers == gates.layers && kv_heads == gates.kv_heads) return;
  throw Error(
      ErrorKind::kSpec, op, "plan",
      fmt::format("for \"{}\" ({} layers of {} kv heads)", printable(gates.model, 80), gates.layers, gates.kv_heads),
      fmt::format("but the model is \"{}\" ({} layers of {} kv heads)", printable(model, 80), layers, kv_heads));
}

std::string to_json(const HeadGates& gates) {
  // A layer a line.
  std::string rows;
  for (int layer = 0; layer < gates.layers; ++layer) {
    rows += layer == 0 ? "\n  [" : ",\n  [";
    for (int h = 0; h < gates.kv_heads && gates.gate(layer, h) != HeadGates::kNone; ++h)
      rows += fmt::format("{}{:.4g}", h == 0 ? "" : ", ", gates.gate(layer, h));
    rows += "]";
  }
  auto quoted = [](const std::string& text) {
    return Json(text).dump(-1, ' ', false, nlohmann::detail::error_handler_t::replace);
  };
  return fmt::format(
      "{{\n \"head_gates\": {},\n \"model\": {{\"name\": {}, \"layers\": {}, \"kv_heads\": {}}},\n \"made_by\": {},\n "
      "\"gates\": [{}\n ]\n}}\n",
      kVersion, quoted(gates.model), gates.layers, gates.kv_heads, quoted(gates.made_by), rows);
}

}  // namespace attend
