#include "attend/exact/differential.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "exact/problem.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "differential";

[[noreturn]] void refuse(std::string_view argument, std::string_view got, std::string_view rule) {
  throw Error(ErrorKind::kArgument, kOp, argument, got, rule);
}

// The two attentions of a checked call.
struct Pair {
  SoftmaxOptions options;
  Qkv noise_in;
  exact::Problem signal, noise;
  int64_t ratio;

  Pair(const DifferentialIn& in, const DifferentialOptions& o)
      : options{.causal = o.causal, .scale = o.scale}, noise_in(in.signal), signal(checked_signal(in, o)) {
    noise_in.q = in.q_noise;
    noise_in.k = in.k_noise;
    noise = exact::check(noise_in, options, kOp);
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
    ratio = signal.heads / noise.heads;
  }

  exact::Problem checked_signal(const DifferentialIn& in, const DifferentialOptions& o) const {
    if (!std::isfinite(o.lambda)) refuse("lambda", fmt::format("{}", o.lambda), "must be finite");
    const std::pair<std::string_view, bool> absent[] = {
        {"keys", !in.signal.keys.empty()}, {"bias", in.signal.bias.data}, {"sink_logits", in.signal.sink_logits.data}};
    for (const auto& [name, given] : absent)
      if (given) refuse(name, "given", "must be absent");
    return exact::check(in.signal, options, kOp);
  }
};

float lambda_of(const DifferentialIn& in, const DifferentialOptions& options, int64_t b, int64_t h, int64_t i) {
  return in.lambda.data ? *in.lambda.at<float>({b, h, i}) : static_cast<float>(options.lambda);
}

// An array of its own for each head and query of an attention.
struct Rows {
  Buffer memory;
  View view;

  explicit Rows(const exact::Problem& p) : Rows({p.batch, p.heads, p.queries, p.dv}) {}
  explicit Rows(std::initializer_list<int64_t> shape) {
    view = dense_view(nullptr, DType::kF32, shape);
    memory = Buffer(std::max<int64_t>(1, view.count()) * 4);
    view.data = memory.data();
  }
};

}  // namespace

void differential_attention(const DifferentialIn& in, const DifferentialOptions& options, const View& out,
                            Context& context) {
  const Pair pair(in, options);
  const exact::Problem& signal = pair.signal;
  exact::check_outputs(signal, in.signal, {out}, kOp);
  exact::check_outputs(signal, {.q = in.q_noise, .k = in.k_noise, .v = in.signal.v, .bias = in.lambda}, {out}, kOp);

  const Rows noise(pair.noise);
  softmax_attention(in.signal, pair.options, {out}, context);
  softmax_attention(pair.noise_in, pair.options, {noise.view}, context);
  parallel_for(context.threads, signal.batch * signal.heads, [&](int64_t task, int) {
    const int64_t b = task / signal.heads, h = task % signal.heads;
    for (int64_t i = 0; i < signal.queries; ++i) {
      const float lambda = lambda_of(in, options, b, h, i);
      float* to = out.at<float>({b, h, i});
      const float* from = noise.view.at<float>({b, h / pair.ratio, i});
      for (int64_t c = 0; c < signal.dv; ++c) to[c] -= lambda * from[c];
    }
  });
}

void differential_attention_backward(const DifferentialIn& in, const DifferentialOptions& options, const View& grad_out,
                                     const DifferentialGrad& grad_in, Context& context) {
  const Pair pair(in, options);
  const exact::Problem &signal = pair.signal, &noise = pair.noise;
  const std::pair<std::string_view, const View*> read[] = {{"q", &in.signal.q},
                                                           {"k", &in.signal.k},
                                                           {"v", &in.signal.v},
                                                           {"q_noise", &in.q_noise},
                                                           {"k_noise", &in.k_noise},
                                                           {"lambda", &in.lambda},
                                                           {"kv_lens", &in.signal.kv_lens},
                                                           {"q_positions", &in.signal.q_positions},
                                                           {"documents", &in.signal.documents},
                                                           {"gradient of out", &grad_out}};
  const std::tuple<std::string_view, const View*, const View*> written[] = {
      {"gradient of q", &grad_in.q, &in.signal.q},
      {"gradient of k", &grad_in.k, &in.signal.k},
      {"gradient of v", &grad_in.v, &in.signal.v},
      {"gradient of q_noise", &grad_in.q_noise, &in.q_noise},
      {"gradient of k_noise", &grad_in.k_noise, &in.k_noise},
      {"gradient of lambda", &grad_in.lambda, &in.lambda}};
  if (!grad_out.data) refuse("gradient of out", "null", "must be given");
  exact::check_outputs(signal.batch, signal.heads, signal.queries, signal.dv, {grad_out}, kOp);
  for (const auto& [name, gradient, of] : written) {
    if (!gradient->data) continue;
    if (!of->data) refuse(name, "given", "must not be asked for without the input");
    exact::check_like(*gradient, *of, name, kOp);
    for (const auto& [other, view] : read) exact::require_apart(kOp, name, *gradient, other, *view);
    for (const auto& [other, view, input] : written)
      if (view != gradient) exact::require_apart(kOp, name, *gradient, other, *view);
  }

  const Rows s(signal), n(noise), d_noise(noise), s_lse({signal.batch, signal.heads, signal.queries}),
      n_lse({noise.batch, noise.heads, noise.queries});
  const Rows dv(std::initializer_list<int64_t>{signal.batch, signal.kv_heads, in.signal.v.shape[2], signal.dv});
  softmax_attention(in.signal, pair.options, {s.view, s_lse.view}, context);
  softmax_attention(pair.noise_in, pair.options, {n.view, n_lse.view}, context);
  parallel_for(context.threads, noise.batch * noise.heads, [&](int64_t task, int) {
    const int64_t b = task / noise.heads, g = task % noise.heads;
    for (int64_t i = 0; i < noise.queries; ++i) {
      float* to = d_noise.view.at<float>({b, g, i});
      std::fill_n(to, noise.dv, 0.0f);
      for (int64_t h = g * pair.ratio; h < (g + 1) * pair.ratio; ++h) {
        const float lambda = lambda_of(in, options, b, h, i);
        const float *d = grad_out.at<float>({b, h, i}), *o = n.view.at<float>({b, g, i});
        double dot = 0;
        for (int64_t c = 0; c < noise.dv; ++c) {
          to[c] -= lambda * d[c];
          dot += static_cast<double>(d[c]) * static_cast<double>(o[c]);
        }
        if (grad_in.lambda.data) *grad_in.lambda.at<float>({b, h, i}) = static_cast<float>(-dot);
      }
    }
  });
  softmax_attention_backward(in.signal, pair.options, {s.view, s_lse.view}, {.out = grad_out},
                             {.q = grad_in.q, .k = grad_in.k, .v = grad_in.v}, context);
  softmax_attention_backward(pair.noise_in, pair.options, {n.view, n_lse.view}, {.out = d_noise.view},
                             {.q = grad_in.q_noise, .k = grad_in.k_noise, .v = grad_in.v.data ? dv.view : View{}},
                             context);
  if (!grad_in.v.data) return;
  parallel_for(context.threads, signal.batch * signal.kv_heads, [&](int64_t task, int) {
    const int64_t b = task / signal.kv_heads, h = task % signal.kv_heads;
    for (int64_t j = 0; j < in.signal.v.shape[2]; ++j) {
      float* to = grad_in.v.at<float>({b, h, j});
      const float* from = dv.view.at<float>({b, h, j});
      for (int64_t c = 0; c < signal.dv; ++c) to[c] += from[c];
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
