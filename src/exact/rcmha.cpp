#include "attend/exact/rcmha.h"

#include <fmt/format.h>

#include <algorithm>

#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "exact/parameter.h"
#include "exact/problem.h"
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

}  // namespace

void rcmha_attention(const Qkv& in, const RcmhaKernels& kernels, const RelativeTables& tables,
                     const RcmhaOptions& options, const AttnOut& out, Context& context) {
  exact::require_arrays_alone(kOp, in);
  const exact::Problem p = exact::check(in, {.causal = options.causal, .scale = options.scale}, kOp);
  exact::check_outputs(p, in, out, kOp);
  const int64_t width = kernels.kernel_q.rank == 2 ? kernels.kernel_q.shape[0] : 0;
  exact::check_parameter(kOp, {"kernel_q", kernels.kernel_q, {width, p.d}, "[W, D]", true}, out);
  exact::check_parameter(kOp, {"kernel_k", kernels.kernel_k, {width, p.d}, "[W, D]", true}, out);
  exact::check_parameter(kOp, {"kernel_v", kernels.kernel_v, {width, p.dv}, "[W, Dv]", true}, out);
  exact::check_parameter(kOp, {"shift_q", kernels.shift_q, {p.d}, "[D]"}, out);
  exact::check_parameter(kOp, {"shift_k", kernels.shift_k, {p.d}, "[D]"}, out);
  exact::check_parameter(kOp, {"shift_v", kernels.shift_v, {p.dv}, "[Dv]"}, out);
  if (width < 1 || width > 64)
    throw Error(ErrorKind::kArgument, kOp, "W", fmt::format("{}", width), "must be in 1..64");
  const RelativeOptions relative{.causal = options.causal, .scale = options.scale};
  float* wide = exact::kept_floats(context, 0, std::max({in.q.count(), in.k.count(), in.v.count()}));
  float* q = exact::kept_floats(context, 1, in.q.count());
  float* k = exact::kept_floats(context, 2, in.k.count());
  float* v = exact::kept_floats(context, 3, in.v.count());
  convolve(in.q, kernels.kernel_q, kernels.shift_q, context, wide, q);
  convolve(in.k, kernels.kernel_k, kernels.shift_k, context, wide, k);
  convolve(in.v, kernels.kernel_v, kernels.shift_v, context, wide, v);
  const int64_t keys = in.k.shape[2];
  relative_attention({.q = dense_view(q, DType::kF32, {p.batch, p.heads, p.queries, p.d}),
                      .k = dense_view(k, DType::kF32, {p.batch, p.kv_heads, keys, p.d}),
                      .v = dense_view(v, DType::kF32, {p.batch, p.kv_heads, keys, p.dv})},
                     tables, relative, out, context);
}

}  // namespace attend
