#include <cmath>

#include "attend/exact/sigmoid.h"
#include "attend/simd/hook_math.h"
#include "exact/pointwise.h"
#include "exact/row_backward.h"
#include "exact/score_gradients.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "sigmoid";

// A row of n scores, and of dot products of the gradient of out with the values: they become weights and gradients of
// scores.
struct RowSlopes {
  float *s, *g;
  int64_t n;
  float shift;

  [[gnu::always_inline]] inline void run() const {
    float *const score = s, *const gradient = g;
    const float away = shift;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const float x = score[j], seen = hook_sigmoid(x + away);
      const float w = x < -3e38f ? 0.0f : seen, slope = w * (1 - w) * gradient[j];
      score[j] = w;
      gradient[j] = x < -3e38f ? 0.0f : slope;
    }
  }
};

}  // namespace

void sigmoid_attention_backward(const Qkv& in, const SigmoidOptions& options, const View& grad_out,
                                const SigmoidGrad& grad_in, Context& context) {
  const SoftmaxOptions plain{.causal = options.causal, .scale = options.scale};
  const exact::Problem p = exact::check(in, plain, kOp);
  exact::require_countable(in, kOp);
  if (!std::isfinite(options.bias)) throw Error(ErrorKind::kArgument, kOp, "bias", "", "must be finite");
  exact::check_row_gradients(kOp, p, in, {grad_out}, {grad_in.q, grad_in.k, grad_in.v},
                             {{"bias", grad_in.bias, in.bias}});
  const exact::VisibleCount seen{p.lengths.data(), options.causal};
  const Isa isa = active_isa(context);
  exact::backward_rows(
      p, {grad_out, {}, grad_in.q, grad_in.k, grad_in.v, grad_in.bias}, in.k.shape[2], false, context,
      [&](const exact::RowBlock& block) {
        for (int64_t r = 0; r < block.count; ++r) {
          const double n = seen(static_cast<int>(block.b), static_cast<int32_t>(p.position(block.b, block.first + r)));
          exact::run_under(isa, RowSlopes{block.s + r * block.stride, block.g + r * block.stride, block.ends[r],
                                          static_cast<float>(options.bias - std::log(n))});
        }
      });
}

}  // namespace attend
