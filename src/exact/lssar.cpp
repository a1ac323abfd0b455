#include "attend/exact/lssar.h"

#include <fmt/format.h>

#include <cmath>

#include "attend/simd/hook.h"
#include "attend/simd/hook_math.h"
#include "attend/tensor/error.h"
#include "exact/pointwise.h"
#include "exact/rows.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "lssar";

// What the functions below work on: one row of n scores that become weights.
struct Weights {
  float* s;
  const float* inverse_norm;  // of each key
  int64_t n;
  float scale;  // of the cosine, with the query's inverse norm
  float shift;  // 1 / n, or 0
  int64_t power;

  // In 16 lanes by j mod 16: the result depends on no vector width.
  template <class F>
  [[gnu::always_inline]] static float sum(int64_t n, const F& f) {
    float lane[16] = {};
    const int64_t whole = n / 16 * 16;
    for (int64_t j = 0; j < whole; j += 16) {
#pragma omp simd
      for (int l = 0; l < 16; ++l) lane[l] += f(j + l);
    }
    for (int64_t j = whole; j < n; ++j) lane[j - whole] += f(j);
    for (int half = 8; half; half /= 2)
      for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
    return lane[0];
  }

  [[gnu::always_inline]] inline void run() const {
    float* const x = s;
    const float* const k = inverse_norm;
    const float c = scale;
    const float first = sum(
        n, [=](int64_t j) __attribute__((always_inline)) {
          const float hidden = x[j] < -3e38f ? 0.0f : hook_softplus(c * (x[j] * k[j]));
          x[j] = hidden;
          return hidden;
        });
    if (first == 0) return;
    float largest = 0;
    const float away = power == 0 ? 0.0f : shift;
    for (int64_t j = 0; j < n; ++j) {
      const float w = x[j] / first - (x[j] == 0 ? 0.0f : away);
      x[j] = w < 0 ? 0.0f : w;
      largest = x[j] > largest ? x[j] : largest;
    }
    if (power == 0) return;
    // Powers of the ratio to the largest neither overflow nor, where they matter, underflow.
    const float one = largest > 0 ? 1 / largest : 0.0f;
    const int64_t exponent = power;
    const float second = sum(
        n, [=](int64_t j) __attribute__((always_inline)) {
          float base = x[j] * one, result = 1;
#pragma GCC unroll 6
          for (int bit = 0; bit < 6; ++bit) {
            result *= exponent >> bit & 1 ? base : 1.0f;
            base *= base;
          }
          x[j] = result;
          return result;
        });
    for (int64_t j = 0; j < n && largest > 0; ++j) x[j] /= second;
  }
};

ATTEND_TARGET_AVX2 void run_avx2(const Weights& w) {
  w.run();
}
ATTEND_TARGET_AVX512 void run_avx512(const Weights& w) {
  w.run();
}

}  // namespace

void lssar_attention(const Qkv& in, const LssarOptions& options, const View& out, Context& context) {
  // Scores as plain dot products: the scale comes with the norms.
  const exact::Problem p = exact::check(in, {.causal = options.causal, .scale = 1}, kOp);
  exact::require_countable(in, kOp);
  if (in.bias.data) throw Error(ErrorKind::kArgument, kOp, "bias", "given", "must be absent");
  if (!std::isfinite(options.scale))
    throw Error(ErrorKind::kArgument, kOp, "scale", fmt::format("{}", options.scale), "must be finite");
  if (options.power < 0 || options.power > 63)
    throw Error(ErrorKind::kArgument, kOp, "power", fmt::format("{}", options.power), "must be in 0..63");
  exact::check_outputs(p, in, {out}, kOp);

  const Isa isa = active_isa(context);
  const DenseKernels& kernels = dense_kernels(isa);
  const int64_t keys = in.k.shape[2];
  Buffer norms(std::max<int64_t>(1, p.batch * p.kv_heads * keys) * 4);
  std::vector<std::vector<float>> rows(static_cast<size_t>(context.threads));
  for (auto& row : rows) row.resize(static_cast<size_t>(p.d));
  auto inverse = [&](const float* x) {
    double sum = 0;
    for (int64_t c = 0; c < p.d; ++c) sum += static_cast<double>(x[c]) * static_cast<double>(x[c]);
    return sum == 0 ? 0 : 1 / std::sqrt(sum);
  };
  parallel_for(context.threads, p.batch * p.kv_heads, [&](int64_t task, int worker) {
    float* row = rows[static_cast<size_t>(worker)].data();
    const exact::Keys& head = p.keys[static_cast<size_t>(task)];
    for (const KeyRun& run : head.runs())
      for (int64_t j = 0; j < run.count; ++j) {
        kernels.widen_run(run.keys().from(j), 1, p.d, row, 0);
        norms.as<float>()[task * keys + run.first_slot + j] = static_cast<float>(inverse(row));
      }
  });
  const exact::VisibleCount count{p.lengths.data(), options.causal};
  const double log_d = std::log(static_cast<double>(p.d));
  exact::attend_rows(p, out, context, [&](const exact::Row& row, float* s, int64_t n, int) {
    const double seen = count(static_cast<int>(row.b), static_cast<int32_t>(row.position));
    const double scale = options.scale == 0 ? log_d * std::log(seen) : options.scale;
    const Weights weights{.s = s,
                          .inverse_norm = norms.as<float>() + (row.b * p.kv_heads + row.h / p.group) * keys,
                          .n = n,
                          .scale = static_cast<float>(scale * inverse(p.q.at<float>({row.b, row.h, row.i}))),
                          .shift = seen > 3 ? static_cast<float>(1 / seen) : 0.0f,
                          .power = options.power};
    (isa == Isa::kAvx2 ? run_avx2 : run_avx512)(weights);
  });
}

}  // namespace attend
