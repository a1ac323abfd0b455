#include "attend/exact/harmonic.h"

#include <fmt/format.h>

#include <cmath>
#include <vector>

#include "attend/tensor/error.h"
#include "exact/elementary.h"
#include "exact/parameter.h"
#include "exact/problem.h"
#include "exact/tile_hook.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "harmonic";

// H(d) of an integer d >= 0: that of d + 4 by its asymptotic series around d + 9/2, which is cut at 3e-8, less the four
// terms 1 / (d + 1) .. 1 / (d + 4) as one fraction, P' / P of P = (d + 1) (d + 2) (d + 3) (d + 4).
[[gnu::always_inline]] inline float harmonic_number(float d) {
  constexpr float kEuler = 0.577215665f;
  const float x = d + 4.5f, z = 1 / (x * x), y = d * (d + 5);
  float series = std::fma(z, 31.0f / 8064, -7.0f / 960);
  series = std::fma(series, z, 1.0f / 24) * z;
  const float terms = (2 * d + 5) * (2 * y + 10) / ((y + 4) * (y + 6));
  const float sum = exact::log_of(x) + (kEuler + series) - terms;
  return d < 1 ? 0 : sum;
}

// Scores in the harmonic manner, and their derivatives by what they were; slopes m of each head.
struct Divided {
  const float* m;
  [[gnu::always_inline]] inline float operator()(float s, int, int head, int32_t i, int32_t j) const {
    return s / (1 + m[head] * std::abs(static_cast<float>(i - j)));
  }
};
struct DividedSlope {
  const float* m;
  [[gnu::always_inline]] inline float operator()(float, int, int head, int32_t i, int32_t j) const {
    return 1 / (1 + m[head] * std::abs(static_cast<float>(i - j)));
  }
};
struct Less {
  const float* m;
  [[gnu::always_inline]] inline float operator()(float s, int, int head, int32_t i, int32_t j) const {
    return s - m[head] * harmonic_number(std::abs(static_cast<float>(i - j)));
  }
};
struct LessSlope {
  const float* m;
  [[gnu::always_inline]] inline float operator()(float, int, int, int32_t, int32_t) const { return 1; }
};

// use(variant) with the hooks for these slopes and options.
template <class Use>
void with_hooks(const Qkv& in, const View& slopes, const HarmonicOptions& options, const AttnOut& out, const Use& use) {
  const int64_t heads = in.q.rank == 4 ? std::max<int64_t>(0, in.q.shape[1]) : 0;
  exact::check_parameter(kOp, {"slopes", slopes, {heads}, "[Hq]"}, out);
  std::vector<float> slope(static_cast<size_t>(heads), 1);
  for (int64_t h = 0; slopes.data && h < heads; ++h) {
    const float m = *slopes.at<float>({h});
    if (!(m >= 0 && m <= 1e6f))
      throw Error(ErrorKind::kArgument, kOp, fmt::format("slopes[{}]", h), fmt::format("{}", m), "must be in 0..1e6");
    slope[static_cast<size_t>(h)] = m;
  }
  auto run = [&](const auto& value, const auto& derivative) {
    const exact::EachScore values{value};
    const exact::EachScore derivatives{derivative};
    const Hook score = exact::tile_hook(values), score_slope = exact::tile_hook(derivatives);
    use(Variant{.score = &score, .score_slope = &score_slope});
  };
  if (options.added) return run(Less{slope.data()}, LessSlope{slope.data()});
  run(Divided{slope.data()}, DividedSlope{slope.data()});
}

RopeAttentionOptions rope_of(const HarmonicOptions& options) {
  return {.causal = options.causal, .scale = options.scale, .rope = options.rope};
}

}  // namespace

void harmonic_attention(const Qkv& in, const View& slopes, const HarmonicOptions& options, const AttnOut& out,
                        Context& context, const RopeAngles* angles) {
  with_hooks(in, slopes, options, out, [&](const Variant& variant) {
    rope_attention(in, {}, {}, rope_of(options), out, context, angles, variant);
  });
}

void harmonic_attention_backward(const Qkv& in, const View& slopes, const HarmonicOptions& options,
                                 const AttnOut& forward, const AttnOutGrad& grad_out, const AttnGrad& grad_in,
                                 Context& context, const RopeAngles* angles) {
  with_hooks(in, slopes, options, {}, [&](const Variant& variant) {
    for (const View* gradient : {&grad_in.q, &grad_in.k, &grad_in.v})
      exact::require_apart(kOp, "gradient", *gradient, "slopes", slopes);
    rope_attention_backward(in, {}, {}, rope_of(options), forward, grad_out, grad_in, context, angles, variant);
  });
}

}  // namespace attend
