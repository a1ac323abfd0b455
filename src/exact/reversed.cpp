#include "attend/exact/reversed.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "exact/columns.h"
#include "exact/plain.h"
#include "exact/score_gradients.h"
#include "exact/widen.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "reversed";

void check_gate(std::string_view name, const View& gate, std::initializer_list<int64_t> shape) {
  if (!gate.data) return;
  if (gate.type != DType::kF32)
    throw Error(ErrorKind::kArgument, kOp, fmt::format("{} type", name), name_of(gate.type), "must be f32");
  bool fits = gate.rank == static_cast<int>(shape.size());
  int axis = 0;
  for (int64_t n : shape) fits = fits && gate.shape[axis++] == n;
  if (!fits)
    throw Error(ErrorKind::kArgument, kOp, name, to_string(gate), fmt::format("must be [{}]", fmt::join(shape, ", ")));
  for (int64_t i = 0; i < gate.count(); ++i)
    if (value_at(gate, i) < 0)
      throw Error(ErrorKind::kArgument, kOp, fmt::format("{}[{}]", name, i), fmt::format("{}", value_at(gate, i)),
                  "must be at least 0");
}

exact::Problem check(const Qkv& in, const View& select, const View& message, const ReversedOptions& options) {
  exact::Problem p = exact::check(in, {.scale = options.scale}, kOp);
  exact::require_plain(in, kOp);
  check_gate("select", select, {p.batch, p.heads, in.k.shape[2]});
  check_gate("message", message, {p.batch, in.k.shape[2]});
  return p;
}

float gate_of(const View& select, const View& message, int64_t b, int64_t h, int64_t j) {
  return (select.data ? *select.at<float>({b, h, j}) : 1) * (message.data ? *message.at<float>({b, j}) : 1);
}

}  // namespace

void reversed_attention(const Qkv& in, const View& select, const View& message, const ReversedOptions& options,
                        const View& out, Context& context) {
  const exact::Problem p = check(in, select, message, options);
  const int64_t keys = in.k.shape[2], rows = p.batch * p.heads * p.queries, columns = p.batch * p.heads * keys;
  exact::check_outputs(p, in, {out}, kOp);
  exact::check_outputs(p, {.q = in.q, .bias = select, .sink_logits = message}, {out}, kOp);
  if (rows == 0) return;
  Buffer memory((rows + columns) * 4);
  float *lse = memory.as<float>(), *bias = lse + rows;
  exact::Columns(p, in.k, context).lse(nullptr, bias, context);
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t h = 0; h < p.heads; ++h)
      for (int64_t j = 0; j < keys; ++j) {
        float& to = bias[(b * p.heads + h) * keys + j];
        to = std::log(gate_of(select, message, b, h, j)) - to;
      }
  // Softmax weights with this bias are w times a factor of the row, which lse gives back.
  Qkv biased = in;
  biased.bias = dense_view(bias, DType::kF32, {p.batch, p.heads, 1, keys});
  softmax_attention(biased, {.scale = options.scale},
                    {out, dense_view(lse, DType::kF32, {p.batch, p.heads, p.queries})}, context);
  parallel_for(context.threads, p.batch * p.heads, [&](int64_t task, int) {
    for (int64_t i = 0; i < p.queries; ++i) {
      const float factor = std::exp(lse[task * p.queries + i]);
      float* to = out.at<float>({task / p.heads, task % p.heads, i});
      for (int64_t c = 0; c < p.dv; ++c) to[c] *= factor;
    }
  });
}

void reversed_attention_backward(const Qkv& in, const View& select, const View& message, const ReversedOptions& options,
                                 const View& grad_out, const ReversedGrad& grad_in, Context& context) {
  const exact::Problem p = check(in, select, message, options);
  exact::check_row_gradients(kOp, p, in, {grad_out}, {grad_in.q, grad_in.k, grad_in.v},
                             {{"select", grad_in.select, select}, {"message", grad_in.message, message}});
  const int64_t keys = in.k.shape[2], columns = p.batch * p.kv_heads * keys;
  if (columns == 0) {
    for (int64_t row = 0; grad_in.q.data && row < p.batch * p.heads * p.queries; ++row)
      std::fill_n(grad_in.q.at<float>({row / (p.heads * p.queries), row / p.queries % p.heads, row % p.queries}), p.d,
                  0.0f);
    return;
  }
  Buffer wide_k, wide_v, memory((columns * (p.d + 2 * p.dv + 1) + p.batch * p.heads * keys) * 4);
  const View k = exact::widened(in.k, wide_k, context), v = exact::widened(in.v, wide_v, context);
  const Shape of_values = {p.batch, p.kv_heads, keys, p.dv};
  float* next = memory.as<float>();
  auto place = [&](int rank, const Shape& shape) {
    const View x = dense_view(next, DType::kF32, rank, shape);
    next += x.count();
    return x;
  };
  const View dk = place(4, {p.batch, p.kv_heads, keys, p.d}), back = place(4, of_values), gated = place(4, of_values),
             lse = place(3, {p.batch, p.kv_heads, keys}), sent = place(3, {p.batch, p.heads, keys});
  // Keys ask and queries answer with the gradients of their outputs.
  for (int64_t g = 0; g < p.group; ++g) {
    auto heads = [&](const View& x) { return exact::heads_of(x, g, p); };
    const Qkv turned{.q = k, .k = heads(p.q), .v = heads(grad_out)};
    softmax_attention(turned, {.scale = p.scale}, {back, lse}, context);
    parallel_for(context.threads, p.batch * p.kv_heads, [&](int64_t task, int) {
      const int64_t b = task / p.kv_heads, kv = task % p.kv_heads, h = kv * p.group + g;
      for (int64_t j = 0; j < keys; ++j) {
        const float gate = gate_of(select, message, b, h, j);
        const float *value = v.at<float>({b, kv, j}), *received = back.at<float>({b, kv, j});
        float *to = gated.at<float>({b, kv, j}), dot = 0;
        for (int64_t c = 0; c < p.dv; ++c) {
          to[c] = gate * value[c];
          dot += value[c] * received[c];
        }
        *sent.at<float>({b, h, j}) = dot;
        float* dv = grad_in.v.data ? grad_in.v.at<float>({b, kv, j}) : nullptr;
        for (int64_t c = 0; dv && c < p.dv; ++c) dv[c] = (g ? dv[c] : 0) + gate * received[c];
      }
    });
    if (!grad_in.q.data && !grad_in.k.data) continue;
    softmax_attention_backward(turned, {.scale = p.scale}, {back, lse}, {.out = gated},
                               {.q = grad_in.k.data ? dk : View{}, .k = heads(grad_in.q)}, context);
    if (!grad_in.k.data) continue;
    parallel_for(context.threads, p.batch * p.kv_heads, [&](int64_t task, int) {
      const int64_t b = task / p.kv_heads, kv = task % p.kv_heads;
      for (int64_t j = 0; j < keys; ++j) {
        float* to = grad_in.k.at<float>({b, kv, j});
        for (int64_t c = 0; c < p.d; ++c) to[c] = (g ? to[c] : 0) + *dk.at<float>({b, kv, j, c});
      }
    });
  }
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t j = 0; j < keys; ++j) {
      float sum = 0;
      for (int64_t h = 0; h < p.heads; ++h) {
        const float dot = *sent.at<float>({b, h, j});
        sum += gate_of(select, {}, b, h, j) * dot;
        if (grad_in.select.data) *grad_in.select.at<float>({b, h, j}) = gate_of({}, message, b, h, j) * dot;
      }
      if (grad_in.message.data) *grad_in.message.at<float>({b, j}) = sum;
    }
}

}  // namespace attend
