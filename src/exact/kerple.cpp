#include "attend/exact/kerple.h"

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <vector>

#include "attend/tensor/error.h"
#include "exact/elementary.h"
#include "exact/parameter.h"

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

}  // namespace

void kerple_attention(const Qkv& in, const KerpleParameters& parameters, const KerpleOptions& options,
                      const AttnOut& out, Context& context) {
  const int64_t heads = in.q.rank == 4 ? std::max<int64_t>(0, in.q.shape[1]) : 0;
  exact::check_parameter(kOp, {"amount", parameters.amount, {heads}, "[Hq]"}, out);
  exact::check_parameter(kOp, {"rate", parameters.rate, {heads}, "[Hq]"}, out);
  std::vector<float> amount(static_cast<size_t>(heads)), rate(static_cast<size_t>(heads), 1);
  for (size_t h = 0; h < amount.size(); ++h)
    amount[h] = static_cast<float>(alibi_slope(h, static_cast<uint64_t>(heads)));
  if (parameters.amount.data) amount = checked("amount", parameters.amount, heads, 1e30);
  if (parameters.rate.data) rate = checked("rate", parameters.rate, heads, options.log ? 1e6 : 2);
  const float *a = amount.data(), *r = rate.data();
  const SoftmaxOptions softmax{.causal = options.causal, .scale = options.scale};
  auto run = [&](auto& fall) {
    const Hook hook = make_hook(fall);
    softmax_attention(in, softmax, out, context, {.score = &hook});
  };
  if (options.log) {
    auto fall = [&](float s, int, int head, int32_t i, int32_t j) {
      return s - a[head] * exact::log_of(1 + r[head] * std::abs(static_cast<float>(i - j)));
    };
    run(fall);
  } else if (parameters.rate.data) {
    auto fall = [&](float s, int, int head, int32_t i, int32_t j) {
      const float d = std::abs(static_cast<float>(i - j)), power = exact::power_of(d < 1 ? 1 : d, r[head]);
      return s - a[head] * (d < 1 ? 0 : power);
    };
    run(fall);
  } else {
    auto fall = [&](float s, int, int head, int32_t i, int32_t j) {
      return s - a[head] * std::abs(static_cast<float>(i - j));
    };
    run(fall);
  }
}

}  // namespace attend
