#include "attend/exact/relu.h"

#include "exact/pointwise.h"

namespace attend {

void relu_attention(const Qkv& in, const ReluOptions& options, const View& out, Context& context) {
  constexpr std::string_view kOp = "relu";
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

}  // namespace attend
