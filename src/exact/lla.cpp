#include "attend/exact/lla.h"

#include <fmt/format.h>

#include <cmath>

#include "attend/tensor/error.h"
#include "exact/rows.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "lla";
constexpr int64_t kRows = 16;
constexpr double kTolerance = 1e-6;  // of the residual, relative to the right hand side

// Sums n numbers in 16 lanes by j mod 16.
float lane_sum(const float* x, int64_t n) {
  float lane[16] = {};
  const int64_t whole = n / 16 * 16;
  for (int64_t j = 0; j < whole; j += 16) {
#pragma omp simd
    for (int l = 0; l < 16; ++l) lane[l] += x[j + l];
  }
  for (int64_t j = whole; j < n; ++j) lane[j - whole] += x[j];
  for (int half = 8; half; half /= 2)
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  return lane[0];
}

double dot(const float* x, const float* y, int64_t n) {
  double sum = 0;
  for (int64_t c = 0; c < n; ++c) sum += static_cast<double>(x[c]) * static_cast<double>(y[c]);
  return sum;
}

// A block of rows of one query head: their weights, and conjugate gradients on all of them.
class Block {
 public:
  Block(const exact::Problem& p, const DenseKernels& kernels, double ridge, int64_t rows, int64_t keys)
      : p_(p), kernels_(kernels), ridge_(ridge), stride_(exact::padded_keys(keys)) {
    head_.reserve(keys, p.d, p.dv, true);
    ends_.resize(static_cast<size_t>(rows));
    norm_.resize(static_cast<size_t>(rows));
    goal_.resize(static_cast<size_t>(rows));
    const int64_t sizes[] = {rows * p.d, rows * p.d,     rows * p.d, rows * p.d,
                             rows * p.d, rows * stride_, kPanelKeys, stride_};
    int64_t total = 0;
    for (int64_t size : sizes) total += (size + 15) / 16 * 16;
    memory_ = Buffer(total * 4);
    float* next = memory_.as<float>();
    float** const parts[] = {&q_, &x_, &r_, &step_, &product_, &w_, &part_, &gain_};
    for (size_t i = 0; i < std::size(sizes); ++i) {
      *parts[i] = next;
      next += (sizes[i] + 15) / 16 * 16;
    }
  }

  void run(int64_t b, int64_t h, int64_t first, int64_t rows, const View& out) {
    head_.load(kernels_, exact::keys_of(p_, b, h), b * p_.kv_heads + h / p_.group);
    exact::score_rows(p_, kernels_, head_, b, h, first, rows, q_, w_, stride_, ends_.data());
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(p_.q.at<float>({b, h, first + r}), p_.d, q_ + r * p_.d);
      normalise(r);
      // x = 0, residual = step = m.
      float *residual = r_ + r * p_.d, *x = x_ + r * p_.d;
      std::fill_n(residual, p_.d, 0.0f);
      std::fill_n(x, p_.d, 0.0f);
      kernels_.add_rows(w_ + r * stride_, 0, 1, end(r), head_.keys(), p_.d, p_.d, residual, 0);
      for (int64_t c = 0; c < p_.d && end(r) > 0; ++c) residual[c] -= q_[r * p_.d + c];
      std::copy_n(residual, p_.d, step_ + r * p_.d);
      norm_[static_cast<size_t>(r)] = dot(residual, residual, p_.d);
      goal_[static_cast<size_t>(r)] = norm_[static_cast<size_t>(r)] * kTolerance * kTolerance;
    }
    const int64_t limit = 2 * p_.d + 16;
    for (int64_t iteration = 0; iteration < limit; ++iteration) {
      bool open = false;
      for (int64_t r = 0; r < rows; ++r)
        if (unsolved(r)) {
          advance(r);
          open = true;
        }
      if (!open) break;
    }
    for (int64_t r = 0; r < rows; ++r) finish(r, out.at<float>({b, h, first + r}));
  }

 private:
  int64_t end(int64_t r) const { return ends_[static_cast<size_t>(r)]; }
  // False for a NaN, too: it stays in x.
  bool unsolved(int64_t r) const { return norm_[static_cast<size_t>(r)] > goal_[static_cast<size_t>(r)]; }

  void normalise(int64_t r) {
    float most, *w = w_ + r * stride_;
    const float sum = kernels_.exponentials(w, end(r), &most);
    if (sum == 0) ends_[static_cast<size_t>(r)] = 0;
    for (int64_t j = 0; j < end(r); ++j) w[j] /= sum;
  }

  // gain[j] = w[j] * (offset + factor * dot(y, z[j])) over a row's keys, 0 where w is.
  void weigh(int64_t r, const float* y, float offset, float factor) {
    const float base = static_cast<float>(dot(y, q_ + r * p_.d, p_.d));
    const float* w = w_ + r * stride_;
    for (int64_t first = 0; first < end(r); first += kPanelKeys) {
      kernels_.dots(y, 0, 1, p_.d, head_.panel(first / kPanelKeys), part_, 0);
      const int64_t n = std::min<int64_t>(kPanelKeys, end(r) - first);
      for (int64_t j = 0; j < n; ++j) {
        const float g = w[first + j] * (offset + factor * (part_[j] - base));
        gain_[first + j] = w[first + j] == 0 ? 0.0f : g;
      }
    }
  }

  // One step of conjugate gradients on (M + ridge I) x = m.
  void advance(int64_t r) {
    float *x = x_ + r * p_.d, *residual = r_ + r * p_.d, *step = step_ + r * p_.d, *product = product_;
    weigh(r, step, 0, 1);
    const float sum = lane_sum(gain_, end(r));
    std::fill_n(product, p_.d, 0.0f);
    kernels_.add_rows(gain_, 0, 1, end(r), head_.keys(), p_.d, p_.d, product, 0);
    const float ridge = static_cast<float>(ridge_), *q = q_ + r * p_.d;
    for (int64_t c = 0; c < p_.d; ++c) product[c] += ridge * step[c] - sum * q[c];
    double& norm = norm_[static_cast<size_t>(r)];
    const double before = norm;
    const float length = static_cast<float>(before / dot(step, product, p_.d));
    for (int64_t c = 0; c < p_.d; ++c) {
      x[c] += length * step[c];
      residual[c] -= length * product[c];
    }
    norm = dot(residual, residual, p_.d);
    const float keep = static_cast<float>(norm / before);
    for (int64_t c = 0; c < p_.d; ++c) step[c] = residual[c] + keep * step[c];
  }

  void finish(int64_t r, float* out) {
    std::fill_n(out, p_.dv, 0.0f);
    if (end(r) == 0) return;
    weigh(r, x_ + r * p_.d, 1, -1);
    const float sum = lane_sum(gain_, end(r));
    kernels_.add_rows(gain_, 0, 1, end(r), head_.values(), p_.dv, p_.dv, out, 0);
    for (int64_t c = 0; c < p_.dv; ++c) out[c] /= sum;
  }

  const exact::Problem& p_;
  const DenseKernels& kernels_;
  double ridge_;
  int64_t stride_;
  exact::PackedHead head_;
  std::vector<int64_t> ends_;
  std::vector<double> norm_, goal_;  // squares of the residual
  Buffer memory_;
  float *q_, *x_, *r_, *step_, *product_;  // [rows, D]
  float *w_, *part_, *gain_;               // weights [rows, Tk]; of one row
};

}  // namespace

void lla_attention(const Qkv& in, const LlaOptions& options, const View& out, Context& context) {
  const exact::Problem p = exact::check(in, {.causal = options.causal, .scale = options.scale}, kOp);
  if (!(options.ridge > 0) || !std::isfinite(options.ridge))
    throw Error(ErrorKind::kArgument, kOp, "ridge", fmt::format("{}", options.ridge), "must be finite and above 0");
  if (in.sink_logits.data) throw Error(ErrorKind::kArgument, kOp, "sink_logits", "given", "must be absent");
  exact::check_outputs(p, in, {out}, kOp);
  context.throw_if_stopped();
  if (p.batch == 0 || p.heads == 0 || p.queries == 0) return;
  const DenseKernels& kernels = dense_kernels(active_isa(context));
  int64_t most = 0;
  for (const exact::Keys& keys : p.keys) most = std::max(most, keys.count());
  const int64_t rows = std::min(kRows, p.queries), blocks = (p.queries + rows - 1) / rows;
  std::vector<Block> workers;
  for (int t = 0; t < context.threads; ++t) workers.emplace_back(p, kernels, options.ridge, rows, most);
  parallel_for(context.threads, p.batch * p.heads * blocks, [&](int64_t task, int worker) {
    if (context.stop.stop_requested()) return;
    const int64_t first = task % blocks * rows;
    workers[static_cast<size_t>(worker)].run(task / blocks / p.heads, task / blocks % p.heads, first,
                                             std::min(rows, p.queries - first), out);
  });
  context.throw_if_stopped();
}

}  // namespace attend
