#include "attend/exact/softmax.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "attend/simd/isa.h"
#include "attend/simd/split.h"
#include "attend/tensor/error.h"
#include "exact/problem.h"
#include "exact/schedule.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "softmax";

PartialRows rows_of(const Partial& p) {
  return {p.max(), p.sum(), p.acc(), p.acc_stride()};
}

}  // namespace

void softmax_attention(const Qkv& in, const SoftmaxOptions& options, const AttnOut& out, Context& context,
                       const Variant& variant) {
  const exact::Problem problem = exact::check(in, options, kOp, variant);
  exact::check_outputs(problem, in, out, kOp);
  exact::run(problem, {0, kNoEnd}, {.out = &out}, context);
}

Partial::Partial(int64_t batch, int64_t heads, int64_t queries, int64_t dv)
    : batch_(batch), heads_(heads), queries_(queries), dv_(dv), acc_stride_(padded_dv(dv)) {
  if (batch < 0 || heads < 0 || queries < 0 || dv < 1 || dv > 512)
    throw Error(ErrorKind::kArgument, "partial", "shape", fmt::format("[{}, {}, {}, {}]", batch, heads, queries, dv),
                "must have no negative axis and a width in 1..512");
  storage_ = Buffer(rows() * (2 + acc_stride_) * 4);
  std::fill_n(max(), rows(), -std::numeric_limits<float>::infinity());
  std::fill_n(sum(), rows() * (1 + acc_stride_), 0.0f);
}

Partial softmax_partial(const Qkv& in, const SoftmaxOptions& options, KeyRange range, Context& context,
                        const Variant& variant) {
  if (range.begin < 0 || range.end < range.begin)
    throw Error(ErrorKind::kArgument, "softmax_partial", "range", fmt::format("[{}, {})", range.begin, range.end),
                "must ascend from 0 or more");
  if (variant.normalizer == Normalizer::kSum || variant.normalizer == Normalizer::kNone || variant.final_weight)
    throw Error(ErrorKind::kArgument, "softmax_partial", "variant", "", "must be a softmax of one pass");
  const exact::Problem problem = exact::check(in, options, "softmax_partial", variant);
  Partial partial(problem.batch, problem.heads, problem.queries, problem.dv);
  exact::run(problem, range, {.partial = &partial}, context);
  return partial;
}

void merge(Partial& into, const Partial& from, const Context& context) {
  if (into.batch() != from.batch() || into.heads() != from.heads() || into.queries() != from.queries() ||
      into.dv() != from.dv())
    throw Error(ErrorKind::kArgument, "merge", "from",
                fmt::format("[{}, {}, {}, {}]", from.batch(), from.heads(), from.queries(), from.dv()),
                "must have the shape of the partial that it joins");
  split_kernels(active_isa(context)).fold(rows_of(into), rows_of(from), into.rows(), into.dv());
}

void finish(const Partial& partial, const View& sink_logits, const AttnOut& out, const Context& context) {
  exact::check_outputs(partial.batch(), partial.heads(), partial.queries(), partial.dv(), out, "finish");
  if (sink_logits.data &&
      (sink_logits.type != DType::kF32 || sink_logits.rank != 1 || sink_logits.shape[0] != partial.heads()))
    throw Error(ErrorKind::kArgument, "finish", "sink_logits", to_string(sink_logits), "must be [Hq] of f32");
  const SplitKernels& kernels = split_kernels(active_isa(context));
  for (int64_t b = 0; b < partial.batch(); ++b)
    for (int64_t h = 0; h < partial.heads(); ++h)
      for (int64_t i = 0; i < partial.queries(); ++i)
        kernels.finish(rows_of(partial), (b * partial.heads() + h) * partial.queries() + i,
                       sink_logits.data ? sink_logits.at<float>({h}) : nullptr, partial.dv(),
                       out.out.at<float>({b, h, i}), out.lse.data ? out.lse.at<float>({b, h, i}) : nullptr);
}

}  // namespace attend
