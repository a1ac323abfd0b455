#pragma once
// A small call of softmax attention with random inputs, for tests that vary one thing.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "attend/exact/softmax.h"
#include "attend/simd/isa.h"

namespace attend::test {

struct SmallCall {
  int64_t b, hq, hkv, tq, tk, d, dv;
  std::vector<float> q, k, v, out, lse;

  SmallCall(int64_t batch, int64_t q_heads, int64_t kv_heads, int64_t queries, int64_t keys, int64_t width,
            int64_t v_width, uint64_t seed = 1)
      : b(batch), hq(q_heads), hkv(kv_heads), tq(queries), tk(keys), d(width), dv(v_width) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal(0, 1);
    auto fill = [&](std::vector<float>& x, int64_t count, float deviation) {
      x.resize(static_cast<size_t>(count));
      for (float& e : x) e = deviation * normal(random);
    };
    fill(q, b * hq * tq * d, 2);
    fill(k, b * hkv * tk * d, 1);
    fill(v, b * hkv * tk * dv, 1);
    out.assign(static_cast<size_t>(b * hq * tq * dv), NAN);
    lse.assign(static_cast<size_t>(b * hq * tq), NAN);
  }

  Qkv in() {
    return {.q = dense_view(q.data(), DType::kF32, {b, hq, tq, d}),
            .k = dense_view(k.data(), DType::kF32, {b, hkv, tk, d}),
            .v = dense_view(v.data(), DType::kF32, {b, hkv, tk, dv})};
  }
  AttnOut outputs() {
    return {dense_view(out.data(), DType::kF32, {b, hq, tq, dv}), dense_view(lse.data(), DType::kF32, {b, hq, tq})};
  }
  void run(const SoftmaxOptions& options, Context& context, const Variant& variant = {}) {
    softmax_attention(in(), options, outputs(), context, variant);
  }
};

inline std::vector<Isa> usable_isas() {
  std::vector<Isa> all;
  for (const IsaInfo& info : isa_list())
    if (info.usable) all.push_back(info.isa);
  return all;
}

inline Context context_for(Isa isa, int threads = 1) {
  Context context(threads);
  context.isa = isa;
  return context;
}

}  // namespace attend::test
