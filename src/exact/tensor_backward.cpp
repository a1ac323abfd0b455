// Gradients of tensor attention: by pairs through softmax attention's backward pass, a query at a time; or through the
// sums of monomials, with queries from the last to the first, so that each key has gathered all that see it when it goes.
#include <vector>

#include "attend/simd/isa.h"
#include "attend/tensor/parallel.h"
#include "exact/dense_rows.h"
#include "exact/score_gradients.h"
#include "exact/tensor_parts.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "tensor";

class ByPairs {
 public:
  ByPairs(const exact::Problem& p, const TensorIn& in, const View& d_out, const TensorGrad& to, Context& context)
      : p_(p),
        in_(in),
        d_out_(d_out),
        to_(to),
        context_(context),
        kernels_(dense_kernels(active_isa(context))),
        keys_(in.k.shape[2]),
        heads_(p.batch * p.heads) {
    const int64_t pairs = heads_ * keys_, kv_pairs = p.batch * p.kv_heads * keys_;
    memory_ = Buffer(std::max<int64_t>(1, pairs * (2 * p.d + 3 * p.dv + 2) + kv_pairs * (2 * p.d + 2 * p.dv)) * 4);
    float* next = memory_.as<float>();
    for (const auto& [to_part, count] : {std::pair{&x_, pairs * p.d},
                                         {&dx_, pairs * p.d},
                                         {&a_, pairs * p.dv},
                                         {&da_, pairs * p.dv},
                                         {&weighted_, pairs * p.dv},
                                         {&lse_, pairs},
                                         {&dlse_, pairs},
                                         {&k_, kv_pairs * p.d},
                                         {&dk2_, kv_pairs * p.d},
                                         {&v_, kv_pairs * p.dv},
                                         {&dv2_, kv_pairs * p.dv}}) {
      *to_part = next;
      next += count;
    }
    parallel_for(context.threads, p.batch * p.kv_heads, [&](int64_t task, int) {
      exact::widen_rows(kernels_, in.k, task / p.kv_heads, task % p.kv_heads, 0, keys_, k_ + task * keys_ * p.d);
      exact::widen_rows(kernels_, in.v, task / p.kv_heads, task % p.kv_heads, 0, keys_, v_ + task * keys_ * p.dv);
    });
  }

  void run() {
    for (int64_t i = 0; i < p_.queries; ++i) {
      if (const int64_t seen = exact::keys_seen(p_, 0, i, keys_); seen > 0) query(i, seen);
      context_.throw_if_stopped();
    }
  }

 private:
  // With the first keys that it sees: softmax attention of the queries q * k[j] gives a[j] and lse[j].
  void query(int64_t i, int64_t seen) {
    const int64_t d = p_.d, dv = p_.dv;
    parallel_for(context_.threads, heads_, [&](int64_t head, int) {
      const float *q = p_.q.at<float>({head / p_.heads, head % p_.heads, i}), *k = k_ + kv_of(head) * keys_ * d;
      float* x = x_ + head * seen * d;
      for (int64_t j = 0; j < seen; ++j)
        for (int64_t c = 0; c < d; ++c) x[j * d + c] = k[j * d + c] * q[c];
    });
    const Qkv inner{.q = dense_view(x_, DType::kF32, {p_.batch, p_.heads, seen, d}),
                    .k = exact::first_keys(in_.k2, seen),
                    .v = exact::first_keys(in_.v2, seen)};
    const AttnOut out{dense_view(a_, DType::kF32, {p_.batch, p_.heads, seen, dv}),
                      dense_view(lse_, DType::kF32, {p_.batch, p_.heads, seen})};
    softmax_attention(inner, {.scale = p_.scale}, out, context_);
    parallel_for(context_.threads, p_.batch * p_.kv_heads, [&](int64_t kv, int) {
      for (int64_t g = 0; g < p_.group; ++g)
        outer(kv / p_.kv_heads * p_.heads + kv % p_.kv_heads * p_.group + g, i, seen);
    });
    const Shape of_keys = {p_.batch, p_.kv_heads, seen, d}, of_values = {p_.batch, p_.kv_heads, seen, dv};
    softmax_attention_backward(inner, {.scale = p_.scale}, out,
                               {dense_view(da_, DType::kF32, {p_.batch, p_.heads, seen, dv}),
                                dense_view(dlse_, DType::kF32, {p_.batch, p_.heads, seen})},
                               {.q = dense_view(dx_, DType::kF32, {p_.batch, p_.heads, seen, d}),
                                .k = dense_view(dk2_, DType::kF32, 4, of_keys),
                                .v = dense_view(dv2_, DType::kF32, 4, of_values)},
                               context_);
    exact::add_rows(dense_view(dk2_, DType::kF32, 4, of_keys), exact::first_keys(to_.k2, seen));
    exact::add_rows(dense_view(dv2_, DType::kF32, 4, of_values), exact::first_keys(to_.v2, seen));
    parallel_for(context_.threads, p_.batch * p_.kv_heads, [&](int64_t kv, int) {
      for (int64_t g = 0; g < p_.group; ++g)
        products(kv / p_.kv_heads * p_.heads + kv % p_.kv_heads * p_.group + g, i, seen);
    });
  }

  int64_t kv_of(int64_t head) const { return head / p_.heads * p_.kv_heads + head % p_.heads / p_.group; }

  // The softmax over lse, and what it gives a and the first values.
  void outer(int64_t head, int64_t i, int64_t seen) {
    const int64_t b = head / p_.heads, h = head % p_.heads, dv = p_.dv;
    const float *loss = d_out_.at<float>({b, h, i}), *v = v_ + kv_of(head) * keys_ * dv, *a = a_ + head * seen * dv;
    float *da = da_ + head * seen * dv, *dlse = dlse_ + head * seen, *own = weighted_ + head * seen * dv;
    std::copy_n(lse_ + head * seen, seen, own);
    float most;
    const float sum = kernels_.exponentials(own, seen, &most);
    float mean = 0;
    for (int64_t j = 0; j < seen; ++j) {
      float gain = 0;
      for (int64_t c = 0; c < dv; ++c) gain += loss[c] * v[j * dv + c] * a[j * dv + c];
      dlse[j] = gain;
      mean += own[j] / sum * gain;
    }
    for (int64_t j = 0; j < seen; ++j) {
      const float weight = own[j] / sum;
      dlse[j] = weight * (dlse[j] - mean);
      for (int64_t c = 0; c < dv; ++c) da[j * dv + c] = weight * v[j * dv + c] * loss[c];
      if (!to_.v.data) continue;
      float* to = to_.v.at<float>({b, h / p_.group, j});
      for (int64_t c = 0; c < dv; ++c) to[c] += weight * a[j * dv + c] * loss[c];
    }
  }

  // Of q * k[j].
  void products(int64_t head, int64_t i, int64_t seen) {
    const int64_t b = head / p_.heads, h = head % p_.heads, d = p_.d;
    const float *q = p_.q.at<float>({b, h, i}), *k = k_ + kv_of(head) * keys_ * d, *dx = dx_ + head * seen * d;
    float* dq = to_.q.data ? to_.q.at<float>({b, h, i}) : nullptr;
    for (int64_t j = 0; j < seen; ++j) {
      for (int64_t c = 0; dq && c < d; ++c) dq[c] += dx[j * d + c] * k[j * d + c];
      if (!to_.k.data) continue;
      float* to = to_.k.at<float>({b, h / p_.group, j});
      for (int64_t c = 0; c < d; ++c) to[c] += dx[j * d + c] * q[c];
    }
  }

  const exact::Problem& p_;
  const TensorIn& in_;
  const View& d_out_;
  const TensorGrad& to_;
  Context& context_;
  const DenseKernels& kernels_;
  int64_t keys_, heads_;
  Buffer memory_;
  float *x_, *dx_, *a_, *da_, *weighted_, *lse_, *dlse_;  // by query head and key; x, a and theirs as rows
  float *k_, *dk2_, *v_, *dv2_;                           // by kv head and key
};

// One query head of the polynomial form; all sums are in double.
class ByMonomials {
 public:
  ByMonomials(const exact::Problem& p, const TensorIn& in, const View& d_out, const TensorGrad& to,
              const exact::Monomials& monomials, const DenseKernels& kernels)
      : p_(p),
        in_(in),
        d_out_(d_out),
        to_(to),
        m_(monomials),
        kernels_(kernels),
        sums_(monomials, p.d, p.dv),
        back_(monomials, p.d, p.dv),
        of_query_(monomials.size()),
        slope_(monomials.size()),
        d_x_(static_cast<size_t>(p.d)),
        d_value_(static_cast<size_t>(p.dv)) {}

  void run(int64_t b, int64_t h, const Context& context) {
    sums_.clear();
    back_.clear();
    int64_t held = 0;
    const int64_t keys = in_.k.shape[2];
    for (const int64_t all = exact::keys_seen(p_, b, p_.queries - 1, keys); held < all; ++held)
      for (int side = 0; side < 2; ++side) {
        load(side, b, h, held);
        sums_.add(side, m_);
      }
    for (int64_t i = p_.queries - 1; i >= 0 && !context.stop.stop_requested(); --i) {
      for (const int64_t seen = exact::keys_seen(p_, b, i, keys); held > seen; --held)
        for (int side = 0; side < 2; ++side) {
          release(side, b, h, held - 1);
          sums_.add(side, m_, -1);
        }
      if (held > 0) query(b, h, i);
    }
    for (; held > 0; --held)
      for (int side = 0; side < 2; ++side) release(side, b, h, held - 1);
  }

 private:
  void load(int side, int64_t b, int64_t h, int64_t j) {
    exact::widen_rows(kernels_, side ? in_.k2 : in_.k, b, h / p_.group, j, 1, sums_.key.data());
    exact::widen_rows(kernels_, side ? in_.v2 : in_.v, b, h / p_.group, j, 1, sums_.value.data());
  }

  // What query i gives the sums over keys, in back_, and gets.
  void query(int64_t b, int64_t h, int64_t i) {
    const int64_t dv = p_.dv;
    const float *q = p_.q.at<float>({b, h, i}), *loss = d_out_.at<float>({b, h, i});
    const double *first = sums_.sums[0].data(), *second = sums_.sums[1].data();
    double *to_first = back_.sums[0].data(), *to_second = back_.sums[1].data();
    m_.evaluate(q, of_query_.data());
    double count = 0, gain = 0;
    for (size_t f = 0; f < m_.size(); ++f) {
      const double x = of_query_[f] * m_.coefficient[f];
      count += x * sums_.counts[0][f] * sums_.counts[1][f];
      double both = 0;
      for (size_t c = 0; c < static_cast<size_t>(dv); ++c)
        both += static_cast<double>(loss[c]) * first[f * static_cast<size_t>(dv) + c] *
                second[f * static_cast<size_t>(dv) + c];
      slope_[f] = both;
      gain += x * both;
    }
    const double of_count = -gain / count / count;
    for (size_t f = 0; f < m_.size(); ++f) {
      const double x = of_query_[f] * m_.coefficient[f], a = sums_.counts[0][f], c2 = sums_.counts[1][f];
      slope_[f] = m_.coefficient[f] * (slope_[f] / count + of_count * a * c2);
      back_.counts[0][f] += x * of_count * c2;
      back_.counts[1][f] += x * of_count * a;
      for (size_t c = 0; c < static_cast<size_t>(dv); ++c) {
        const size_t at = f * static_cast<size_t>(dv) + c;
        const double each = x * static_cast<double>(loss[c]) / count;
        to_first[at] += each * second[at];
        to_second[at] += each * first[at];
      }
    }
    std::fill(d_x_.begin(), d_x_.end(), 0.0);
    m_.pull(q, of_query_.data(), slope_.data(), d_x_.data());
    give(to_.q, b, h, i, d_x_);
  }

  // A key whose queries are all done gets what its sums have gathered.
  void release(int side, int64_t b, int64_t h, int64_t j) {
    load(side, b, h, j);
    m_.evaluate(sums_.key.data(), sums_.monomials.data());
    const double* back = back_.sums[side].data();
    std::fill(d_value_.begin(), d_value_.end(), 0.0);
    for (size_t f = 0; f < m_.size(); ++f) {
      double sum = back_.counts[side][f];
      for (size_t c = 0; c < d_value_.size(); ++c) {
        const double gathered = back[f * d_value_.size() + c];
        sum += gathered * static_cast<double>(sums_.value[c]);
        d_value_[c] += sums_.monomials[f] * gathered;
      }
      slope_[f] = sum;
    }
    std::fill(d_x_.begin(), d_x_.end(), 0.0);
    m_.pull(sums_.key.data(), sums_.monomials.data(), slope_.data(), d_x_.data());
    give(side ? to_.k2 : to_.k, b, h / p_.group, j, d_x_);
    give(side ? to_.v2 : to_.v, b, h / p_.group, j, d_value_);
  }

  static void give(const View& to, int64_t b, int64_t h, int64_t t, const std::vector<double>& d) {
    if (!to.data) return;
    float* x = to.at<float>({b, h, t});
    for (size_t c = 0; c < d.size(); ++c) x[c] += static_cast<float>(d[c]);
  }

  const exact::Problem& p_;
  const TensorIn& in_;
  const View& d_out_;
  const TensorGrad& to_;
  const exact::Monomials& m_;
  const DenseKernels& kernels_;
  exact::Moments sums_, back_;  // of the keys held, and the gradients that these sums have gathered
  std::vector<double> of_query_, slope_, d_x_, d_value_;
};

}  // namespace

void tensor_attention_backward(const TensorIn& in, const TensorOptions& options, const View& grad_out,
                               const TensorGrad& grad_in, Context& context) {
  const exact::Problem p = exact::check_tensor(in, options);
  exact::check_row_gradients(kOp, p, {.q = in.q, .k = in.k, .v = in.v}, {grad_out}, {grad_in.q, grad_in.k, grad_in.v},
                             {{"k2", grad_in.k2, in.k2}, {"v2", grad_in.v2, in.v2}});
  context.throw_if_stopped();
  for (const View* grad : {&grad_in.q, &grad_in.k, &grad_in.k2, &grad_in.v, &grad_in.v2}) exact::clear_rows(*grad);
  if (p.batch == 0 || p.heads == 0 || p.queries == 0 || in.k.shape[2] == 0) return;
  if (options.order == 0) return ByPairs(p, in, grad_out, grad_in, context).run();
  const exact::Monomials monomials(p.d, 2 * options.order, exact::tensor_scale(options, p.d));
  const DenseKernels& kernels = dense_kernels(active_isa(context));
  std::vector<ByMonomials> workers;
  for (int t = 0; t < context.threads; ++t) workers.emplace_back(p, in, grad_out, grad_in, monomials, kernels);
  parallel_for(context.threads, p.batch * p.kv_heads, [&](int64_t task, int worker) {
    for (int64_t g = 0; g < p.group; ++g)
      workers[static_cast<size_t>(worker)].run(task / p.kv_heads, task % p.kv_heads * p.group + g, context);
  });
  context.throw_if_stopped();
}

}  // namespace attend
