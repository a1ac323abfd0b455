#include "attend/exact/differential.h"

#include <fmt/format.h>

#include <cmath>

#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "exact/problem.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "differential";

[[noreturn]] void refuse(std::string_view argument, std::string_view got, std::string_view rule) {
  throw Error(ErrorKind::kArgument, kOp, argument, got, rule);
}

}  // namespace

void differential_attention(const DifferentialIn& in, const DifferentialOptions& options, const View& out,
                            Context& context) {
  const SoftmaxOptions plain{.causal = options.causal, .scale = options.scale};
  if (!std::isfinite(options.lambda)) refuse("lambda", fmt::format("{}", options.lambda), "must be finite");
  const std::pair<std::string_view, bool> absent[] = {
      {"keys", !in.signal.keys.empty()}, {"bias", in.signal.bias.data}, {"sink_logits", in.signal.sink_logits.data}};
  for (const auto& [name, given] : absent)
    if (given) refuse(name, "given", "must be absent");
  const exact::Problem signal = exact::check(in.signal, plain, kOp);
  Qkv other = in.signal;
  other.q = in.q_noise;
  other.k = in.k_noise;
  const exact::Problem noise = exact::check(other, plain, kOp);
  if (noise.batch != signal.batch || noise.queries != signal.queries || noise.heads < 1 ||
      signal.heads % noise.heads != 0)
    refuse("q_noise", to_string(in.q_noise),
           fmt::format("must be [B, Hn, Tq, D] as q {}, Hn a divisor of Hq", to_string(in.signal.q)));
  if (in.lambda.data) {
    const View& l = in.lambda;
    if (l.type != DType::kF32) refuse("lambda type", name_of(l.type), "must be f32");
    if (l.rank != 3 || l.shape[0] != signal.batch || l.shape[1] != signal.heads || l.shape[2] != signal.queries)
      refuse("lambda", to_string(l), "must be [B, Hq, Tq]");
  }
  exact::check_outputs(signal, in.signal, {out}, kOp);
  exact::check_outputs(signal, {.q = in.q_noise, .k = in.k_noise, .v = in.signal.v, .bias = in.lambda}, {out}, kOp);

  const int64_t ratio = signal.heads / noise.heads;
  Buffer memory(std::max<int64_t>(1, noise.batch * noise.heads * noise.queries * noise.dv) * 4);
  const View n = dense_view(memory.data(), DType::kF32, {noise.batch, noise.heads, noise.queries, noise.dv});
  softmax_attention(in.signal, plain, {out}, context);
  softmax_attention(other, plain, {n}, context);
  parallel_for(context.threads, signal.batch * signal.heads, [&](int64_t task, int) {
    const int64_t b = task / signal.heads, h = task % signal.heads;
    for (int64_t i = 0; i < signal.queries; ++i) {
      const float lambda = in.lambda.data ? *in.lambda.at<float>({b, h, i}) : static_cast<float>(options.lambda);
      float* to = out.at<float>({b, h, i});
      const float* from = n.at<float>({b, h / ratio, i});
      for (int64_t c = 0; c < signal.dv; ++c) to[c] -= lambda * from[c];
    }
  });
}

double differential_lambda(std::span<const float> q1, std::span<const float> k1, std::span<const float> q2,
                           std::span<const float> k2, double initial) {
  auto dot = [](std::span<const float> x, std::span<const float> y) {
    if (x.size() != y.size())
      refuse("lambda", fmt::format("vectors of {} and {}", x.size(), y.size()), "must have one length");
    double sum = 0;
    for (size_t c = 0; c < x.size(); ++c) sum += static_cast<double>(x[c]) * static_cast<double>(y[c]);
    return sum;
  };
  return std::exp(dot(q1, k1)) - std::exp(dot(q2, k2)) + initial;
}

}  // namespace attend
