#include "attend/exact/rcmha.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "exact/parameter.h"
#include "exact/score_gradients.h"
#include "exact/tasks.h"
#include "exact/widen.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "rcmha";

// x~ [B, H, T, D], taps in ascending order.
void convolve(const View& x, const View& kernel, const View& shift, Context& context, float* wide, float* y) {
  const int64_t heads = x.shape[1], rows = x.shape[2], d = x.shape[3], width = kernel.shape[0];
  const Isa isa = active_isa(context);
  parallel_for(context.threads, x.shape[0] * heads, [&](int64_t task, int) {
    float *from = wide + task * rows * d, *to = y + task * rows * d;
    for (int64_t t = 0; t < rows; ++t) {
      exact::widen(x, task / heads * x.stride[0] + task % heads * x.stride[1] + t * x.stride[2], d, isa, from + t * d);
      std::fill_n(to + t * d, d, 0.0f);
      for (int64_t w = std::max<int64_t>(0, width - 1 - t); w < width; ++w) {
        const float *tap = kernel.at<float>({w}), *row = from + (t - (width - 1) + w) * d;
        for (int64_t c = 0; c < d; ++c) to[t * d + c] += tap[c] * row[c];
      }
      for (int64_t c = 0; shift.data && c < d; ++c) to[t * d + c] += *shift.at<float>({c});
    }
  });
}

// Gradients of x~, dense, to those of x, of the kernel and of the shift; each may be absent. Sums over batch entries,
// heads and rows ascend.
void convolve_back(const View& x, const View& kernel, const float* dy, Context& context, float* wide, const View& dx,
                   const View& d_kernel, const View& d_shift) {
  const int64_t heads = x.shape[1], rows = x.shape[2], d = x.shape[3], width = kernel.shape[0];
  const Isa isa = active_isa(context);
  parallel_for(context.threads, x.shape[0] * heads, [&](int64_t task, int) {
    const int64_t b = task / heads, h = task % heads;
    const float* from = dy + task * rows * d;
    for (int64_t t = 0; t < rows; ++t) {
      if (d_kernel.data)
        exact::widen(x, b * x.stride[0] + h * x.stride[1] + t * x.stride[2], d, isa, wide + (task * rows + t) * d);
      if (!dx.data) continue;
      float* to = dx.at<float>({b, h, t});
      std::fill_n(to, d, 0.0f);
      for (int64_t w = std::max<int64_t>(0, t + width - rows); w < width; ++w) {
        const float *tap = kernel.at<float>({w}), *row = from + (t + width - 1 - w) * d;
        for (int64_t c = 0; c < d; ++c) to[c] += tap[c] * row[c];
      }
    }
  });
  if (d_kernel.data)
    parallel_for(context.threads, width, [&](int64_t w, int) {
      std::vector<double> sum(static_cast<size_t>(d), 0);
      for (int64_t head = 0; head < x.shape[0] * heads; ++head)
        for (int64_t t = width - 1 - w; t < rows; ++t) {
          const float *row = wide + (head * rows + t - (width - 1) + w) * d, *gradient = dy + (head * rows + t) * d;
          for (int64_t c = 0; c < d; ++c)
            sum[static_cast<size_t>(c)] += static_cast<double>(gradient[c]) * static_cast<double>(row[c]);
        }
      for (int64_t c = 0; c < d; ++c) *d_kernel.at<float>({w, c}) = static_cast<float>(sum[static_cast<size_t>(c)]);
    });
  for (int64_t c = 0; d_shift.data && c < d; ++c) {
    double sum = 0;
    for (int64_t row = 0; row < x.shape[0] * heads * rows; ++row) sum += static_cast<double>(dy[row * d + c]);
    *d_shift.at<float>({c}) = static_cast<float>(sum);
  }
}

// A checked call.
class Convolved {
 public:
  Convolved(const Qkv& in, const RcmhaKernels& kernels, const RcmhaOptions& options, const AttnOut& out)
      : p(exact::check(in, {.causal = options.causal, .scale = options.scale}, kOp)), in_(in), kernels_(kernels) {
    const int64_t width = kernels.kernel_q.rank == 2 ? kernels.kernel_q.shape[0] : 0;
    exact::check_parameter(kOp, {"kernel_q", kernels.kernel_q, {width, p.d}, "[W, D]", true}, out);
    exact::check_parameter(kOp, {"kernel_k", kernels.kernel_k, {width, p.d}, "[W, D]", true}, out);
    exact::check_parameter(kOp, {"kernel_v", kernels.kernel_v, {width, p.dv}, "[W, Dv]", true}, out);
    exact::check_parameter(kOp, {"shift_q", kernels.shift_q, {p.d}, "[D]"}, out);
    exact::check_parameter(kOp, {"shift_k", kernels.shift_k, {p.d}, "[D]"}, out);
    exact::check_parameter(kOp, {"shift_v", kernels.shift_v, {p.dv}, "[Dv]"}, out);
    if (width < 1 || width > 64)
      throw Error(ErrorKind::kArgument, kOp, "W", fmt::format("{}", width), "must be in 1..64");
  }

  // Memory for the widened rows of any of the three.
  float* wide(Context& context) const {
    return exact::kept_floats(context, 0, std::max({in_.q.count(), in_.k.count(), in_.v.count()}));
  }

  Qkv convolved(Context& context) const {
    const int64_t keys = in_.k.shape[2];
    float* q = exact::kept_floats(context, 1, in_.q.count());
    float* k = exact::kept_floats(context, 2, in_.k.count());
    float* v = exact::kept_floats(context, 3, in_.v.count());
    convolve(in_.q, kernels_.kernel_q, kernels_.shift_q, context, wide(context), q);
    convolve(in_.k, kernels_.kernel_k, kernels_.shift_k, context, wide(context), k);
    convolve(in_.v, kernels_.kernel_v, kernels_.shift_v, context, wide(context), v);
    return {.q = dense_view(q, DType::kF32, {p.batch, p.heads, p.queries, p.d}),
            .k = dense_view(k, DType::kF32, {p.batch, p.kv_heads, keys, p.d}),
            .v = dense_view(v, DType::kF32, {p.batch, p.kv_heads, keys, p.dv})};
  }

  const exact::Problem p;

 private:
  const Qkv& in_;
  const RcmhaKernels& kernels_;
};

}  // namespace

void rcmha_attention(const Qkv& in, const RcmhaKernels& kernels, const RelativeTables& tables,
                     const RcmhaOptions& options, const AttnOut& out, Context& context) {
  exact::require_arrays_alone(kOp, in);
  const Convolved call(in, kernels, options, out);
  exact::check_outputs(call.p, in, out, kOp);
  relative_attention(call.convolved(context), tables, {.causal = options.causal, .scale = options.scale}, out, context);
}

void rcmha_attention_backward(const Qkv& in, const RcmhaKernels& kernels, const RelativeTables& tables,
                              const RcmhaOptions& options, const AttnOutGrad& grad_out, const RcmhaGrad& grad_in,
                              Context& context) {
  exact::require_arrays_alone(kOp, in);
  const Convolved call(in, kernels, options, {});
  const RcmhaKernels& to = grad_in.kernels;
  exact::check_row_gradients(kOp, call.p, in, grad_out, {grad_in.q, grad_in.k, grad_in.v},
                             {{"kernel_q", to.kernel_q, kernels.kernel_q},
                              {"kernel_k", to.kernel_k, kernels.kernel_k},
                              {"kernel_v", to.kernel_v, kernels.kernel_v},
                              {"shift_q", to.shift_q, kernels.shift_q},
                              {"shift_k", to.shift_k, kernels.shift_k},
                              {"shift_v", to.shift_v, kernels.shift_v},
                              {"relative_keys", grad_in.relative_keys, tables.keys},
                              {"content_bias", grad_in.content_bias, tables.content},
                              {"distance_bias", grad_in.distance_bias, tables.bias}});
  const Qkv convolved = call.convolved(context);
  // Of what is convolved, where anything before the convolution has a gradient.
  auto like = [&](int index, const View& x, std::initializer_list<const View*> wanted) {
    if (std::ranges::none_of(wanted, [](const View* to_x) { return to_x->data != nullptr; })) return View();
    return dense_view(exact::kept_floats(context, index, x.count()), DType::kF32, 4, x.shape);
  };
  const View dq = like(4, in.q, {&grad_in.q, &to.kernel_q, &to.shift_q}),
             dk = like(5, in.k, {&grad_in.k, &to.kernel_k, &to.shift_k}),
             dv = like(6, in.v, {&grad_in.v, &to.kernel_v, &to.shift_v});
  relative_attention_backward(convolved, tables, {.causal = options.causal, .scale = options.scale}, grad_out,
                              {.q = dq,
                               .k = dk,
                               .v = dv,
                               .relative_keys = grad_in.relative_keys,
                               .content_bias = grad_in.content_bias,
                               .distance_bias = grad_in.distance_bias},
                              context);
  float* wide = call.wide(context);
  if (dq.data) convolve_back(in.q, kernels.kernel_q, dq.as<float>(), context, wide, grad_in.q, to.kernel_q, to.shift_q);
  if (dk.data) convolve_back(in.k, kernels.kernel_k, dk.as<float>(), context, wide, grad_in.k, to.kernel_k, to.shift_k);
  if (dv.data) convolve_back(in.v, kernels.kernel_v, dv.as<float>(), context, wide, grad_in.v, to.kernel_v, to.shift_v);
}

}  // namespace attend
