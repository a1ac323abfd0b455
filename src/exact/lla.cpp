#include "attend/exact/lla.h"

#include <fmt/format.h>

#include <cmath>
#include <vector>

#include "attend/tensor/error.h"
#include "exact/parameter.h"
#include "exact/plane.h"
#include "exact/row_backward.h"
#include "exact/score_gradients.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "lla";
constexpr int64_t kRows = 16;

// One row's scores in s[0, n) to weights; gives how many keys it sees, 0 if none.
int64_t weigh(const DenseKernels& kernels, float* s, int64_t n) {
  float most;
  const float sum = n > 0 ? kernels.exponentials(s, n, &most) : 0.0f;
  if (sum == 0) return 0;
  for (int64_t j = 0; j < n; ++j) s[j] /= sum;
  return n;
}

// Rows of one query head after another.
class Rows {
 public:
  Rows(const exact::Problem& p, const DenseKernels& kernels, double ridge, int64_t rows, int64_t keys)
      : p_(p), kernels_(kernels), plane_(kernels, ridge, p.d, keys), stride_(exact::padded_keys(keys)) {
    head_.reserve(keys, p.d, p.dv, true);
    ends_.resize(static_cast<size_t>(rows));
    auto size = [](std::vector<float>& x, int64_t n) { x.resize(static_cast<size_t>(n)); };
    size(q_, rows * p.d), size(w_, rows * stride_), size(m_, p.d), size(rho_, p.d), size(gain_, stride_);
  }

  void run(int64_t b, int64_t h, int64_t first, int64_t rows, const View& out) {
    head_.load(kernels_, exact::keys_of(p_, b, h), b * p_.kv_heads + h / p_.group);
    exact::score_rows(p_, kernels_, head_, b, h, first, rows, q_.data(), w_.data(), stride_, ends_.data());
    for (int64_t r = 0; r < rows; ++r) {
      float *w = w_.data() + r * stride_, *to = out.at<float>({b, h, first + r});
      const exact::PlaneRow row{head_, p_.q.at<float>({b, h, first + r}), w,
                                weigh(kernels_, w, ends_[static_cast<size_t>(r)])};
      std::fill_n(to, p_.dv, 0.0f);
      if (row.n == 0) continue;
      plane_.gather(row, w, m_.data());
      plane_.solve(row, m_.data(), rho_.data());
      plane_.project(row, rho_.data(), gain_.data());
      for (int64_t j = 0; j < row.n; ++j) {
        float& gain = gain_[static_cast<size_t>(j)];
        gain = w[j] == 0 ? 0.0f : w[j] * (1 - gain);
      }
      const float sum = exact::lane_sum(gain_.data(), row.n);
      kernels_.add_rows(gain_.data(), 0, 1, row.n, head_.values(), p_.dv, p_.dv, to, 0);
      for (int64_t c = 0; c < p_.dv; ++c) to[c] /= sum;
    }
  }

 private:
  const exact::Problem& p_;
  const DenseKernels& kernels_;
  exact::Plane plane_;
  int64_t stride_;
  exact::PackedHead head_;
  std::vector<int64_t> ends_;
  std::vector<float> q_, w_, m_, rho_, gain_;
};

// What one thread needs for a row's gradients.
struct RowGradient {
  exact::Plane plane;
  std::vector<float> m, of_slope, rho_z, u_z, pair, slopes;  // pair: [keys, 2]; slopes: u, then rho

  RowGradient(const DenseKernels& kernels, double ridge, int64_t d, int64_t keys) : plane(kernels, ridge, d, keys) {
    auto size = [](std::vector<float>& x, int64_t n) { x.resize(static_cast<size_t>(n)); };
    const int64_t padded = exact::padded_keys(keys);
    size(m, d), size(of_slope, d), size(rho_z, padded), size(u_z, padded), size(pair, 2 * padded), size(slopes, 2 * d);
  }

  // From weights in `row` and products dO . v in g to what multiplies dO, in s, and gradients of scores, in g.
  void run(const DenseKernels& kernels, const exact::PlaneRow& row, int64_t d, float scale, float* s, float* g,
           float* dq, float* dk) {
    float *u = slopes.data(), *rho = u + d;
    plane.gather(row, row.w, m.data());
    plane.solve(row, m.data(), rho);
    plane.project(row, rho, rho_z.data());
    double share = 0, mean_g = 0;
    for (int64_t j = 0; j < row.n; ++j) {
      const double gain = row.w[j] == 0 ? 0 : static_cast<double>(row.w[j] * (1 - at(rho_z, j)));
      share += gain;
      mean_g += gain == 0 ? 0 : gain * static_cast<double>(g[j]);
    }
    const float inverse = static_cast<float>(1 / share), mean_of_g = static_cast<float>(mean_g / share);
    for (int64_t j = 0; j < row.n; ++j) {
      g[j] = row.w[j] == 0 ? 0.0f : (g[j] - mean_of_g) * inverse;
      at(u_z, j) = -row.w[j] * g[j];
    }
    plane.gather(row, u_z.data(), of_slope.data());
    plane.solve(row, of_slope.data(), u);
    plane.project(row, u, u_z.data());
    double mean = 0, sum = 0;
    for (int64_t j = 0; j < row.n; ++j) {
      const float rise = 1 - at(rho_z, j), t = g[j] + at(u_z, j);
      g[j] = row.w[j] == 0 ? 0.0f : rise * t;
      pair[static_cast<size_t>(2 * j)] = row.w[j] == 0 ? 0.0f : row.w[j] * rise;
      pair[static_cast<size_t>(2 * j + 1)] = row.w[j] == 0 ? 0.0f : -row.w[j] * t;
      mean += static_cast<double>(row.w[j] * g[j]);
      sum -= static_cast<double>(pair[static_cast<size_t>(2 * j + 1)]);
    }
    for (int64_t j = 0; j < row.n; ++j) {
      g[j] = row.w[j] * (g[j] - static_cast<float>(mean));
      s[j] = pair[static_cast<size_t>(2 * j)] * inverse;
    }
    kernels.add_rows(pair.data(), 2, row.n, 2, u, d, d, dk, d);
    for (int64_t c = 0; c < d; ++c)
      dq[c] += (static_cast<float>(sum) * rho[c] - static_cast<float>(share) * u[c]) / scale;
  }

 private:
  static float& at(std::vector<float>& x, int64_t j) { return x[static_cast<size_t>(j)]; }
};

exact::Problem check(const Qkv& in, const LlaOptions& options) {
  const exact::Problem p = exact::check(in, {.causal = options.causal, .scale = options.scale}, kOp);
  if (!(options.ridge > 0) || !std::isfinite(options.ridge))
    throw Error(ErrorKind::kArgument, kOp, "ridge", fmt::format("{}", options.ridge), "must be finite and above 0");
  if (in.sink_logits.data) throw Error(ErrorKind::kArgument, kOp, "sink_logits", "given", "must be absent");
  return p;
}

}  // namespace

void lla_attention(const Qkv& in, const LlaOptions& options, const View& out, Context& context) {
  const exact::Problem p = check(in, options);
  exact::check_outputs(p, in, {out}, kOp);
  context.throw_if_stopped();
  if (p.batch == 0 || p.heads == 0 || p.queries == 0) return;
  const DenseKernels& kernels = dense_kernels(active_isa(context));
  int64_t most = 0;
  for (const exact::Keys& keys : p.keys) most = std::max(most, keys.count());
  const int64_t rows = std::min(kRows, p.queries), blocks = (p.queries + rows - 1) / rows;
  std::vector<Rows> workers;
  for (int t = 0; t < context.threads; ++t) workers.emplace_back(p, kernels, options.ridge, rows, most);
  parallel_for(context.threads, p.batch * p.heads * blocks, [&](int64_t task, int worker) {
    if (context.stop.stop_requested()) return;
    const int64_t first = task % blocks * rows;
    workers[static_cast<size_t>(worker)].run(task / blocks / p.heads, task / blocks % p.heads, first,
                                             std::min(rows, p.queries - first), out);
  });
  context.throw_if_stopped();
}

void lla_attention_backward(const Qkv& in, const LlaOptions& options, const View& grad_out, const AttnGrad& grad_in,
                            Context& context) {
  const exact::Problem p = check(in, options);
  exact::require_arrays(kOp, in);
  exact::require_absent(kOp, "gradient of bias", grad_in.bias);
  exact::require_absent(kOp, "gradient of sink_logits", grad_in.sink_logits);
  exact::check_row_gradients(kOp, p, in, {.out = grad_out}, grad_in, {});
  const DenseKernels& kernels = dense_kernels(active_isa(context));
  const int64_t keys = in.k.shape[2];
  std::vector<RowGradient> scratch;
  for (int t = 0; t < context.threads; ++t) scratch.emplace_back(kernels, options.ridge, p.d, keys);
  auto rule = [&](const exact::RowBlock& x) {
    RowGradient& w = scratch[static_cast<size_t>(x.worker)];
    for (int64_t r = 0; r < x.count; ++r) {
      float *s = x.s + r * x.stride, *g = x.g + r * x.stride;
      const exact::PlaneRow row{x.head, p.q.at<float>({x.b, x.h, x.first + r}), s, weigh(kernels, s, x.ends[r])};
      if (row.n > 0) w.run(kernels, row, p.d, p.scale, s, g, x.dq + r * p.d, x.dk);
      std::fill(s + row.n, s + x.ends[r], 0.0f);
      std::fill(g + row.n, g + x.ends[r], 0.0f);
    }
  };
  exact::backward_rows(p, {grad_out, {}, grad_in.q, grad_in.k, grad_in.v}, keys, false, context, rule);
}

}  // namespace attend
