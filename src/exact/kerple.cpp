#include "attend/exact/kerple.h"

#include <fmt/format.h>

#include <bit>
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

constexpr std::string_view kOp = "kerple";

double alibi_slope(uint64_t head, uint64_t heads) {
  const uint64_t power = std::bit_floor(heads);
  const double n = static_cast<double>(power);
  if (head < power) return std::exp2(-8 * static_cast<double>(head + 1) / n);
  return std::exp2(-4 * static_cast<double>(2 * (head - power) + 1) / n);
}

std::vector<float> checked(std::string_view name, const View& view, int64_t heads, double most) {
  std::vector<float> values(static_cast<size_t>(heads));
  for (int64_t h = 0; h < heads; ++h) {
    const float x = *view.at<float>({h});
    if (!(x >= 0 && x <= most))
      throw Error(ErrorKind::kArgument, kOp, fmt::format("{}[{}]", name, h), fmt::format("{}", x),
                  fmt::format("must be in 0..{:g}", most));
    values[static_cast<size_t>(h)] = x;
  }
  return values;
}

[[gnu::always_inline]] inline float distance(int32_t i, int32_t j) {
  return std::abs(static_cast<float>(i - j));
}

// Functions of a score s at distance d, from the numbers of its head. `amount` and `rate` are the derivatives of a
// fall, times s.
struct Numbers {
  const float *a, *r;
};
struct LineFalls : Numbers {
  [[gnu::always_inline]] inline float operator()(float s, int, int head, int32_t i, int32_t j) const {
    return s - a[head] * distance(i, j);
  }
};
struct PowerFalls : Numbers {
  [[gnu::always_inline]] inline float operator()(float s, int, int head, int32_t i, int32_t j) const {
    const float d = distance(i, j), raised = exact::power_of(d < 1 ? 1 : d, r[head]);
    return s - a[head] * (d < 1 ? 0 : raised);
  }
};
struct PowerAmount : Numbers {
  [[gnu::always_inline]] inline float operator()(float s, int, int head, int32_t i, int32_t j) const {
    const float d = distance(i, j), raised = exact::power_of(d < 1 ? 1 : d, r[head]);
    return s * (d < 1 ? 0 : raised);
  }
};
struct PowerRate : Numbers {
  [[gnu::always_inline]] inline float operator()(float s, int, int head, int32_t i, int32_t j) const {
    const float d = distance(i, j), safe = d < 1 ? 1 : d;  // ln 1 = 0
    return s * (a[head] * (exact::power_of(safe, r[head]) * exact::log_of(safe)));
  }
};
struct LogFalls : Numbers {
  [[gnu::always_inline]] inline float operator()(float s, int, int head, int32_t i, int32_t j) const {
    return s - a[head] * exact::log_of(1 + r[head] * distance(i, j));
  }
};
struct LogAmount : Numbers {
  [[gnu::always_inline]] inline float operator()(float s, int, int head, int32_t i, int32_t j) const {
    return s * exact::log_of(1 + r[head] * distance(i, j));
  }
};
struct LogRate : Numbers {
  [[gnu::always_inline]] inline float operator()(float s, int, int head, int32_t i, int32_t j) const {
    const float d = distance(i, j);
    return s * (a[head] * (d / (1 + r[head] * d)));
  }
};

// The numbers of each head, and what the options say they mean.
struct Fall {
  std::vector<float> amount, rate;
  bool log, power;

  Fall(const Qkv& in, const KerpleParameters& parameters, const KerpleOptions& options, const AttnOut& out)
      : log(options.log), power(parameters.rate.data != nullptr) {
    const int64_t heads = in.q.rank == 4 ? std::max<int64_t>(0, in.q.shape[1]) : 0;
    exact::check_parameter(kOp, {"amount", parameters.amount, {heads}, "[Hq]"}, out);
    exact::check_parameter(kOp, {"rate", parameters.rate, {heads}, "[Hq]"}, out);
    amount.resize(static_cast<size_t>(heads));
    rate.assign(static_cast<size_t>(heads), 1);
    for (size_t h = 0; h < amount.size(); ++h)
      amount[h] = static_cast<float>(alibi_slope(h, static_cast<uint64_t>(heads)));
    if (parameters.amount.data) amount = checked("amount", parameters.amount, heads, 1e30);
    if (parameters.rate.data) rate = checked("rate", parameters.rate, heads, options.log ? 1e6 : 2);
  }

  // use(hook) of scores less their falls.
  template <class Use>
  void with_scores(const Use& use) const {
    if (log) return with<LogFalls>(use);
    if (power) return with<PowerFalls>(use);
    with<LineFalls>(use);
  }
  // use(hook) of the derivative of a fall: by its rate, or by its amount.
  template <class Use>
  void with_slopes(bool by_rate, const Use& use) const {
    if (by_rate) return log ? with<LogRate>(use) : with<PowerRate>(use);
    log ? with<LogAmount>(use) : with<PowerAmount>(use);
  }

 private:
  template <class F, class Use>
  void with(const Use& use) const {
    const exact::EachScore<F> each{F{{amount.data(), rate.data()}}};
    use(exact::tile_hook(each));
  }
};

// to[h] = - sum over pairs of slope(gradient of the score).
void sum_by_head(const exact::BackwardCall& call, const Hook& slope, const View& to, Context& context) {
  const int64_t heads = call.in.q.shape[1], keys = call.in.k.shape[2];
  const int isa = static_cast<int>(active_isa(context));
  std::vector<int32_t> k_position(static_cast<size_t>(keys));
  for (size_t j = 0; j < k_position.size(); ++j) k_position[j] = static_cast<int32_t>(j);
  std::vector<double> sums(static_cast<size_t>(heads), 0);
  exact::each_score_gradient(call, context, [&](int64_t h, int32_t position, float* gradient) {
    Tile tile{gradient, keys, 1, static_cast<int>(keys), 0, static_cast<int>(h), &position, k_position.data()};
    slope.run[isa](slope.self, tile);
    for (int64_t j = 0; j < keys; ++j) sums[static_cast<size_t>(h)] -= static_cast<double>(gradient[j]);
  });
  for (int64_t h = 0; h < heads; ++h) *to.at<float>({h}) = static_cast<float>(sums[static_cast<size_t>(h)]);
}

}  // namespace

void kerple_attention(const Qkv& in, const KerpleParameters& parameters, const KerpleOptions& options,
                      const AttnOut& out, Context& context) {
  const Fall fall(in, parameters, options, out);
  fall.with_scores([&](const Hook& hook) {
    softmax_attention(in, {.causal = options.causal, .scale = options.scale}, out, context, {.score = &hook});
  });
}

void kerple_attention_backward(const Qkv& in, const KerpleParameters& parameters, const KerpleOptions& options,
                               const AttnOut& forward, const AttnOutGrad& grad_out, const KerpleGrad& grad_in,
                               Context& context) {
  const SoftmaxOptions softmax{.causal = options.causal, .scale = options.scale};
  const Fall fall(in, parameters, options, {});
  auto one = [](float, int, int, int32_t, int32_t) { return 1.0f; };
  const Hook unit = make_hook(one);
  fall.with_scores([&](const Hook& hook) {
    const Variant variant{.score = &hook, .score_slope = &unit};
    const exact::BackwardCall call{in, softmax, forward, grad_out, variant};
    exact::check_parameter_gradients(
        kOp, call, grad_in.attention,
        {{"amount", grad_in.amount, parameters.amount}, {"rate", grad_in.rate, parameters.rate}});
    softmax_attention_backward(in, softmax, forward, grad_out, grad_in.attention, context, variant);
    if (grad_in.amount.data)
      fall.with_slopes(false, [&](const Hook& slope) { sum_by_head(call, slope, grad_in.amount, context); });
    if (grad_in.rate.data)
      fall.with_slopes(true, [&](const Hook& slope) { sum_by_head(call, slope, grad_in.rate, context); });
  });
}

}  // namespace attend
