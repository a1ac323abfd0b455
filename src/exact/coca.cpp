#include "attend/exact/coca.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "attend/exact/rope.h"
#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "exact/parameter.h"
#include "exact/problem.h"
#include "exact/tasks.h"
#include "exact/widen.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "coca";

// [B, H, T, D] where each pair holds (length(a, b), 0) of x's, to be rotated.
template <class F>
void lengths(const View& x, bool interleaved, Context& context, float* y, F length) {
  const int64_t heads = x.shape[1], rows = x.shape[2], d = x.shape[3], half = d / 2;
  const Isa isa = active_isa(context);
  constexpr int64_t kRows = 64;
  const int64_t parts = (rows + kRows - 1) / kRows;
  exact::run_tasks(context, x.shape[0] * heads * parts, [&](int64_t task, Context&) {
    const int64_t head = task / parts;
    std::vector<float> row(static_cast<size_t>(d));
    for (int64_t t = task % parts * kRows; t < std::min(rows, (task % parts + 1) * kRows); ++t) {
      exact::widen(x, head / heads * x.stride[0] + head % heads * x.stride[1] + t * x.stride[2], d, isa, row.data());
      float* to = y + (head * rows + t) * d;
      for (int64_t p = 0; p < half; ++p) {
        const int64_t first = interleaved ? 2 * p : p, second = interleaved ? 2 * p + 1 : p + half;
        to[first] = length(row[static_cast<size_t>(first)], row[static_cast<size_t>(second)]);
        to[second] = 0;
      }
    }
  });
}

}  // namespace

void coca_attention(const Qkv& in, const CocaOptions& options, const AttnOut& out, Context& context) {
  exact::require_arrays(kOp, in);
  const SoftmaxOptions softmax{.causal = options.causal, .scale = options.scale};
  const exact::Problem p = exact::check(in, softmax, kOp);
  exact::check_outputs(p, in, out, kOp);
  if (p.d % 2) throw Error(ErrorKind::kArgument, kOp, "D", fmt::format("{}", p.d), "must be even");
  const int64_t keys = in.k.shape[2];
  const RopeAngles angles(rope_table({.base = options.base}, p.d, keys));
  float* q = exact::kept_floats(context, 0, in.q.count());
  float* k = exact::kept_floats(context, 1, in.k.count());
  lengths(in.q, options.interleaved, context, q, [](float a, float b) { return a * a + b * b; });
  lengths(in.k, options.interleaved, context, k, [](float a, float b) {
    const float mean = (a + b) / 2;
    return mean < 0 ? 0 : mean;  // a NaN stays
  });
  std::vector<int32_t> positions(static_cast<size_t>(p.batch * p.queries));
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t i = 0; i < p.queries; ++i)
      positions[static_cast<size_t>(b * p.queries + i)] = static_cast<int32_t>(p.position(b, i));
  Qkv turned = in;
  turned.q = dense_view(q, DType::kF32, {p.batch, p.heads, p.queries, p.d});
  turned.k = dense_view(k, DType::kF32, {p.batch, p.kv_heads, keys, p.d});
  rope_rotate(turned.q, dense_view(positions.data(), DType::kI32, {p.batch, p.queries}), angles, options.interleaved,
              turned.q, context);
  rope_rotate(turned.k, {}, angles, options.interleaved, turned.k, context);
  softmax_attention(turned, softmax, out, context);
}

}  // namespace attend
