#include "attend/exact/t5_bias.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "attend/tensor/error.h"
#include "exact/distance_table.h"
#include "exact/parameter.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "t5-bias";
constexpr int64_t kMostDistance = int64_t{1} << 20;

int64_t fine_bucket(int64_t distance, int64_t buckets, int64_t max_distance) {
  const int64_t exact = buckets / 2;
  if (distance < exact && distance < max_distance) return distance;
  if (distance >= max_distance || buckets == 1) return buckets - 1;
  const double e = static_cast<double>(exact),
               place = std::log(static_cast<double>(distance) / e) / std::log(static_cast<double>(max_distance) / e);
  return std::min(buckets - 1, exact + static_cast<int64_t>(place * static_cast<double>(buckets - exact)));
}

}  // namespace

void t5_bias_attention(const Qkv& in, const View& table, const T5BiasOptions& options, const AttnOut& out,
                       Context& context) {
  const int64_t heads = in.q.rank == 4 ? std::max<int64_t>(0, in.q.shape[1]) : 0;
  const int64_t buckets = table.rank == 2 ? table.shape[0] : 0;
  exact::check_parameter(kOp, {"table", table, {buckets, heads}, "[N, Hq]", true}, out);
  if (buckets < 2 || (!options.causal && buckets % 2))
    throw Error(ErrorKind::kArgument, kOp, "table", to_string(table),
                options.causal ? "must have 2 buckets or more" : "must have an even number of buckets, 2 or more");
  const int64_t most = options.max_distance;
  if (most < 1 || most > kMostDistance)
    throw Error(ErrorKind::kArgument, kOp, "max_distance", fmt::format("{}", most),
                fmt::format("must be in 1..{}", kMostDistance));
  // The bias of every head at distances j - i from -most to most: beyond them it is constant.
  const int64_t width = 2 * most + 1, half = options.causal ? buckets : buckets / 2;
  std::vector<float> bias(static_cast<size_t>(heads * width));
  for (int64_t r = -most; r <= most; ++r) {
    int64_t bucket = fine_bucket(options.causal ? std::max<int64_t>(-r, 0) : std::abs(r), half, most);
    if (!options.causal && r > 0) bucket += half;
    for (int64_t h = 0; h < heads; ++h) bias[static_cast<size_t>(h * width + r + most)] = *table.at<float>({bucket, h});
  }
  const exact::DistanceHook<exact::AddNumber> add{bias, static_cast<int32_t>(most), {}};
  const Hook hook = exact::tile_hook(add);
  softmax_attention(in, {.causal = options.causal, .scale = options.scale}, out, context, {.score = &hook});
}

}  // namespace attend
