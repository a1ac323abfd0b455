#pragma once
// Dropout of weights inside the kernel: a weight is dropped with the given probability, and the others grow by
// 1 / (1 - probability). Which ones are is a function of seed, batch entry, head and positions alone, so that the
// backward pass, any number of threads and any cut of the text repeat it.
//
//   const Dropout drop{.probability = 0.1f, .seed = 42};
//   const Hook hook = make_hook(drop);
//   softmax_attention(qkv, {.causal = true}, out, context, {.weight = &hook});
//
// Source   Dao et al. 2022, arXiv:2205.14135, appendix B.3 (dropout repeated in the backward pass). The generator mixes
//          a counter twice a step (Wellons, "hash-prospector", 2018: lowbias32).
#include <cstdint>

namespace attend {

struct Dropout {
  float probability = 0;  // in [0, 1)
  uint64_t seed = 0;

  static constexpr uint32_t mix(uint32_t x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
  }
  // Uniform in [0, 2^32).
  constexpr uint32_t draw(int batch, int head, int32_t i, int32_t j) const {
    const uint32_t row =
        mix(mix(mix(static_cast<uint32_t>(seed) ^ static_cast<uint32_t>(batch)) + static_cast<uint32_t>(head)) +
            static_cast<uint32_t>(i)) +
        static_cast<uint32_t>(seed >> 32);
    return mix(row + 0x9e3779b9u * static_cast<uint32_t>(j));
  }
  constexpr float operator()(float weight, int batch, int head, int32_t i, int32_t j) const {
    const bool keep = draw(batch, head, i, j) >> 8 >= static_cast<uint32_t>(probability * 16777216.0f);
    return keep ? weight / (1 - probability) : 0.0f;
  }
};

}  // namespace attend
