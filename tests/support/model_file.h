#pragma once
// Where the golden tests find a model: in $ATTEND_MODELS_DIR, or where `attend pull` puts it.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

namespace attend::test {

inline constexpr const char* kSmollmFile = "SmolLM2-135M-Instruct.Q4_1.gguf";
inline constexpr const char* kGemmaFile = "gemma-3-270m-q4_k_m.gguf";

inline std::filesystem::path models_directory() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::filesystem::path(value ? value : "");
  };
  if (const auto own = variable("ATTEND_MODELS_DIR"); !own.empty()) return own;
  const auto cache = variable("XDG_CACHE_HOME");
  return (cache.empty() ? variable("HOME") / ".cache" : cache) / "attend" / "models";
}

// The model's path, or a failure and an empty path. A test that needs the model begins
//   const auto path = test::model_file(test::kGemmaFile);
//   ASSERT_FALSE(path.empty());
inline std::filesystem::path model_file(const char* name) {
  const std::filesystem::path path = models_directory() / name;
  if (std::filesystem::is_regular_file(path)) return path;
  ADD_FAILURE() << "model " << path.string() << " is absent: `make test` fetches it; or set ATTEND_MODELS_DIR";
  return {};
}

}  // namespace attend::test
