#include "attend/exact/fire.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "exact/elementary.h"
#include "exact/parameter.h"
#include "exact/score_gradients.h"
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

// The network's numbers.
struct Network {
  std::vector<float> inner_weight, inner_bias, weight, outer_bias;
  float rate, threshold;

  Network(const Qkv& in, const FireNetwork& network, const FireOptions& options, const AttnOut& out)
      : rate(static_cast<float>(options.rate)), threshold(static_cast<float>(options.threshold)) {
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
    inner_weight = dense(network.inner_weight), inner_bias = dense(network.inner_bias), weight = dense(network.weight);
    outer_bias.assign(static_cast<size_t>(heads), 0);
    if (network.outer_bias.data) outer_bias = dense(network.outer_bias);
  }

  size_t units() const { return inner_weight.size(); }

  // Interpolated distances of query i to `n` keys, zeros behind them.
  [[gnu::always_inline]] inline void interpolate(int32_t i, const int32_t* j, int n, float (&x)[kPart]) const {
    const float inverse = 1 / exact::log_of(1 + rate * std::max(threshold, static_cast<float>(i)));
    for (float& e : x) e = 0;
#pragma omp simd
    for (int c = 0; c < n; ++c) x[c] = exact::log_of(1 + rate * std::abs(static_cast<float>(i - j[c]))) * inverse;
  }
};

struct AddNetwork {
  const Network& net;

  [[gnu::always_inline]] inline void tile(Tile& t) const {
    const size_t units = net.units();
    const float* outer = net.weight.data() + static_cast<size_t>(t.head) * units;
    const float constant = net.outer_bias[static_cast<size_t>(t.head)];
    for (int r = 0; r < t.rows; ++r)
      for (int first = 0; first < t.cols; first += kPart) {
        const int n = std::min(kPart, t.cols - first);
        float* s = t.s + r * t.stride + first;
        float x[kPart], f[kPart];
        net.interpolate(t.q_position[r], t.k_position + first, n, x);
#pragma omp simd
        for (int c = 0; c < kPart; ++c) f[c] = constant;
        for (size_t u = 0; u < units; ++u) {
          const float a = net.inner_weight[u], b = net.inner_bias[u], o = outer[u];
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
};

// Sums over gradients of scores, which a tile holds: of a head and unit those of weight, inner weight and inner bias,
// the last two without the factor weight[h,u]; then that of the head's outer bias.
struct SumGradients {
  const Network& net;
  double* sums;  // [Hq, 3 U + 1]

  [[gnu::always_inline]] inline void tile(Tile& t) const {
    constexpr int kLanes = 16;
    const size_t units = net.units();
    double* to = sums + static_cast<size_t>(t.head) * (3 * units + 1);
    for (int r = 0; r < t.rows; ++r)
      for (int first = 0; first < t.cols; first += kPart) {
        const int n = std::min(kPart, t.cols - first);
        float x[kPart], g[kPart] = {};
        net.interpolate(t.q_position[r], t.k_position + first, n, x);
        std::copy_n(t.s + r * t.stride + first, n, g);
        for (const float e : g) to[3 * units] += static_cast<double>(e);
        for (size_t u = 0; u < units; ++u) {
          const float a = net.inner_weight[u], b = net.inner_bias[u];
          float by_weight[kLanes] = {}, by_slope[kLanes] = {}, by_bias[kLanes] = {};
          for (int part = 0; part < kPart; part += kLanes)
#pragma omp simd
            for (int l = 0; l < kLanes; ++l) {
              const float distance = x[part + l], hidden = std::fma(a, distance, b), on = hidden > 0 ? g[part + l] : 0;
              by_weight[l] = std::fma(on, hidden, by_weight[l]);
              by_slope[l] = std::fma(on, distance, by_slope[l]);
              by_bias[l] += on;
            }
          for (int l = 0; l < kLanes; ++l) {
            to[3 * u] += static_cast<double>(by_weight[l]);
            to[3 * u + 1] += static_cast<double>(by_slope[l]);
            to[3 * u + 2] += static_cast<double>(by_bias[l]);
          }
        }
      }
  }
};

}  // namespace

void fire_attention(const Qkv& in, const FireNetwork& network, const FireOptions& options, const AttnOut& out,
                    Context& context) {
  const Network net(in, network, options, out);
  const AddNetwork add{net};
  const Hook hook = exact::tile_hook(add);
  softmax_attention(in, {.causal = options.causal, .scale = options.scale}, out, context, {.score = &hook});
}

void fire_attention_backward(const Qkv& in, const FireNetwork& network, const FireOptions& options,
                             const AttnOut& forward, const AttnOutGrad& grad_out, const FireGrad& grad_in,
                             Context& context) {
  const SoftmaxOptions softmax{.causal = options.causal, .scale = options.scale};
  const Network net(in, network, options, {});
  const AddNetwork add{net};
  auto one = [](float, int, int, int32_t, int32_t) { return 1.0f; };
  const Hook hook = exact::tile_hook(add), unit = make_hook(one);
  const Variant variant{.score = &hook, .score_slope = &unit};
  const exact::BackwardCall call{in, softmax, forward, grad_out, variant};
  exact::check_parameter_gradients(kOp, call, grad_in.attention,
                                   {{"inner_weight", grad_in.inner_weight, network.inner_weight},
                                    {"inner_bias", grad_in.inner_bias, network.inner_bias},
                                    {"weight", grad_in.weight, network.weight},
                                    {"outer_bias", grad_in.outer_bias, network.outer_bias}});
  softmax_attention_backward(in, softmax, forward, grad_out, grad_in.attention, context, variant);
  if (!grad_in.inner_weight.data && !grad_in.inner_bias.data && !grad_in.weight.data && !grad_in.outer_bias.data)
    return;
  const int64_t heads = in.q.shape[1], keys = in.k.shape[2], units = static_cast<int64_t>(net.units());
  std::vector<double> sums(static_cast<size_t>(heads * (3 * units + 1)), 0);
  std::vector<int32_t> k_position(static_cast<size_t>(keys));
  for (size_t j = 0; j < k_position.size(); ++j) k_position[j] = static_cast<int32_t>(j);
  const SumGradients sum{net, sums.data()};
  const Hook summing = exact::tile_hook(sum);
  const int isa = static_cast<int>(active_isa(context));
  exact::each_score_gradient(call, context, [&](int64_t h, int32_t position, float* gradient) {
    Tile tile{gradient, keys, 1, static_cast<int>(keys), 0, static_cast<int>(h), &position, k_position.data()};
    summing.run[isa](summing.self, tile);
  });
  auto of = [&](int64_t h, int64_t i) { return sums[static_cast<size_t>(h * (3 * units + 1) + i)]; };
  for (int64_t u = 0; u < units; ++u) {
    double inner_weight = 0, inner_bias = 0;
    for (int64_t h = 0; h < heads; ++h) {
      const double weight = double{net.weight[static_cast<size_t>(h * units + u)]};
      inner_weight += weight * of(h, 3 * u + 1), inner_bias += weight * of(h, 3 * u + 2);
      if (grad_in.weight.data) *grad_in.weight.at<float>({h, u}) = static_cast<float>(of(h, 3 * u));
    }
    if (grad_in.inner_weight.data) *grad_in.inner_weight.at<float>({u}) = static_cast<float>(inner_weight);
    if (grad_in.inner_bias.data) *grad_in.inner_bias.at<float>({u}) = static_cast<float>(inner_bias);
  }
  for (int64_t h = 0; h < heads && grad_in.outer_bias.data; ++h)
    *grad_in.outer_bias.at<float>({h}) = static_cast<float>(of(h, 3 * units));
}

}  // namespace attend
