#include "attend/exact/urpe.h"

#include <algorithm>
#include <vector>

#include "attend/tensor/error.h"
#include "exact/distance_table.h"
#include "exact/parameter.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "urpe";

std::vector<float> by_head(const View& table, int64_t heads) {
  std::vector<float> value;
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t r = 0; r < table.shape[1]; ++r) value.push_back(*table.at<float>({table.shape[0] == 1 ? 0 : h, r}));
  return value;
}

}  // namespace

void urpe_attention(const Qkv& in, const View& multiplier, const View& bias, const UrpeOptions& options,
                    const AttnOut& out, Context& context) {
  const int64_t heads = in.q.rank == 4 ? std::max<int64_t>(0, in.q.shape[1]) : 0;
  const int64_t width = multiplier.rank == 2 ? multiplier.shape[1] : 0;
  exact::check_parameter(kOp, {"multiplier", multiplier, {heads, width}, "[Hq, P]", true, 0}, out);
  exact::check_parameter(kOp, {"distance_bias", bias, {heads, width}, "[Hq, P]", false, 0}, out);
  if (width % 2 == 0 || width > 1 << 24)
    throw Error(ErrorKind::kArgument, kOp, "multiplier", to_string(multiplier),
                "must have an odd number of columns, at most 2^24");
  const SoftmaxOptions softmax{.causal = options.causal, .scale = options.scale};
  const int32_t clip = static_cast<int32_t>(width / 2);
  const std::vector<float> factors = by_head(multiplier, heads);
  const exact::DistanceHook<exact::MultiplyNumber> multiply{factors, clip, {}};
  const Hook weight = exact::tile_hook(multiply);
  if (!bias.data) return softmax_attention(in, softmax, out, context, {.weight = &weight});
  const std::vector<float> biases = by_head(bias, heads);
  const exact::DistanceHook<exact::AddNumber> add{biases, clip, {}};
  const Hook score = exact::tile_hook(add);
  softmax_attention(in, softmax, out, context, {.score = &score, .weight = &weight});
}

}  // namespace attend
