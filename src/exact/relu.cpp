#include "attend/exact/relu.h"

#include <string_view>

#include "exact/pointwise.h"
#include "exact/row_backward.h"
#include "exact/score_gradients.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "relu";

// Scores and products of a row to weights and gradients of scores. A NaN stays.
struct RowSlopes {
  float *s, *g;
  int64_t n;
  float share;

  [[gnu::always_inline]] inline void run() const {
    float *const score = s, *const gradient = g;
    const float by = share;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const float x = score[j], slope = by * gradient[j];
      score[j] = x <= 0 ? 0.0f : by * x;
      gradient[j] = x <= 0 ? 0.0f : slope;
    }
  }
};

}  // namespace

void relu_attention(const Qkv& in, const ReluOptions& options, const View& out, Context& context) {
  const SoftmaxOptions plain{.causal = options.causal, .scale = options.scale};
  const exact::Problem p = exact::check(in, plain, kOp);
  exact::require_countable(in, kOp);
  exact::check_outputs(p, in, {out}, kOp);
  const exact::VisibleCount count{p.lengths.data(), options.causal};
  // A NaN stays.
  auto weight = [count](float s, int batch, int, int32_t i, int32_t) {
    return (s < 0.0f ? 0.0f : s) / static_cast<float>(count(batch, i));
  };
  const Hook hook = make_hook(weight);
  softmax_attention(in, plain, {out}, context, {.normalizer = Normalizer::kNone, .weight = &hook});
}

void relu_attention_backward(const Qkv& in, const ReluOptions& options, const View& grad_out, const ReluGrad& grad_in,
                             Context& context) {
  const SoftmaxOptions plain{.causal = options.causal, .scale = options.scale};
  const exact::Problem p = exact::check(in, plain, kOp);
  exact::require_countable(in, kOp);
  exact::check_row_gradients(kOp, p, in, {grad_out}, {grad_in.q, grad_in.k, grad_in.v},
                             {{"bias", grad_in.bias, in.bias}});
  const exact::VisibleCount seen{p.lengths.data(), options.causal};
  const Isa isa = active_isa(context);
  exact::backward_rows(
      p, {grad_out, {}, grad_in.q, grad_in.k, grad_in.v, grad_in.bias}, in.k.shape[2], false, context,
      [&](const exact::RowBlock& x) {
        for (int64_t r = 0; r < x.count; ++r) {
          const int32_t n = seen(static_cast<int>(x.b), static_cast<int32_t>(p.position(x.b, x.first + r)));
          exact::run_under(isa,
                           RowSlopes{x.s + r * x.stride, x.g + r * x.stride, x.ends[r], 1 / static_cast<float>(n)});
        }
      });
}

}  // namespace attend
