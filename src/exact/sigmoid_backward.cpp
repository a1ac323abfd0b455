#include <algorithm>
#include <cmath>
#include <vector>

#include "attend/exact/sigmoid.h"
#include "attend/simd/hook.h"
#include "attend/simd/hook_math.h"
#include "exact/pointwise.h"
#include "exact/rows.h"
#include "exact/score_gradients.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "sigmoid";

// A row of n scores, and of dot products of the gradient of out with the values: they become weights and gradients of
// scores.
struct RowSlopes {
  float *s, *g;
  int64_t n;
  float shift;

  [[gnu::always_inline]] inline void run() const {
    float *const score = s, *const gradient = g;
    const float away = shift;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const float x = score[j], seen = hook_sigmoid(x + away);
      const float w = x < -3e38f ? 0.0f : seen, slope = w * (1 - w) * gradient[j];
      score[j] = w;
      gradient[j] = x < -3e38f ? 0.0f : slope;
    }
  }
};

ATTEND_TARGET_AVX2 void run_avx2(const RowSlopes& row) {
  row.run();
}
ATTEND_TARGET_AVX512 void run_avx512(const RowSlopes& row) {
  row.run();
}

// What one thread needs for a kv head.
struct Workspace {
  exact::PackedHead head;
  std::vector<float> value_panels, q, d_out, s, g, across, dk, dv;
  std::vector<int64_t> ends;

  Workspace(const exact::Problem& p, int64_t rows, int64_t keys) {
    const int64_t padded = exact::padded_keys(keys);
    head.reserve(keys, p.d, p.dv, true);
    auto size = [](std::vector<float>& x, int64_t n) { x.resize(static_cast<size_t>(n)); };
    size(value_panels, padded * p.dv), size(q, rows * p.d), size(d_out, rows * p.dv), size(s, rows * padded);
    size(g, rows * padded), size(across, keys * rows), size(dk, keys * p.d), size(dv, keys * p.dv);
    ends.resize(static_cast<size_t>(rows));
  }
};

class Backward {
 public:
  Backward(const exact::Problem& p, const SigmoidOptions& options, const View& grad_out, const SigmoidGrad& grad_in,
           int64_t keys, Context& context)
      : p_(p),
        options_(options),
        d_out_(grad_out),
        grad_(grad_in),
        keys_(keys),
        stride_(exact::padded_keys(keys)),
        step_(std::min(std::max<int64_t>(1, p.queries), exact::rows_at_a_time(stride_))),
        isa_(active_isa(context)),
        kernels_(dense_kernels(isa_)) {}

  void run(Context& context) {
    std::vector<Workspace> workspaces;
    for (int t = 0; t < context.threads; ++t) workspaces.emplace_back(p_, step_, keys_);
    parallel_for(context.threads, p_.batch * p_.kv_heads, [&](int64_t task, int worker) {
      if (!context.stop.stop_requested()) kv_head(task, workspaces[static_cast<size_t>(worker)], context);
    });
    context.throw_if_stopped();
  }

 private:
  void kv_head(int64_t task, Workspace& w, const Context& context) const {
    const int64_t b = task / p_.kv_heads, kv = task % p_.kv_heads;
    w.head.load(kernels_, p_.keys[static_cast<size_t>(task)], task);
    for (int64_t j = 0; j < w.head.count(); j += kPanelKeys)
      kernels_.pack(DType::kF32, w.head.values() + j * p_.dv, p_.dv, std::min<int64_t>(kPanelKeys, w.head.count() - j),
                    p_.dv, w.value_panels.data() + j * p_.dv);
    std::fill(w.dk.begin(), w.dk.end(), 0.0f);
    std::fill(w.dv.begin(), w.dv.end(), 0.0f);
    for (int64_t h = kv * p_.group; h < (kv + 1) * p_.group; ++h)
      for (int64_t first = 0; first < p_.queries && !context.stop.stop_requested(); first += step_)
        rows(b, h, first, std::min(step_, p_.queries - first), w);
    store(grad_.k, b, kv, w.dk, p_.d);
    store(grad_.v, b, kv, w.dv, p_.dv);
  }

  void rows(int64_t b, int64_t h, int64_t first, int64_t count, Workspace& w) const {
    const int64_t keys = w.head.count();
    exact::score_rows(p_, kernels_, w.head, b, h, first, count, w.q.data(), w.s.data(), stride_, w.ends.data());
    for (int64_t r = 0; r < count; ++r)
      std::copy_n(d_out_.at<float>({b, h, first + r}), p_.dv, w.d_out.data() + r * p_.dv);
    for (int64_t panel = 0; panel < exact::panel_count(keys); ++panel)
      kernels_.dots(w.d_out.data(), p_.dv, count, p_.dv, w.value_panels.data() + panel * kPanelKeys * p_.dv,
                    w.g.data() + panel * kPanelKeys, stride_);
    const exact::VisibleCount seen{p_.lengths.data(), options_.causal};
    for (int64_t r = 0; r < count; ++r) {
      const int64_t end = w.ends[static_cast<size_t>(r)];
      const double n = seen(static_cast<int>(b), static_cast<int32_t>(p_.position(b, first + r)));
      const RowSlopes row{w.s.data() + r * stride_, w.g.data() + r * stride_, end,
                          static_cast<float>(options_.bias - std::log(n))};
      (isa_ == Isa::kAvx2 ? run_avx2 : run_avx512)(row);
      std::fill(row.s + end, row.s + keys, 0.0f);
      std::fill(row.g + end, row.g + keys, 0.0f);
    }
    if (grad_.q.data) {
      for (int64_t r = 0; r < count; ++r) std::fill_n(grad_.q.at<float>({b, h, first + r}), p_.d, 0.0f);
      kernels_.add_rows(w.g.data(), stride_, count, keys, w.head.keys(), p_.d, p_.d, grad_.q.at<float>({b, h, first}),
                        grad_.q.stride[2]);
      for (int64_t r = 0; r < count; ++r) {
        float* to = grad_.q.at<float>({b, h, first + r});
        for (int64_t c = 0; c < p_.d; ++c) to[c] *= p_.scale;
      }
    }
    if (grad_.k.data) {
      turn(w.g, count, keys, w);  // queries carry the scale
      kernels_.add_rows(w.across.data(), count, keys, count, w.q.data(), p_.d, p_.d, w.dk.data(), p_.d);
    }
    if (grad_.v.data) {
      turn(w.s, count, keys, w);
      kernels_.add_rows(w.across.data(), count, keys, count, w.d_out.data(), p_.dv, p_.dv, w.dv.data(), p_.dv);
    }
  }

  // across [keys, count] from rows [count, stride].
  void turn(const std::vector<float>& from, int64_t count, int64_t keys, Workspace& w) const {
    for (int64_t r = 0; r < count; ++r)
      for (int64_t j = 0; j < keys; ++j)
        w.across[static_cast<size_t>(j * count + r)] = from[static_cast<size_t>(r * stride_ + j)];
  }

  void store(const View& grad, int64_t b, int64_t kv, const std::vector<float>& from, int64_t width) const {
    for (int64_t j = 0; grad.data && j < grad.shape[2]; ++j)
      std::copy_n(from.data() + j * width, width, grad.at<float>({b, kv, j}));
  }

  const exact::Problem& p_;
  const SigmoidOptions& options_;
  const View& d_out_;
  const SigmoidGrad& grad_;
  int64_t keys_, stride_, step_;
  Isa isa_;
  const DenseKernels& kernels_;
};

}  // namespace

void sigmoid_attention_backward(const Qkv& in, const SigmoidOptions& options, const View& grad_out,
                                const SigmoidGrad& grad_in, Context& context) {
  const SoftmaxOptions plain{.causal = options.causal, .scale = options.scale};
  const exact::Problem p = exact::check(in, plain, kOp);
  exact::require_countable(in, kOp);
  if (!std::isfinite(options.bias)) throw Error(ErrorKind::kArgument, kOp, "bias", "", "must be finite");
  if (!grad_out.data) throw Error(ErrorKind::kArgument, kOp, "gradient of out", "null", "must be given");
  exact::check_outputs(p.batch, p.heads, p.queries, p.dv, {grad_out}, kOp);
  const exact::BackwardCall call{in, plain, {}, {.out = grad_out}, {}};
  exact::check_parameter_gradients(kOp, call, {},
                                   {{"q", grad_in.q, in.q}, {"k", grad_in.k, in.k}, {"v", grad_in.v, in.v}});
  Backward(p, options, grad_out, grad_in, in.k.shape[2], context).run(context);
}

}  // namespace attend
