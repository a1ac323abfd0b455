#include "attend/exact/t5_bias.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "attend/tensor/error.h"
#include "exact/distance_table.h"
#include "exact/parameter.h"
#include "exact/score_gradients.h"

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

// The bias of every head at distances j - i from -most to most: beyond them it is constant.
struct Biases {
  std::vector<float> value;     // [heads, 2 most + 1]
  std::vector<int64_t> bucket;  // [2 most + 1]
  int32_t most;

  Biases(const Qkv& in, const View& table, const T5BiasOptions& options, const AttnOut& out) {
    const int64_t heads = in.q.rank == 4 ? std::max<int64_t>(0, in.q.shape[1]) : 0;
    const int64_t buckets = table.rank == 2 ? table.shape[0] : 0;
    exact::check_parameter(kOp, {"table", table, {buckets, heads}, "[N, Hq]", true}, out);
    if (buckets < 2 || (!options.causal && buckets % 2))
      throw Error(ErrorKind::kArgument, kOp, "table", to_string(table),
                  options.causal ? "must have 2 buckets or more" : "must have an even number of buckets, 2 or more");
    if (options.max_distance < 1 || options.max_distance > kMostDistance)
      throw Error(ErrorKind::kArgument, kOp, "max_distance", fmt::format("{}", options.max_distance),
                  fmt::format("must be in 1..{}", kMostDistance));
    most = static_cast<int32_t>(options.max_distance);
    const int64_t width = 2 * int64_t{most} + 1, half = options.causal ? buckets : buckets / 2;
    value.resize(static_cast<size_t>(heads * width));
    for (int64_t r = -most; r <= most; ++r) {
      bucket.push_back(fine_bucket(options.causal ? std::max<int64_t>(-r, 0) : std::abs(r), half, most));
      if (!options.causal && r > 0) bucket.back() += half;
      for (int64_t h = 0; h < heads; ++h)
        value[static_cast<size_t>(h * width + r + most)] = *table.at<float>({bucket.back(), h});
    }
  }
};

}  // namespace

void t5_bias_attention(const Qkv& in, const View& table, const T5BiasOptions& options, const AttnOut& out,
                       Context& context) {
  const Biases biases(in, table, options, out);
  const exact::DistanceHook<exact::AddNumber> add{biases.value, biases.most, {}};
  const Hook hook = exact::tile_hook(add);
  softmax_attention(in, {.causal = options.causal, .scale = options.scale}, out, context, {.score = &hook});
}

void t5_bias_attention_backward(const Qkv& in, const View& table, const T5BiasOptions& options, const AttnOut& forward,
                                const AttnOutGrad& grad_out, const T5BiasGrad& grad_in, Context& context) {
  const SoftmaxOptions softmax{.causal = options.causal, .scale = options.scale};
  const Biases biases(in, table, options, {});
  const exact::DistanceHook<exact::AddNumber> add{biases.value, biases.most, {}};
  auto one = [](float, int, int, int32_t, int32_t) { return 1.0f; };
  const Hook hook = exact::tile_hook(add), unit = make_hook(one);
  const Variant variant{.score = &hook, .score_slope = &unit};
  const exact::BackwardCall call{in, softmax, forward, grad_out, variant};
  exact::check_parameter_gradients(kOp, call, grad_in.attention, {{"table", grad_in.table, table}});
  softmax_attention_backward(in, softmax, forward, grad_out, grad_in.attention, context, variant);
  if (!grad_in.table.data) return;
  const int64_t heads = table.shape[1], buckets = table.shape[0], keys = in.k.shape[2];
  std::vector<double> sums(static_cast<size_t>(heads * buckets), 0);
  exact::each_score_gradient(call, context, [&](int64_t h, int32_t position, const float* gradient) {
    double* to = sums.data() + h * buckets;
    for (int64_t j = 0; j < keys; ++j) {
      const int64_t r = std::clamp<int64_t>(j - position, -biases.most, biases.most);
      to[biases.bucket[static_cast<size_t>(r + biases.most)]] += static_cast<double>(gradient[j]);
    }
  });
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t n = 0; n < buckets; ++n)
      *grad_in.table.at<float>({n, h}) = static_cast<float>(sums[static_cast<size_t>(h * buckets + n)]);
}

}  // namespace attend
