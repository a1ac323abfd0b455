#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "attend/exact/rope.h"
#include "attend/tensor/error.h"
#include "exact/parameter.h"
#include "exact/problem.h"
#include "exact/tasks.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "rope";

View batch_of(const View& x, int64_t b) {
  View part = x;
  part.data = x.as<char>() + b * x.stride[0] * size_of(x.type);
  part.shape[0] = 1;
  return part;
}

}  // namespace

void rope_attention(const Qkv& in, const View& bases, const RopeFactors& factors, const RopeAttentionOptions& options,
                    const AttnOut& out, Context& context, const RopeAngles* angles, const Variant& variant) {
  const SoftmaxOptions softmax{.causal = options.causal, .scale = options.scale};
  const exact::Problem p = exact::check(in, softmax, kOp, variant);
  exact::check_outputs(p, in, out, kOp);
  exact::check_parameter(kOp, {"bases", bases, {p.batch}, "[B]"}, out);
  exact::check_parameter(kOp, {"short_factors", factors.short_factors, {factors.short_factors.shape[0]}, "[dims / 2]"},
                         out);
  exact::check_parameter(kOp, {"long_factors", factors.long_factors, {factors.long_factors.shape[0]}, "[dims / 2]"},
                         out);
  const bool views = !in.keys.empty();
  if (views && (bases.data || options.rope.scaling == RopeScaling::kDynamicNtk ||
                options.rope.scaling == RopeScaling::kLongRope))
    throw Error(ErrorKind::kArgument, kOp, "k", "key views", "were rotated before: no bases, no scaling by length");
  if (angles && angles->table().dims > p.d)
    throw Error(ErrorKind::kArgument, kOp, "angles", fmt::format("{}", angles->table().dims),
                fmt::format("must be at most the head's {} elements", p.d));
  const int64_t keys = views ? 0 : in.k.shape[2];
  std::vector<RopeTable> tables;
  for (int64_t b = 0; b < p.batch; ++b) {
    RopeOptions rope = options.rope;
    if (bases.data) rope.base = *bases.at<float>({b});
    tables.push_back(rope_table(rope, p.d, keys, factors));
  }
  std::vector<int32_t> positions(static_cast<size_t>(p.batch * p.queries));
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t i = 0; i < p.queries; ++i)
      positions[static_cast<size_t>(b * p.queries + i)] = static_cast<int32_t>(p.position(b, i));
  const View at = dense_view(positions.data(), DType::kI32, {p.batch, p.queries});
  Qkv rotated = in;
  rotated.q = dense_view(exact::kept_floats(context, 0, p.batch * p.heads * p.queries * p.d), DType::kF32,
                         {p.batch, p.heads, p.queries, p.d});
  if (!views)
    rotated.k = dense_view(exact::kept_floats(context, 1, p.batch * p.kv_heads * keys * p.d), DType::kF32,
                           {p.batch, p.kv_heads, keys, p.d});
  for (int64_t b = 0; b < p.batch; ++b) {
    std::optional<RopeAngles> own;
    if (!angles) own.emplace(tables[static_cast<size_t>(b)]);
    const RopeAngles& turn = angles ? *angles : *own;
    rope_rotate(batch_of(in.q, b), batch_of(at, b), turn, options.rope.interleaved, batch_of(rotated.q, b), context);
    if (!views) rope_rotate(batch_of(in.k, b), {}, turn, options.rope.interleaved, batch_of(rotated.k, b), context);
  }
  softmax_attention(rotated, softmax, out, context, variant);
}

void merge_buckets(const View& logits, const View& out) {
  if (logits.rank != 2 || logits.type != DType::kF32 || logits.shape[0] < 1 || logits.shape[1] < 1 ||
      (logits.shape[1] > 1 && logits.stride[1] != 1))
    throw Error(ErrorKind::kArgument, "merge_buckets", "logits", to_string(logits),
                "must be [N, V] of f32, dense rows");
  exact::check_parameter("merge_buckets", {"out", out, {logits.shape[1]}, "[V]", true}, {});
  exact::check_parameter("merge_buckets", {"logits", logits, {logits.shape[0], logits.shape[1]}, "[N, V]", true},
                         {out});
  const int64_t size = logits.shape[1];
  std::vector<double> merged(static_cast<size_t>(size), 0);
  double confidence = 0;
  for (int64_t n = 0; n < logits.shape[0]; ++n) {
    const float* x = logits.at<float>({n});
    const double top = *std::max_element(x, x + size);
    double sum = 0;
    for (int64_t v = 0; v < size; ++v) sum += std::exp(x[v] - top);
    const double largest = 1 / sum;  // exp(top - top) / sum
    for (int64_t v = 0; v < size; ++v) merged[static_cast<size_t>(v)] += largest * std::exp(x[v] - top) / sum;
    confidence += largest;
  }
  for (int64_t v = 0; v < size; ++v)
    *out.at<float>({v}) = static_cast<float>(merged[static_cast<size_t>(v)] / confidence);
}

}  // namespace attend
