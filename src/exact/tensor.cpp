#include "attend/exact/tensor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "attend/simd/dense.h"
#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "exact/problem.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "tensor";
constexpr int64_t kMostFeatures = int64_t{1} << 26;

View first_keys(View v, int64_t count) {
  v.shape[2] = count;
  return v;
}

// Rows of one head as f32.
void widen(const DenseKernels& kernels, const View& v, int64_t b, int64_t h, int64_t first, int64_t rows, float* out) {
  const char* from = v.as<char>() + (b * v.stride[0] + h * v.stride[1] + first * v.stride[2]) * size_of(v.type);
  kernels.widen(v.type, from, v.stride[2], rows, v.shape[3], out, v.shape[3]);
}

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
    const int64_t seen = std::clamp<int64_t>(p.options.causal ? p.position(0, i) + 1 : keys, 0, keys);
    if (seen > 0) {
      parallel_for(context.threads, heads, [&](int64_t head, int) {
        const int64_t b = head / p.heads, h = head % p.heads;
        float* to = products + head * seen * p.d;
        widen(kernels, in.k, b, h / p.group, 0, seen, to);
        const float* q = p.q.at<float>({b, h, i});
        for (int64_t j = 0; j < seen; ++j)
          for (int64_t c = 0; c < p.d; ++c) to[j * p.d + c] *= q[c];
      });
      softmax_attention({.q = dense_view(products, DType::kF32, {p.batch, p.heads, seen, p.d}),
                         .k = first_keys(in.k2, seen),
                         .v = first_keys(in.v2, seen)},
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
      widen(kernels, in.v, b, h / p.group, 0, seen, first);
      for (int64_t e = 0; e < seen * p.dv; ++e) second[e] *= first[e];
      float most;
      const float sum = kernels.exponentials(weights, seen, &most);
      kernels.add_rows(weights, 0, 1, seen, second, p.dv, p.dv, to, 0);
      for (int64_t c = 0; c < p.dv; ++c) to[c] /= sum;
    });
    context.throw_if_stopped();
  }
}

// Monomials in graded order: each is an earlier one times a variable.
struct Monomials {
  std::vector<int32_t> parent, variable;
  std::vector<double> coefficient;  // of exp: scale^m / (product of the factorials of the exponents)

  Monomials(int64_t d, int64_t degree, double scale) {
    struct Last {
      int32_t variable, power;
    };
    std::vector<Last> last = {{0, 0}};
    parent = {0}, variable = {0}, coefficient = {1};
    size_t begin = 0, end = 1;
    for (int64_t m = 1; m <= degree; ++m) {
      for (size_t from = begin; from < end; ++from)
        for (int32_t x = last[from].variable; x < d; ++x) {
          const int32_t power = x == last[from].variable ? last[from].power + 1 : 1;
          parent.push_back(static_cast<int32_t>(from));
          variable.push_back(x);
          coefficient.push_back(coefficient[from] * scale / power);
          last.push_back({x, power});
        }
      begin = end, end = parent.size();
    }
  }
  size_t size() const { return parent.size(); }
  void evaluate(const float* x, double* out) const {
    out[0] = 1;
    for (size_t f = 1; f < size(); ++f)
      out[f] = out[static_cast<size_t>(parent[f])] * static_cast<double>(x[variable[f]]);
  }
};

// What is known of the keys so far, for one head: sums of monomial times value, and of monomials.
struct Moments {
  int64_t features, dv;
  std::vector<double> monomials, sums[2], counts[2];
  std::vector<float> key, value;
  std::vector<double> total;

  Moments(const Monomials& m, int64_t d, int64_t width)
      : features(static_cast<int64_t>(m.size())), dv(width), monomials(m.size()) {
    for (int side = 0; side < 2; ++side) {
      sums[side].resize(m.size() * static_cast<size_t>(dv));
      counts[side].resize(m.size());
    }
    key.resize(static_cast<size_t>(d));
    value.resize(static_cast<size_t>(dv));
    total.resize(static_cast<size_t>(dv));
  }
  void clear() {
    for (int side = 0; side < 2; ++side) {
      std::fill(sums[side].begin(), sums[side].end(), 0.0);
      std::fill(counts[side].begin(), counts[side].end(), 0.0);
    }
  }
  void add(int side, const Monomials& m) {
    m.evaluate(key.data(), monomials.data());
    double *sum = sums[side].data(), *count = counts[side].data();
    const float* v = value.data();
    for (int64_t f = 0; f < features; ++f) {
      const double x = monomials[static_cast<size_t>(f)];
      count[f] += x;
      for (int64_t c = 0; c < dv; ++c) sum[f * dv + c] += x * static_cast<double>(v[c]);
    }
  }
  void read(const float* q, const Monomials& m, float* out) {
    m.evaluate(q, monomials.data());
    std::fill(total.begin(), total.end(), 0.0);
    double count = 0;
    const double *first = sums[0].data(), *second = sums[1].data();
    double* to = total.data();
    for (int64_t f = 0; f < features; ++f) {
      const size_t at = static_cast<size_t>(f);
      const double x = monomials[at] * m.coefficient[at];
      count += x * counts[0][at] * counts[1][at];
      for (int64_t c = 0; c < dv; ++c) to[c] += x * first[f * dv + c] * second[f * dv + c];
    }
    for (int64_t c = 0; c < dv; ++c) out[c] = static_cast<float>(to[c] / count);
  }
};

void polynomial_attention(const exact::Problem& p, const TensorIn& in, int64_t order, double scale, const View& out,
                          Context& context) {
  const DenseKernels& kernels = dense_kernels(active_isa(context));
  const Monomials monomials(p.d, 2 * order, scale);
  const int64_t keys = in.k.shape[2];
  std::vector<Moments> workers;
  for (int t = 0; t < context.threads; ++t) workers.emplace_back(monomials, p.d, p.dv);
  parallel_for(context.threads, p.batch * p.heads, [&](int64_t head, int worker) {
    const int64_t b = head / p.heads, h = head % p.heads;
    Moments& moments = workers[static_cast<size_t>(worker)];
    moments.clear();
    int64_t added = 0;
    for (int64_t i = 0; i < p.queries; ++i) {
      if (context.stop.stop_requested()) return;
      const int64_t seen = std::clamp<int64_t>(p.options.causal ? p.position(b, i) + 1 : keys, 0, keys);
      for (; added < seen; ++added)
        for (int side = 0; side < 2; ++side) {
          widen(kernels, side ? in.k2 : in.k, b, h / p.group, added, 1, moments.key.data());
          widen(kernels, side ? in.v2 : in.v, b, h / p.group, added, 1, moments.value.data());
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

void tensor_attention(const TensorIn& in, const TensorOptions& options, const View& out, Context& context) {
  const Qkv first{.q = in.q, .k = in.k, .v = in.v}, second{.q = in.q, .k = in.k2, .v = in.v2};
  const SoftmaxOptions plain{.causal = options.causal, .scale = options.scale};
  const exact::Problem p = exact::check(first, plain, kOp), other = exact::check(second, plain, kOp);
  if (in.k2.shape[1] != in.k.shape[1] || in.k2.shape[2] != in.k.shape[2])
    throw Error(ErrorKind::kArgument, kOp, "k2", to_string(in.k2), "must have the shape of k");
  if (other.dv != p.dv) throw Error(ErrorKind::kArgument, kOp, "v2", to_string(in.v2), "must have the shape of v");
  if (options.order < 0)
    throw Error(ErrorKind::kArgument, kOp, "order", fmt::format("{}", options.order), "must be at least 0");
  const int64_t features = tensor_features(p.d, options.order);
  if (options.order > 0 && (features < 0 || features * p.dv > kMostFeatures))
    throw Error(ErrorKind::kArgument, kOp, "order", fmt::format("{}", options.order),
                fmt::format("gives too many monomials of {} variables", p.d));
  exact::check_outputs(p, first, {out}, kOp);
  exact::check_outputs(other, second, {out}, kOp);
  context.throw_if_stopped();
  if (p.batch == 0 || p.heads == 0 || p.queries == 0) return;
  if (options.order == 0) {
    exact_attention(p, in, out, context);
  } else {
    const double scale = options.scale == 0 ? 1 / std::sqrt(static_cast<double>(p.d)) : options.scale;
    polynomial_attention(p, in, options.order, scale, out, context);
  }
}

}  // namespace attend
