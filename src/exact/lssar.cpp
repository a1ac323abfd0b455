#include "attend/exact/lssar.h"

#include <fmt/format.h>

#include <cmath>

#include "attend/simd/hook.h"
#include "attend/simd/hook_math.h"
#include "attend/tensor/error.h"
#include "exact/lane_sum.h"
#include "exact/pointwise.h"
#include "exact/row_backward.h"
#include "exact/score_gradients.h"
#include "exact/widen.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "lssar";

// x^n for n in 0..63.
[[gnu::always_inline]] inline float raised(float x, int64_t n) {
  float result = 1;
#pragma GCC unroll 6
  for (int bit = 0; bit < 6; ++bit) {
    result *= n >> bit & 1 ? x : 1.0f;
    x *= x;
  }
  return result;
}

// One row of n scores that become weights.
struct Weights {
  float* s;
  const float* inverse_norm;  // of each key
  int64_t n;
  float scale;  // of the cosine, with the query's inverse norm
  float shift;  // 1 / n, or 0
  int64_t power;

  [[gnu::always_inline]] inline void run() const {
    float* const x = s;
    const float* const k = inverse_norm;
    const float c = scale;
    const float first = exact::lane_sum(
        n, [=](int64_t j) __attribute__((always_inline)) {
          const float hidden = x[j] < -3e38f ? 0.0f : hook_softplus(c * (x[j] * k[j]));
          x[j] = hidden;
          return hidden;
        });
    if (first == 0) return;
    float largest = 0;
    const float away = power == 0 ? 0.0f : shift;
    for (int64_t j = 0; j < n; ++j) {
      const float w = x[j] / first - (x[j] == 0 ? 0.0f : away);
      x[j] = w < 0 ? 0.0f : w;
      largest = x[j] > largest ? x[j] : largest;
    }
    if (power == 0) return;
    // Powers of the ratio to the largest neither overflow nor, where they matter, underflow.
    const float one = largest > 0 ? 1 / largest : 0.0f;
    const int64_t exponent = power;
    const float second = exact::lane_sum(
        n, [=](int64_t j) __attribute__((always_inline)) {
          x[j] = raised(x[j] * one, exponent);
          return x[j];
        });
    for (int64_t j = 0; j < n && largest > 0; ++j) x[j] /= second;
  }
};

// The same row, and the products g of the gradient of out with the values, which become gradients of dot products.
struct Slopes {
  Weights row;  // its scale without the query's norm
  float* g;
  float* cosine;  // room for n numbers
  float inverse;  // of the query's norm
  float* turned;  // of each key: sums of the gradients of cosines times cosines
  float* own;     // those of this row

  [[gnu::always_inline]] inline void run() const {
    float *const x = row.s, *const d = g, *const c = cosine, *const to = turned;
    const float* const k = row.inverse_norm;
    const float scale = row.scale, unit = inverse;
    const int64_t n = row.n;
    const float first = exact::lane_sum(
        n, [=](int64_t j) __attribute__((always_inline)) {
          const bool seen = x[j] >= -3e38f;
          c[j] = seen ? x[j] * k[j] * unit : 0.0f;
          x[j] = seen ? hook_softplus(scale * c[j]) : 0.0f;
          return x[j];
        });
    const float of_shares = row.power == 0 ? shares(first) : powers(first);
    if (of_shares != of_shares || first == 0) {  // nothing is weighed, or a NaN
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) x[j] = d[j] = first == 0 ? 0.0f : of_shares;
      *own = first == 0 ? 0.0f : of_shares;
      return;
    }
    const float by = scale / first;
    *own = exact::lane_sum(
        n, [=](int64_t j) __attribute__((always_inline)) {
          const float of_cosine = by * hook_sigmoid(scale * c[j]) * (d[j] - of_shares), slope = of_cosine * c[j];
          to[j] += slope;
          d[j] = of_cosine * unit * k[j];
          return slope;
        });
  }

 private:
  // Softpluses in s to weights, g to gradients of the shares of their sum; gives the mean of these.
  [[gnu::always_inline]] inline float shares(float first) const {
    float *const x = row.s, *const d = g;
    return exact::lane_sum(
        row.n, [=](int64_t j) __attribute__((always_inline)) {
          x[j] /= first;
          return x[j] * d[j];
        });
  }
  [[gnu::always_inline]] inline float powers(float first) const {
    float *const x = row.s, *const d = g;
    const float away = row.shift;
    const int64_t n = row.n, less = row.power - 1;
    float largest = 0;
    for (int64_t j = 0; j < n; ++j) {
      const float w = x[j] / first - (x[j] == 0 ? 0.0f : away);
      x[j] = w < 0 ? 0.0f : w;
      largest = x[j] > largest ? x[j] : largest;
    }
    const float one = largest > 0 ? 1 / largest : 0.0f;
    const float second = exact::lane_sum(
        n, [=](int64_t j) __attribute__((always_inline)) { return x[j] * one * raised(x[j] * one, less); });
    if (!(second > 0)) {
      const float nothing = second == 0 ? 0.0f : second;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) x[j] = d[j] = nothing;
      return nothing;
    }
    const float mean = exact::lane_sum(
        n, [=](int64_t j)
               __attribute__((always_inline)) { return x[j] * one * raised(x[j] * one, less) / second * d[j]; });
    const float by = static_cast<float>(row.power) * one / second;
    return exact::lane_sum(
        n, [=](int64_t j) __attribute__((always_inline)) {
          const float ratio = x[j] * one, part = raised(ratio, less), share = x[j] + away;
          d[j] = x[j] > 0 ? by * part * (d[j] - mean) : 0.0f;
          x[j] = ratio * part / second;
          return share * d[j];
        });
  }
};

double inverse_norm(const float* x, int64_t d) {
  double sum = 0;
  for (int64_t c = 0; c < d; ++c) sum += static_cast<double>(x[c]) * static_cast<double>(x[c]);
  return sum == 0 ? 0 : 1 / std::sqrt(sum);
}

// A checked call, with the inverse norm of each key.
class Lssar {
 public:
  Lssar(const Qkv& in, const LssarOptions& options, Context& context)
      : p(checked(in, options)), options_(options), keys_(in.k.shape[2]), log_d_(std::log(static_cast<double>(p.d))) {
    norms_ = Buffer(std::max<int64_t>(1, p.batch * p.kv_heads * keys_) * 4);
    std::fill_n(norms_.as<float>(), p.batch * p.kv_heads * keys_, 0.0f);  // also of keys beyond a length
    const DenseKernels& kernels = dense_kernels(active_isa(context));
    std::vector<std::vector<float>> rows(static_cast<size_t>(context.threads));
    for (auto& row : rows) row.resize(static_cast<size_t>(p.d));
    parallel_for(context.threads, p.batch * p.kv_heads, [&](int64_t task, int worker) {
      float* row = rows[static_cast<size_t>(worker)].data();
      for (const KeyRun& run : p.keys[static_cast<size_t>(task)].runs())
        for (int64_t j = 0; j < run.count; ++j) {
          kernels.widen_run(run.keys().from(j), 1, p.d, row, 0);
          norms_.as<float>()[task * keys_ + run.first_slot + j] = static_cast<float>(inverse_norm(row, p.d));
        }
    });
  }

  const float* norms(int64_t kv_head) const { return norms_.as<float>() + kv_head * keys_; }

  // A row's weights to be, with the scale of its cosines times `unit`.
  Weights weights(int64_t b, int64_t h, int64_t position, float* s, int64_t n, double unit) const {
    const double seen =
        exact::VisibleCount{p.lengths.data(), options_.causal}(static_cast<int>(b), static_cast<int32_t>(position));
    const double scale = options_.scale == 0 ? log_d_ * std::log(seen) : options_.scale;
    return {.s = s,
            .inverse_norm = norms(b * p.kv_heads + h / p.group),
            .n = n,
            .scale = static_cast<float>(scale * unit),
            .shift = seen > 3 ? static_cast<float>(1 / seen) : 0.0f,
            .power = options_.power};
  }

  const exact::Problem p;

 private:
  static exact::Problem checked(const Qkv& in, const LssarOptions& options) {
    // Scores as plain dot products: the scale comes with the norms.
    exact::Problem p = exact::check(in, {.causal = options.causal, .scale = 1}, kOp);
    exact::require_countable(in, kOp);
    if (in.bias.data) throw Error(ErrorKind::kArgument, kOp, "bias", "given", "must be absent");
    if (!std::isfinite(options.scale))
      throw Error(ErrorKind::kArgument, kOp, "scale", fmt::format("{}", options.scale), "must be finite");
    if (options.power < 0 || options.power > 63)
      throw Error(ErrorKind::kArgument, kOp, "power", fmt::format("{}", options.power), "must be in 0..63");
    return p;
  }

  const LssarOptions& options_;
  int64_t keys_;
  double log_d_;
  Buffer norms_;
};

}  // namespace

void lssar_attention(const Qkv& in, const LssarOptions& options, const View& out, Context& context) {
  const Lssar call(in, options, context);
  exact::check_outputs(call.p, in, {out}, kOp);
  const Isa isa = active_isa(context);
  exact::attend_rows(call.p, out, context, [&](const exact::Row& row, float* s, int64_t n, int) {
    const double unit = inverse_norm(call.p.q.at<float>({row.b, row.h, row.i}), call.p.d);
    exact::run_under(isa, call.weights(row.b, row.h, row.position, s, n, unit));
  });
}

void lssar_attention_backward(const Qkv& in, const LssarOptions& options, const View& grad_out,
                              const LssarGrad& grad_in, Context& context) {
  const Lssar call(in, options, context);
  const exact::Problem& p = call.p;
  exact::check_row_gradients(kOp, p, in, {grad_out}, {grad_in.q, grad_in.k, grad_in.v}, {});
  const Isa isa = active_isa(context);
  const int64_t keys = in.k.shape[2];
  const size_t row_size = static_cast<size_t>(exact::padded_keys(keys));
  std::vector<float> turned(static_cast<size_t>(p.batch * p.kv_heads * keys), 0.0f);
  std::vector<std::vector<float>> cosines(static_cast<size_t>(context.threads), std::vector<float>(row_size));
  exact::backward_rows(
      p, {grad_out, {}, grad_in.q, grad_in.k, grad_in.v}, keys, false, context, [&](const exact::RowBlock& x) {
        for (int64_t r = 0; r < x.count; ++r) {
          const float* q = x.q + r * p.d;
          const double unit = inverse_norm(q, p.d);
          float own = 0;
          const Slopes slopes{
              .row = call.weights(x.b, x.h, p.position(x.b, x.first + r), x.s + r * x.stride, x.ends[r], 1),
              .g = x.g + r * x.stride,
              .cosine = cosines[static_cast<size_t>(x.worker)].data(),
              .inverse = static_cast<float>(unit),
              .turned = turned.data() + (x.b * p.kv_heads + x.h / p.group) * keys,
              .own = &own};
          exact::run_under(isa, slopes);
          const float along = own * static_cast<float>(unit * unit);
          for (int64_t c = 0; c < p.d; ++c) x.dq[r * p.d + c] -= along * q[c];
        }
      });
  if (!grad_in.k.data) return;
  // Along itself, a key's gradient is none.
  Buffer wide;
  const View k = exact::widened(in.k, wide, context);
  parallel_for(context.threads, p.batch * p.kv_heads, [&](int64_t task, int) {
    for (int64_t j = 0; j < keys; ++j) {
      const float unit = call.norms(task)[j], along = turned[static_cast<size_t>(task * keys + j)] * unit * unit;
      const float* from = k.at<float>({task / p.kv_heads, task % p.kv_heads, j});
      float* to = grad_in.k.at<float>({task / p.kv_heads, task % p.kv_heads, j});
      for (int64_t c = 0; c < p.d; ++c) to[c] -= along * from[c];
    }
  });
}

}  // namespace attend
