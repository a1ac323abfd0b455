#include "attend/exact/sigmoid.h"

#include <fmt/format.h>

#include <cmath>
#include <vector>

#include "attend/simd/hook_math.h"
#include "exact/pointwise.h"

namespace attend {

void sigmoid_attention(const Qkv& in, const SigmoidOptions& options, const View& out, Context& context) {
  constexpr std::string_view kOp = "sigmoid";
  const SoftmaxOptions plain{.causal = options.causal, .scale = options.scale};
  const exact::Problem p = exact::check(in, plain, kOp);
  exact::require_countable(in, kOp);
  if (!std::isfinite(options.bias))
    throw Error(ErrorKind::kArgument, kOp, "bias", fmt::format("{}", options.bias), "must be finite");
  exact::check_outputs(p, in, {out}, kOp);
  std::vector<float> shift(static_cast<size_t>(in.k.shape[2]) + 2);
  for (size_t n = 1; n < shift.size(); ++n)
    shift[n] = static_cast<float>(options.bias - std::log(static_cast<double>(n)));
  const exact::VisibleCount count{p.lengths.data(), options.causal};
  const float* table = shift.data();
  auto weight = [count, table](float s, int batch, int, int32_t i, int32_t) {
    return hook_sigmoid(s + table[count(batch, i)]);
  };
  const Hook hook = make_hook(weight);
  softmax_attention(in, plain, {out}, context, {.normalizer = Normalizer::kNone, .weight = &hook});
}

}  // namespace attend
