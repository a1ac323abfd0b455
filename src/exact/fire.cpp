#include "attend/exact/fire.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "attend/tensor/error.h"
#include "exact/elementary.h"
#include "exact/parameter.h"
#include "exact/tile_hook.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "fire";
constexpr int kPart = 64;  // scores whose interpolated distances are kept at once

void check_range(std::string_view name, double value, double least) {
  if (!(value >= least && value <= 1e9))
    throw Error(ErrorKind::kArgument, kOp, name, fmt::format("{}", value), fmt::format("must be in {}..1e9", least));
}

std::vector<float> dense(const View& view) {
  std::vector<float> values(static_cast<size_t>(view.count()));
  for (int64_t i = 0; i < view.count(); ++i) values[static_cast<size_t>(i)] = static_cast<float>(value_at(view, i));
  return values;
}

struct AddNetwork {
  const std::vector<float>&inner_weight, &inner_bias, &weight, &outer_bias;
  float rate, threshold;

  [[gnu::always_inline]] inline void tile(Tile& t) const {
    const size_t units = inner_weight.size();
    const float* outer = weight.data() + static_cast<size_t>(t.head) * units;
    const float constant = outer_bias[static_cast<size_t>(t.head)];
    for (int r = 0; r < t.rows; ++r) {
      const int32_t i = t.q_position[r];
      const float inverse = 1 / exact::log_of(1 + rate * std::max(threshold, static_cast<float>(i)));
      for (int first = 0; first < t.cols; first += kPart) {
        const int n = std::min(kPart, t.cols - first);
        const int32_t* j = t.k_position + first;
        float* s = t.s + r * t.stride + first;
        float x[kPart] = {}, f[kPart];
#pragma omp simd
        for (int c = 0; c < n; ++c) x[c] = exact::log_of(1 + rate * std::abs(static_cast<float>(i - j[c]))) * inverse;
#pragma omp simd
        for (int c = 0; c < kPart; ++c) f[c] = constant;
        for (size_t u = 0; u < units; ++u) {
          const float a = inner_weight[u], b = inner_bias[u], o = outer[u];
#pragma omp simd
          for (int c = 0; c < kPart; ++c) {
            const float hidden = std::fma(a, x[c], b);
            f[c] = std::fma(o, hidden > 0 ? hidden : 0, f[c]);
          }
        }
#pragma omp simd
        for (int c = 0; c < n; ++c) s[c] += f[c];
      }
    }
  }
};

}  // namespace

void fire_attention(const Qkv& in, const FireNetwork& network, const FireOptions& options, const AttnOut& out,
                    Context& context) {
  const int64_t heads = in.q.rank == 4 ? std::max<int64_t>(0, in.q.shape[1]) : 0;
  const int64_t units = network.inner_weight.rank == 1 ? network.inner_weight.shape[0] : 0;
  exact::check_parameter(kOp, {"inner_weight", network.inner_weight, {units}, "[U]", true}, out);
  exact::check_parameter(kOp, {"inner_bias", network.inner_bias, {units}, "[U]", true}, out);
  exact::check_parameter(kOp, {"weight", network.weight, {heads, units}, "[Hq, U]", true}, out);
  exact::check_parameter(kOp, {"outer_bias", network.outer_bias, {heads}, "[Hq]"}, out);
  if (units < 1 || units > 1024)
    throw Error(ErrorKind::kArgument, kOp, "U", fmt::format("{}", units), "must be in 1..1024");
  check_range("rate", options.rate, 1e-3);
  check_range("threshold", options.threshold, 1);
  const std::vector<float> inner_weight = dense(network.inner_weight), inner_bias = dense(network.inner_bias),
                           weight = dense(network.weight);
  std::vector<float> outer_bias(static_cast<size_t>(heads), 0);
  if (network.outer_bias.data) outer_bias = dense(network.outer_bias);
  const AddNetwork add{inner_weight,
                       inner_bias,
                       weight,
                       outer_bias,
                       static_cast<float>(options.rate),
                       static_cast<float>(options.threshold)};
  const Hook hook = exact::tile_hook(add);
  softmax_attention(in, {.causal = options.causal, .scale = options.scale}, out, context, {.score = &hook});
}

}  // namespace attend
