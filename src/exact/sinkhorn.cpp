#include "attend/exact/sinkhorn.h"

#include <fmt/format.h>

#include <cmath>

#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "exact/columns.h"
#include "exact/plain.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "sinkhorn";

}  // namespace

void sinkhorn_attention(const Qkv& in, const SinkhornOptions& options, const View& out, Context& context) {
  const exact::Problem p = exact::check(in, {.scale = options.scale}, kOp);
  exact::require_plain(in, kOp);
  if (options.iterations < 1)
    throw Error(ErrorKind::kArgument, kOp, "iterations", fmt::format("{}", options.iterations), "must be at least 1");
  exact::check_outputs(p, in, {out}, kOp);
  const int64_t keys = in.k.shape[2], rows = p.batch * p.heads * p.queries, columns = p.batch * p.heads * keys;
  if (rows == 0) return;
  Buffer memory(std::max<int64_t>(1, 2 * rows + columns) * 4);
  float *f = memory.as<float>(), *lse = f + rows, *g = lse + rows;
  std::fill_n(f, rows, 0.0f);
  std::fill_n(g, columns, 0.0f);
  const exact::Columns transposed(p, in.k, context);
  Qkv biased = in;
  biased.bias = dense_view(g, DType::kF32, {p.batch, p.heads, 1, keys});
  const View row_lse = dense_view(lse, DType::kF32, {p.batch, p.heads, p.queries});
  const float target = static_cast<float>(std::log(static_cast<double>(p.queries) / static_cast<double>(keys)));
  for (int64_t step = 1; step < options.iterations && keys > 0; ++step) {
    if (step % 2 == 1) {
      softmax_attention(biased, {.scale = options.scale}, {.lse = row_lse}, context);
      for (int64_t i = 0; i < rows; ++i) f[i] = -lse[i];
    } else {
      transposed.lse(f, g, context);
      for (int64_t j = 0; j < columns; ++j) g[j] = target - g[j];
    }
  }
  if (options.iterations % 2 == 1 || keys == 0) {
    softmax_attention(biased, {.scale = options.scale}, {.out = out}, context);
    return;
  }
  // The last step is one of columns: rows keep the f of the step before it.
  transposed.lse(f, g, context);
  for (int64_t j = 0; j < columns; ++j) g[j] = target - g[j];
  softmax_attention(biased, {.scale = options.scale}, {.out = out, .lse = row_lse}, context);
  parallel_for(context.threads, p.batch * p.heads, [&](int64_t task, int) {
    for (int64_t i = 0; i < p.queries; ++i) {
      const float factor = std::exp(lse[task * p.queries + i] + f[task * p.queries + i]);
      float* to = out.at<float>({task / p.heads, task % p.heads, i});
      for (int64_t c = 0; c < p.dv; ++c) to[c] *= factor;
    }
  });
}

}  // namespace attend
