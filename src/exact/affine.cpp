#include "attend/exact/affine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "attend/simd/dense.h"
#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "exact/pointwise.h"
#include "exact/score_gradients.h"

namespace attend {

namespace {

constexpr std::string_view kOp = "affine";

exact::Problem checked(const Qkv& in, const View& alpha, const AffineOptions& options) {
  const exact::Problem p = exact::check(in, {.causal = options.causal, .scale = options.scale}, kOp);
  exact::require_countable(in, kOp);
  if (in.bias.data) throw Error(ErrorKind::kArgument, kOp, "bias", "given", "must be absent");
  if (!std::isfinite(options.average))
    throw Error(ErrorKind::kArgument, kOp, "average", fmt::format("{}", options.average), "must be finite");
  if (!alpha.data && alpha.count() != 0) throw Error(ErrorKind::kArgument, kOp, "alpha", "null", "must be given");
  if (alpha.type != DType::kF32)
    throw Error(ErrorKind::kArgument, kOp, "alpha type", name_of(alpha.type), "must be f32");
  if (alpha.rank != 3 || alpha.shape[0] != p.batch || alpha.shape[1] != p.heads || alpha.shape[2] != p.queries)
    throw Error(ErrorKind::kArgument, kOp, "alpha", to_string(alpha), "must be [B, Hq, Tq]");
  return p;
}

struct SeenRow {
  int64_t query, keys;  // keys: how many it sees, above 0
};

// The queries of a batch entry that see a key, in the order of what they see.
std::vector<SeenRow> rows_by_keys(const exact::Problem& p, const AffineOptions& options, int64_t b) {
  const exact::VisibleCount count{p.lengths.data(), options.causal};
  std::vector<SeenRow> rows;
  if (p.lengths[static_cast<size_t>(b)] == 0) return rows;
  for (int64_t i = 0; i < p.queries; ++i) {
    const int64_t position = p.position(b, i);
    if (options.causal && position < 0) continue;
    rows.push_back({i, count(static_cast<int>(b), static_cast<int32_t>(position))});
  }
  std::stable_sort(rows.begin(), rows.end(), [](const SeenRow& x, const SeenRow& y) { return x.keys < y.keys; });
  return rows;
}

// f(b, kv head, row, sums [Dv]) for every row, with the sums of the values that it sees: one running sum of a head's
// values serves all of its queries. Heads run at the same time.
template <class F>
void each_sum(const Qkv& in, const exact::Problem& p, const AffineOptions& options, Context& context, const F& f) {
  const DenseKernels& kernels = dense_kernels(active_isa(context));
  std::vector<std::vector<SeenRow>> rows;
  for (int64_t b = 0; b < p.batch; ++b) rows.push_back(rows_by_keys(p, options, b));
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
    const int64_t b = task / p.kv_heads, kv = task % p.kv_heads;
    const View& v = in.v;
    std::fill(w.sum.begin(), w.sum.end(), 0.0);
    int64_t added = 0;
    for (const SeenRow& row : rows[static_cast<size_t>(b)]) {
      for (; added < row.keys; ++added) {
        const char* from = v.as<char>() + (b * v.stride[0] + kv * v.stride[1] + added * v.stride[2]) * size_of(v.type);
        kernels.widen(v.type, from, 0, 1, p.dv, w.value.data(), 0);
        for (size_t c = 0; c < w.sum.size(); ++c) w.sum[c] += static_cast<double>(w.value[c]);
      }
      f(b, kv, row, w.sum.data());
    }
  });
}

// grad_v[j] += sum over rows i that see j of (average - alpha[i]) / n[i] d_out[i].
void add_means(const exact::Problem& p, const View& alpha, const AffineOptions& options, const View& d_out,
               const View& grad_v, Context& context) {
  std::vector<std::vector<SeenRow>> rows;
  for (int64_t b = 0; b < p.batch; ++b) rows.push_back(rows_by_keys(p, options, b));
  std::vector<std::vector<double>> sums(static_cast<size_t>(context.threads));
  for (auto& sum : sums) sum.resize(static_cast<size_t>(p.dv));
  parallel_for(context.threads, p.batch * p.kv_heads, [&](int64_t task, int worker) {
    const int64_t b = task / p.kv_heads, kv = task % p.kv_heads;
    const std::vector<SeenRow>& all = rows[static_cast<size_t>(b)];
    std::vector<double>& sum = sums[static_cast<size_t>(worker)];
    std::fill(sum.begin(), sum.end(), 0.0);
    size_t left = all.size();
    for (int64_t j = grad_v.shape[2] - 1; j >= 0; --j) {
      for (; left > 0 && all[left - 1].keys > j; --left)
        for (int64_t h = kv * p.group; h < (kv + 1) * p.group; ++h) {
          const SeenRow& row = all[left - 1];
          const double rest = (options.average - static_cast<double>(*alpha.at<float>({b, h, row.query}))) /
                              static_cast<double>(row.keys);
          const float* d = d_out.at<float>({b, h, row.query});
          for (size_t c = 0; c < sum.size(); ++c) sum[c] += rest * static_cast<double>(d[c]);
        }
      float* to = grad_v.at<float>({b, kv, j});
      for (size_t c = 0; c < sum.size(); ++c) to[c] += static_cast<float>(sum[c]);
    }
  });
}

}  // namespace

void affine_attention(const Qkv& in, const View& alpha, const AffineOptions& options, const View& out,
                      Context& context) {
  const exact::Problem p = checked(in, alpha, options);
  exact::check_outputs(p, in, {out}, kOp);
  exact::check_outputs(p, {.q = in.q, .bias = alpha}, {out}, kOp);
  softmax_attention(in, {.causal = options.causal, .scale = options.scale}, {out}, context);
  each_sum(in, p, options, context, [&](int64_t b, int64_t kv, const SeenRow& row, const double* sum) {
    for (int64_t h = kv * p.group; h < (kv + 1) * p.group; ++h) {
      const float a = *alpha.at<float>({b, h, row.query});
      const double rest = (options.average - static_cast<double>(a)) / static_cast<double>(row.keys);
      float* to = out.at<float>({b, h, row.query});
      for (int64_t c = 0; c < p.dv; ++c) to[c] = a * to[c] + static_cast<float>(rest * sum[c]);
    }
  });
}

void affine_attention_backward(const Qkv& in, const View& alpha, const AffineOptions& options, const View& grad_out,
                               const AffineGrad& grad_in, Context& context) {
  const SoftmaxOptions plain{.causal = options.causal, .scale = options.scale};
  const exact::Problem p = checked(in, alpha, options);
  if (!grad_out.data) throw Error(ErrorKind::kArgument, kOp, "gradient of out", "null", "must be given");
  exact::check_outputs(p.batch, p.heads, p.queries, p.dv, {grad_out}, kOp);
  const exact::BackwardCall call{in, plain, {}, {.out = grad_out}, {}};
  const AttnGrad attention{.q = grad_in.q, .k = grad_in.k, .v = grad_in.v};
  exact::check_parameter_gradients(kOp, call, attention, {{"alpha", grad_in.alpha, alpha}});
  exact::check_parameter_gradients(kOp, call, {},
                                   {{"q", grad_in.q, in.q}, {"k", grad_in.k, in.k}, {"v", grad_in.v, in.v}});
  const std::pair<std::string_view, const View*> written[] = {
      {"gradient of q", &grad_in.q}, {"gradient of k", &grad_in.k}, {"gradient of v", &grad_in.v}};
  for (const auto& [name, view] : written) exact::require_apart(kOp, name, *view, "alpha", alpha);

  const int64_t rows = std::max<int64_t>(1, p.batch * p.heads * p.queries);
  Buffer memory((2 * rows * p.dv + rows) * 4);
  float* const floats = memory.as<float>();
  const View out = dense_view(floats, DType::kF32, {p.batch, p.heads, p.queries, p.dv}),
             scaled = dense_view(floats + rows * p.dv, DType::kF32, {p.batch, p.heads, p.queries, p.dv}),
             lse = dense_view(floats + 2 * rows * p.dv, DType::kF32, {p.batch, p.heads, p.queries});
  softmax_attention(in, plain, {out, lse}, context);
  parallel_for(context.threads, p.batch * p.heads, [&](int64_t task, int) {
    const int64_t b = task / p.heads, h = task % p.heads;
    for (int64_t i = 0; i < p.queries; ++i) {
      const float a = *alpha.at<float>({b, h, i});
      const float* from = grad_out.at<float>({b, h, i});
      float* to = scaled.at<float>({b, h, i});
      for (int64_t c = 0; c < p.dv; ++c) to[c] = a * from[c];
      if (grad_in.alpha.data) *grad_in.alpha.at<float>({b, h, i}) = 0;
    }
  });
  if (grad_in.alpha.data)
    each_sum(in, p, options, context, [&](int64_t b, int64_t kv, const SeenRow& row, const double* sum) {
      for (int64_t h = kv * p.group; h < (kv + 1) * p.group; ++h) {
        const float *d = grad_out.at<float>({b, h, row.query}), *o = out.at<float>({b, h, row.query});
        double dot = 0;
        for (int64_t c = 0; c < p.dv; ++c)
          dot += static_cast<double>(d[c]) * (static_cast<double>(o[c]) - sum[c] / static_cast<double>(row.keys));
        *grad_in.alpha.at<float>({b, h, row.query}) = static_cast<float>(dot);
      }
    });
  if (attention.q.data || attention.k.data || attention.v.data)
    softmax_attention_backward(in, plain, {out, lse}, {.out = scaled}, attention, context);
  if (attention.v.data) add_means(p, alpha, options, grad_out, grad_in.v, context);
}

}  // namespace attend
