#include "attend/exact/affine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "attend/simd/dense.h"
#include "attend/simd/isa.h"
#include "attend/tensor/parallel.h"
#include "exact/pointwise.h"

namespace attend {

void affine_attention(const Qkv& in, const View& alpha, const AffineOptions& options, const View& out,
                      Context& context) {
  constexpr std::string_view kOp = "affine";
  const SoftmaxOptions plain{.causal = options.causal, .scale = options.scale};
  const exact::Problem p = exact::check(in, plain, kOp);
  exact::require_countable(in, kOp);
  if (in.bias.data) throw Error(ErrorKind::kArgument, kOp, "bias", "given", "must be absent");
  if (!std::isfinite(options.average))
    throw Error(ErrorKind::kArgument, kOp, "average", fmt::format("{}", options.average), "must be finite");
  if (!alpha.data && alpha.count() != 0) throw Error(ErrorKind::kArgument, kOp, "alpha", "null", "must be given");
  if (alpha.type != DType::kF32)
    throw Error(ErrorKind::kArgument, kOp, "alpha type", name_of(alpha.type), "must be f32");
  if (alpha.rank != 3 || alpha.shape[0] != p.batch || alpha.shape[1] != p.heads || alpha.shape[2] != p.queries)
    throw Error(ErrorKind::kArgument, kOp, "alpha", to_string(alpha), "must be [B, Hq, Tq]");
  exact::check_outputs(p, in, {out}, kOp);
  exact::check_outputs(p, {.q = in.q, .bias = alpha}, {out}, kOp);
  softmax_attention(in, plain, {out}, context);

  // Queries in the order of what they see: one running sum of the values of a head serves all of its queries.
  const DenseKernels& kernels = dense_kernels(active_isa(context));
  const exact::VisibleCount count{p.lengths.data(), options.causal};
  std::vector<std::vector<int64_t>> order(static_cast<size_t>(p.batch));
  for (int64_t b = 0; b < p.batch; ++b) {
    auto& rows = order[static_cast<size_t>(b)];
    rows.resize(static_cast<size_t>(p.queries));
    std::iota(rows.begin(), rows.end(), int64_t{0});
    std::stable_sort(rows.begin(), rows.end(),
                     [&](int64_t x, int64_t y) { return p.position(b, x) < p.position(b, y); });
  }
  struct Workspace {
    std::vector<float> value;
    std::vector<double> sum;
  };
  std::vector<Workspace> workspaces(static_cast<size_t>(context.threads));
  for (Workspace& w : workspaces) {
    w.value.resize(static_cast<size_t>(p.dv));
    w.sum.resize(static_cast<size_t>(p.dv));
  }
  parallel_for(context.threads, p.batch * p.kv_heads, [&](int64_t task, int worker) {
    Workspace& w = workspaces[static_cast<size_t>(worker)];
    const int64_t b = task / p.kv_heads, kv = task % p.kv_heads, length = p.lengths[static_cast<size_t>(b)];
    const View& v = in.v;
    std::fill(w.sum.begin(), w.sum.end(), 0.0);
    int64_t added = 0;
    for (int64_t i : order[static_cast<size_t>(b)]) {
      const int64_t position = p.position(b, i);
      if (length == 0 || (options.causal && position < 0)) continue;
      const int64_t seen = count(static_cast<int>(b), static_cast<int32_t>(position));
      for (; added < seen; ++added) {
        const char* row = v.as<char>() + (b * v.stride[0] + kv * v.stride[1] + added * v.stride[2]) * size_of(v.type);
        kernels.widen(v.type, row, 0, 1, p.dv, w.value.data(), 0);
        for (size_t c = 0; c < w.sum.size(); ++c) w.sum[c] += static_cast<double>(w.value[c]);
      }
      for (int64_t h = kv * p.group; h < (kv + 1) * p.group; ++h) {
        const float a = *alpha.at<float>({b, h, i});
        const double rest = (options.average - static_cast<double>(a)) / static_cast<double>(seen);
        float* to = out.at<float>({b, h, i});
        for (size_t c = 0; c < w.sum.size(); ++c) to[c] = a * to[c] + static_cast<float>(rest * w.sum[c]);
      }
    }
  });
}

}  // namespace attend
