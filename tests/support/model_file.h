#pragma once
// Where the golden tests find a model: where `attend pull` puts it.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "attend/lm/models.h"

namespace attend::test {

inline constexpr const char* kSmollmFile = "SmolLM2-135M-Instruct.Q4_1.gguf";
inline constexpr const char* kGemmaFile = "gemma-3-270m-q4_k_m.gguf";

// The model's path, or a failure and an empty path. A test that needs the model begins
//   const auto path = test::model_file(test::kGemmaFile);
//   ASSERT_FALSE(path.empty());
inline std::filesystem::path model_file(const char* name) {
  const std::filesystem::path path = models_folder() / name;
  if (std::filesystem::is_regular_file(path)) return path;
  ADD_FAILURE() << "model " << path.string() << " is absent: `make test` fetches it; or set ATTEND_MODELS_DIR";
  return {};
}

}  // namespace attend::test
