#pragma once
// The weights of a model, loaded once and shared by sessions.
#include <filesystem>
#include <memory>
#include <vector>

#include "attend/exact/rope.h"
#include "attend/lm/graph.h"
#include "attend/lm/tokenizer.h"
#include "attend/simd/product.h"
#include "attend/tensor/buffer.h"
#include "attend/tensor/context.h"

namespace attend {

class LanguageModel {
 public:
  // Reads, checks and repacks a GGUF file; mapped pages go as soon as their tensor is repacked, so that peak memory is
  // about that of the packed weights. kF32 dequantises everything. Cost linear in the file.
  // Throws Error(kFile), Error(kUnsupported), Error(kMemory), Error(kCancelled).
  static std::shared_ptr<const LanguageModel> load(const std::filesystem::path& path, ComputeMode compute,
                                                   Context& context);

  ~LanguageModel();
  LanguageModel(const LanguageModel&) = delete;
  LanguageModel& operator=(const LanguageModel&) = delete;

  const Graph& graph() const { return graph_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  ComputeMode compute() const { return compute_; }

  const PackedWeight& matrix(int index) const { return matrices_[static_cast<size_t>(index)]; }
  const float* vector(int index) const { return vectors_[static_cast<size_t>(index)].as<float>(); }
  // Rotary angles for texts of at most `context` tokens.
  const RopeAngles& rotary(int index, int64_t context) const;
  // Learned divisors of its frequencies that hold for every text, one a pair; empty: none.
  std::span<const float> divisors(int index) const { return divisors_[static_cast<size_t>(index)]; }

 private:
  LanguageModel();

  Graph graph_;
  ComputeMode compute_ = ComputeMode::kDefault;
  std::vector<PackedWeight> matrices_;
  std::vector<Buffer> vectors_;
  std::vector<RopeAngles> short_rotaries_, long_rotaries_;  // up to and beyond the trained context
  std::vector<std::vector<float>> divisors_;                // of each rotary
  std::unique_ptr<Tokenizer> tokenizer_;
};

}  // namespace attend
