#include "attend/exact/tensor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "exact/tensor_parts.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "tensor";
constexpr int64_t kMostFeatures = int64_t{1} << 26;

// One query at a time: softmax attention of the queries q * k[j] over the second keys, then softmax over j of what it
// gives as lse.
void exact_attention(const exact::Problem& p, const TensorIn& in, const View& out, Context& context) {
  const DenseKernels& kernels = dense_kernels(active_isa(context));
  const int64_t keys = in.k.shape[2], heads = p.batch * p.heads, pairs = heads * keys;
  Buffer memory(std::max<int64_t>(1, pairs * (p.d + 2 * p.dv + 1)) * 4);
  float* const products = memory.as<float>();
  float* const values = products + pairs * p.d;
  float* const first_values = values + pairs * p.dv;
  float* const lse = first_values + pairs * p.dv;
  for (int64_t i = 0; i < p.queries; ++i) {
    const int64_t seen = exact::keys_seen(p, 0, i, keys);
    if (seen > 0) {
      parallel_for(context.threads, heads, [&](int64_t head, int) {
        const int64_t b = head / p.heads, h = head % p.heads;
        float* to = products + head * seen * p.d;
        exact::widen_rows(kernels, in.k, b, h / p.group, 0, seen, to);
        const float* q = p.q.at<float>({b, h, i});
        for (int64_t j = 0; j < seen; ++j)
          for (int64_t c = 0; c < p.d; ++c) to[j * p.d + c] *= q[c];
      });
      softmax_attention({.q = dense_view(products, DType::kF32, {p.batch, p.heads, seen, p.d}),
                         .k = exact::first_keys(in.k2, seen),
                         .v = exact::first_keys(in.v2, seen)},
                        {.scale = p.scale},
                        {dense_view(values, DType::kF32, {p.batch, p.heads, seen, p.dv}),
                         dense_view(lse, DType::kF32, {p.batch, p.heads, seen})},
                        context);
    }
    parallel_for(context.threads, heads, [&](int64_t head, int) {
      const int64_t b = head / p.heads, h = head % p.heads;
      float *to = out.at<float>({b, h, i}), *weights = lse + head * seen, *second = values + head * seen * p.dv,
            *first = first_values + head * seen * p.dv;
      std::fill_n(to, p.dv, 0.0f);
      if (seen == 0) return;
      exact::widen_rows(kernels, in.v, b, h / p.group, 0, seen, first);
      for (int64_t e = 0; e < seen * p.dv; ++e) second[e] *= first[e];
      float most;
      const float sum = kernels.exponentials(weights, seen, &most);
      kernels.add_rows(weights, 0, 1, seen, second, p.dv, p.dv, to, 0);
      for (int64_t c = 0; c < p.dv; ++c) to[c] /= sum;
    });
    context.throw_if_stopped();
  }
}

void polynomial_attention(const exact::Problem& p, const TensorIn& in, int64_t order, double scale, const View& out,
                          Context& context) {
  const DenseKernels& kernels = dense_kernels(active_isa(context));
  const exact::Monomials monomials(p.d, 2 * order, scale);
  const int64_t keys = in.k.shape[2];
  std::vector<exact::Moments> workers;
  for (int t = 0; t < context.threads; ++t) workers.emplace_back(monomials, p.d, p.dv);
  parallel_for(context.threads, p.batch * p.heads, [&](int64_t head, int worker) {
    const int64_t b = head / p.heads, h = head % p.heads;
    exact::Moments& moments = workers[static_cast<size_t>(worker)];
    moments.clear();
    int64_t added = 0;
    for (int64_t i = 0; i < p.queries; ++i) {
      if (context.stop.stop_requested()) return;
      const int64_t seen = exact::keys_seen(p, b, i, keys);
      for (; added < seen; ++added)
        for (int side = 0; side < 2; ++side) {
          exact::widen_rows(kernels, side ? in.k2 : in.k, b, h / p.group, added, 1, moments.key.data());
          exact::widen_rows(kernels, side ? in.v2 : in.v, b, h / p.group, added, 1, moments.value.data());
          moments.add(side, monomials);
        }
      float* to = out.at<float>({b, h, i});
      if (seen == 0) {
        std::fill_n(to, p.dv, 0.0f);
      } else {
        moments.read(p.q.at<float>({b, h, i}), monomials, to);
      }
    }
  });
  context.throw_if_stopped();
}

}  // namespace

int64_t tensor_features(int64_t d, int64_t order) {
  int64_t count = 1;  // C(d + m, m) = C(d + m - 1, m - 1) (d + m) / m, whole in every step
  for (int64_t m = 1; m <= 2 * order; ++m) {
    count = count * (d + m) / m;
    if (count > kMostFeatures) return -1;
  }
  return count;
}

exact::Problem exact::check_tensor(const TensorIn& in, const TensorOptions& options) {
  const SoftmaxOptions plain{.causal = options.causal, .scale = options.scale};
  Problem p = check({.q = in.q, .k = in.k, .v = in.v}, plain, kOp);
  const Problem other = check({.q = in.q, .k = in.k2, .v = in.v2}, plain, kOp);
  if (in.k2.shape[1] != in.k.shape[1] || in.k2.shape[2] != in.k.shape[2])
    throw Error(ErrorKind::kArgument, kOp, "k2", to_string(in.k2), "must have the shape of k");
  if (other.dv != p.dv) throw Error(ErrorKind::kArgument, kOp, "v2", to_string(in.v2), "must have the shape of v");
  if (options.order < 0)
    throw Error(ErrorKind::kArgument, kOp, "order", fmt::format("{}", options.order), "must be at least 0");
  const int64_t features = tensor_features(p.d, options.order);
  if (options.order > 0 && (features < 0 || features * p.dv > kMostFeatures))
    throw Error(ErrorKind::kArgument, kOp, "order", fmt::format("{}", options.order),
                fmt::format("gives too many monomials of {} variables", p.d));
  return p;
}

void tensor_attention(const TensorIn& in, const TensorOptions& options, const View& out, Context& context) {
  const exact::Problem p = exact::check_tensor(in, options);
  exact::check_outputs(p, {.q = in.q, .k = in.k, .v = in.v}, {out}, kOp);
  exact::check_outputs(p, {.q = in.q, .k = in.k2, .v = in.v2}, {out}, kOp);
  context.throw_if_stopped();
  if (p.batch == 0 || p.heads == 0 || p.queries == 0) return;
  if (options.order == 0) {
    exact_attention(p, in, out, context);
  } else {
    polynomial_attention(p, in, options.order, exact::tensor_scale(options, p.d), out, context);
  }
}

}  // namespace attend
