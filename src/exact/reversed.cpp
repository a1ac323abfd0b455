#include "attend/exact/reversed.h"

#include <fmt/format.h>

#include <cmath>

#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "exact/columns.h"
#include "exact/plain.h"

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

}  // namespace

void reversed_attention(const Qkv& in, const View& select, const View& message, const ReversedOptions& options,
                        const View& out, Context& context) {
  const exact::Problem p = exact::check(in, {.scale = options.scale}, kOp);
  exact::require_plain(in, kOp);
  const int64_t keys = in.k.shape[2], rows = p.batch * p.heads * p.queries, columns = p.batch * p.heads * keys;
  check_gate("select", select, {p.batch, p.heads, keys});
  check_gate("message", message, {p.batch, keys});
  exact::check_outputs(p, in, {out}, kOp);
  exact::check_outputs(p, {.q = in.q, .bias = select, .sink_logits = message}, {out}, kOp);
  if (rows == 0) return;
  Buffer memory((rows + columns) * 4);
  float *lse = memory.as<float>(), *bias = lse + rows;
  exact::Columns(p, in.k, context).lse(nullptr, bias, context);
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t h = 0; h < p.heads; ++h)
      for (int64_t j = 0; j < keys; ++j) {
        float gate = 1;
        if (select.data) gate *= *select.at<float>({b, h, j});
        if (message.data) gate *= *message.at<float>({b, j});
        float& to = bias[(b * p.heads + h) * keys + j];
        to = std::log(gate) - to;
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

}  // namespace attend
