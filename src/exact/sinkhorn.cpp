#include "attend/exact/sinkhorn.h"

#include <fmt/format.h>

#include <cmath>

#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "exact/columns.h"
#include "exact/dense_rows.h"
#include "exact/plain.h"
#include "exact/score_gradients.h"
#include "exact/widen.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "sinkhorn";

exact::Problem check(const Qkv& in, const SinkhornOptions& options) {
  exact::Problem p = exact::check(in, {.scale = options.scale}, kOp);
  exact::require_plain(in, kOp);
  if (options.iterations < 1)
    throw Error(ErrorKind::kArgument, kOp, "iterations", fmt::format("{}", options.iterations), "must be at least 1");
  return p;
}

// Potentials after each step, of rows after odd ones and of columns after even ones; those of step 0 are 0. The last two
// are kept, or all.
class Potentials {
 public:
  Potentials(const Qkv& in, const exact::Problem& p, int64_t steps, bool keep, Context& context)
      : in_(in),
        p_(p),
        keys_(in.k.shape[2]),
        size_(p.batch * p.heads * std::max(p.queries, keys_)),
        kept_(keep ? steps + 1 : 2),
        target_(static_cast<float>(std::log(static_cast<double>(p.queries) / static_cast<double>(keys_)))),
        memory_(std::max<int64_t>(1, size_ * kept_) * 4) {
    const exact::Columns columns(p, in.k, context);
    std::fill_n(at(0), size_, 0.0f);
    for (int64_t step = 1; step <= steps; ++step) {
      float* to = at(step);
      if (step % 2 == 1) {
        softmax_attention(biased(step - 1), {.scale = p_.scale}, {.lse = rows(to)}, context);
        for (int64_t i = 0; i < p.batch * p.heads * p.queries; ++i) to[i] = -to[i];
      } else {
        columns.lse(at(step - 1), to, context);
        for (int64_t j = 0; j < p.batch * p.heads * keys_; ++j) to[j] = target_ - to[j];
      }
    }
  }

  float* at(int64_t step) const { return memory_.as<float>() + step % kept_ * size_; }
  // The arguments with the potentials of an even step.
  Qkv biased(int64_t step) const {
    Qkv in = in_;
    in.bias = dense_view(at(step), DType::kF32, {p_.batch, p_.heads, 1, keys_});
    return in;
  }
  // The log-sum-exps of a step, in place of its potentials.
  float* lse(int64_t step) const {
    float* const x = at(step);
    const bool of_rows = step % 2 == 1;
    for (int64_t n = 0; n < p_.batch * p_.heads * (of_rows ? p_.queries : keys_); ++n)
      x[n] = of_rows ? -x[n] : target_ - x[n];
    return x;
  }
  View rows(float* x) const { return dense_view(x, DType::kF32, {p_.batch, p_.heads, p_.queries}); }

 private:
  const Qkv& in_;
  const exact::Problem& p_;
  int64_t keys_, size_, kept_;
  float target_;  // ln(Tq / Tk)
  Buffer memory_;
};

// The last step of columns leaves rows with the f of the step before it: their factor, from the lse with the last g.
float row_factor(float lse, float f) {
  return std::exp(lse + f);
}

// Steps from the last back to the first: each is a log-sum-exp, so its gradients are those of softmax attention from
// the gradient of lse alone. That reads lse and no out, for which any room of its shape does.
class Backward {
 public:
  Backward(const Qkv& in, const exact::Problem& p, const Potentials& potentials, const AttnGrad& grad_in,
           Context& context)
      : p_(p),
        potentials_(potentials),
        grad_in_(grad_in),
        context_(context),
        keys_(in.k.shape[2]),
        rows_(p.batch * p.heads * p.queries),
        columns_(p.batch * p.heads * keys_),
        wide_k_(exact::widened(in.k, wide_memory_, context)),
        memory_((rows_ * (p.d + p.dv + 3) + columns_ * 2 + p.batch * p.kv_heads * keys_ * p.d) * 4) {
    float* next = memory_.as<float>();
    auto take = [&](float*& to, int64_t count) {
      to = next;
      next += count;
    };
    take(dq_, rows_ * p.d), take(out_, rows_ * p.dv), take(lse_, rows_), take(df_, rows_), take(df_more_, rows_);
    take(dg_, columns_), take(away_, columns_), take(dk_, p.batch * p.kv_heads * keys_ * p.d);
  }

  void run(int64_t iterations, const View& grad_out) {
    exact::clear_rows(grad_in_.q);
    exact::clear_rows(grad_in_.k);
    const bool by_rows = iterations % 2 == 1;
    const int64_t last = by_rows ? iterations - 1 : iterations;
    last_step(last, by_rows, grad_out);
    for (int64_t step = last; step > 0; step -= 2) {
      columns_step(step);
      if (step == last && !by_rows)
        for (int64_t i = 0; i < rows_; ++i) df_[i] += df_more_[i];
      rows_step(step - 1);
    }
  }

 private:
  View of_rows(float* x) const { return potentials_.rows(x); }
  View with_width(float* x, int64_t width) const {
    return dense_view(x, DType::kF32, {p_.batch, p_.heads, p_.queries, width});
  }
  // What a step adds to the gradients of q and k goes to room of its own first.
  AttnGrad room(View bias) const {
    return {.q = grad_in_.q.data ? with_width(dq_, p_.d) : View{},
            .k = grad_in_.k.data ? dense_view(dk_, DType::kF32, {p_.batch, p_.kv_heads, keys_, p_.d}) : View{},
            .bias = bias};
  }
  View bias_of(float* x, int64_t step) const {
    return step > 0 ? dense_view(x, DType::kF32, {p_.batch, p_.heads, 1, keys_}) : View{};
  }
  void add(const AttnGrad& part) const {
    exact::add_rows(part.q, grad_in_.q);
    exact::add_rows(part.k, grad_in_.k);
  }

  // Weights with the g of step `last` meet the values.
  void last_step(int64_t last, bool by_rows, const View& grad_out) {
    const Qkv in = potentials_.biased(last);
    const AttnOut forward{with_width(out_, p_.dv), of_rows(lse_)};
    softmax_attention(in, {.scale = p_.scale}, forward, context_);
    AttnGrad to = room(bias_of(dg_, last));
    to.v = grad_in_.v;
    if (by_rows) {
      softmax_attention_backward(in, {.scale = p_.scale}, forward, {.out = grad_out}, to, context_);
      return add(to);
    }
    // out = factor * softmax's: to the logarithm of the factor goes the gradient of out times out.
    Buffer memory(rows_ * p_.dv * 4);
    const View scaled = with_width(memory.as<float>(), p_.dv);
    const float* f = potentials_.at(last - 1);
    parallel_for(context_.threads, p_.batch * p_.heads, [&](int64_t task, int) {
      for (int64_t i = 0; i < p_.queries; ++i) {
        const int64_t row = task * p_.queries + i;
        const float factor = row_factor(lse_[row], f[row]), *out = out_ + row * p_.dv;
        const float* d = grad_out.at<float>({task / p_.heads, task % p_.heads, i});
        float *to_row = scaled.as<float>() + row * p_.dv, dot = 0;
        for (int64_t c = 0; c < p_.dv; ++c) {
          to_row[c] = factor * d[c];
          dot += to_row[c] * out[c];
        }
        df_more_[row] = dot;
      }
    });
    softmax_attention_backward(in, {.scale = p_.scale}, forward, {scaled, of_rows(df_more_)}, to, context_);
    add(to);
  }

  // g = target - lse over queries: from dg_ to df_, those of the f of the step before.
  void columns_step(int64_t step) {
    for (int64_t j = 0; j < columns_; ++j) away_[j] = -dg_[j];
    float* const lse = potentials_.lse(step);
    for (int64_t g = 0; g < p_.group; ++g) {
      const View q = exact::heads_of(p_.q, g, p_);
      View none = q;  // values that no gradient asks for
      none.shape[3] = 1;
      auto of_head = [&](float* x, int64_t length, bool bias) {
        View view = bias ? dense_view(x + g * length, DType::kF32, {p_.batch, p_.kv_heads, 1, length})
                         : dense_view(x + g * length, DType::kF32, {p_.batch, p_.kv_heads, length});
        view.stride[0] = p_.heads * length;
        view.stride[1] = p_.group * length;
        return view;
      };
      const Qkv turned{.q = wide_k_, .k = q, .v = none, .bias = of_head(potentials_.at(step - 1), p_.queries, true)};
      const AttnOut forward{dense_view(away_, DType::kF32, {p_.batch, p_.kv_heads, keys_, 1}),
                            of_head(lse, keys_, false)};
      const AttnGrad own = room({});
      softmax_attention_backward(
          turned, {.scale = p_.scale}, forward, {.lse = of_head(away_, keys_, false)},
          {.q = own.k, .k = exact::heads_of(own.q, g, p_), .bias = of_head(df_, p_.queries, true)}, context_);
      exact::add_rows(own.k, grad_in_.k);
    }
    exact::add_rows(room({}).q, grad_in_.q);
  }

  // f = -lse over keys: from df_ to dg_, those of the g of the step before, if it is not the 0 of the start.
  void rows_step(int64_t step) {
    for (int64_t i = 0; i < rows_; ++i) df_more_[i] = -df_[i];
    Qkv in = potentials_.biased(step - 1);
    in.v.shape[3] = 1;
    const AttnOut forward{with_width(df_more_, 1), of_rows(potentials_.lse(step))};
    const AttnGrad to = room(bias_of(dg_, step - 1));
    softmax_attention_backward(in, {.scale = p_.scale}, forward, {.lse = of_rows(df_more_)}, to, context_);
    add(to);
  }

  const exact::Problem& p_;
  const Potentials& potentials_;
  const AttnGrad& grad_in_;
  Context& context_;
  int64_t keys_, rows_, columns_;
  Buffer wide_memory_;
  View wide_k_;
  Buffer memory_;
  float *dq_, *out_, *lse_, *df_, *df_more_, *dg_, *away_, *dk_;
};

}  // namespace

void sinkhorn_attention(const Qkv& in, const SinkhornOptions& options, const View& out, Context& context) {
  const exact::Problem p = check(in, options);
  exact::check_outputs(p, in, {out}, kOp);
  const int64_t rows = p.batch * p.heads * p.queries;
  if (rows == 0) return;
  if (in.k.shape[2] == 0) return softmax_attention(in, {.scale = options.scale}, {out}, context);
  const bool by_rows = options.iterations % 2 == 1;
  const int64_t last = by_rows ? options.iterations - 1 : options.iterations;
  const Potentials potentials(in, p, last, false, context);
  if (by_rows) return softmax_attention(potentials.biased(last), {.scale = options.scale}, {out}, context);
  Buffer memory(rows * 4);
  const float *lse = memory.as<float>(), *f = potentials.at(last - 1);
  softmax_attention(potentials.biased(last), {.scale = options.scale}, {out, potentials.rows(memory.as<float>())},
                    context);
  parallel_for(context.threads, p.batch * p.heads, [&](int64_t task, int) {
    for (int64_t i = 0; i < p.queries; ++i) {
      const float factor = row_factor(lse[task * p.queries + i], f[task * p.queries + i]);
      float* to = out.at<float>({task / p.heads, task % p.heads, i});
      for (int64_t c = 0; c < p.dv; ++c) to[c] *= factor;
    }
  });
}

void sinkhorn_attention_backward(const Qkv& in, const SinkhornOptions& options, const View& grad_out,
                                 const AttnGrad& grad_in, Context& context) {
  const exact::Problem p = check(in, options);
  exact::check_row_gradients(kOp, p, in, {grad_out}, grad_in, {});
  const int64_t iterations = options.iterations;
  if (in.k.shape[2] == 0 || p.batch * p.heads * p.queries == 0) {
    for (const View* grad : {&grad_in.q, &grad_in.k, &grad_in.v}) exact::clear_rows(*grad);
    return;
  }
  const Potentials potentials(in, p, iterations % 2 == 1 ? iterations - 1 : iterations, true, context);
  Backward(in, p, potentials, grad_in, context).run(iterations, grad_out);
}

}  // namespace attend
