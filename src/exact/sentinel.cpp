#include "attend/exact/sentinel.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <unordered_map>
#include <vector>

#include "attend/tensor/error.h"
#include "exact/parameter.h"
#include "exact/problem.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "sentinel";

// Of each key, the last position that sees it.
std::vector<int32_t> last_readers(const View& spans, int64_t batch, int64_t keys) {
  std::unordered_map<int32_t, int32_t> last;
  for (int64_t p = 0; p < spans.shape[1]; ++p)
    if (const int32_t s = *spans.at<int32_t>({batch, p}); s < 0) last[s] = static_cast<int32_t>(p);
  std::vector<int32_t> readers(static_cast<size_t>(keys), std::numeric_limits<int32_t>::max());
  for (int64_t j = 0; j < keys; ++j) {
    const int32_t s = *spans.at<int32_t>({batch, j});
    if (s <= 0) continue;
    if (const auto found = last.find(-s); found != last.end()) readers[static_cast<size_t>(j)] = found->second;
  }
  return readers;
}

BlockMask mask_of(const exact::Problem& p, const View& spans, Context& context) {
  const int64_t keys = p.lengths.empty() ? 0 : *std::max_element(p.lengths.begin(), p.lengths.end());
  int64_t queries = 0;
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t i = 0; i < p.queries; ++i) queries = std::max(queries, p.position(b, i) + 1);
  const int64_t length = std::max(keys, queries);
  if (!spans.data || spans.type != DType::kI32 || spans.rank != 2 || spans.shape[0] != p.batch ||
      spans.shape[1] < length)
    throw Error(ErrorKind::kArgument, kOp, "spans", to_string(spans),
                fmt::format("must be i32 [{}, T] and cover {} positions", p.batch, length));
  std::vector<std::vector<int32_t>> readers;
  for (int64_t b = 0; b < p.batch; ++b) readers.push_back(last_readers(spans, b, keys));
  auto sees = [&](int b, int, int32_t i, int32_t j) {
    return i <= readers[static_cast<size_t>(b)][static_cast<size_t>(j)];
  };
  return block_mask(sees, {.batch = std::max<int64_t>(1, p.batch), .queries = queries, .keys = keys}, context);
}

SoftmaxOptions softmax_of(const SentinelOptions& options) {
  return {.causal = true, .scale = options.scale};
}

}  // namespace

void sentinel_attention(const Qkv& in, const View& spans, const SentinelOptions& options, const AttnOut& out,
                        Context& context) {
  const exact::Problem p = exact::check(in, softmax_of(options), kOp);
  exact::check_outputs(p, in, out, kOp);
  for (const auto& [name, view] : {std::pair{"out", &out.out}, {"lse", &out.lse}})
    exact::require_apart(kOp, name, *view, "spans", spans);
  const BlockMask mask = mask_of(p, spans, context);
  softmax_attention(in, p.options, out, context, {.mask = &mask});
}

void sentinel_attention_backward(const Qkv& in, const View& spans, const SentinelOptions& options,
                                 const AttnOut& forward, const AttnOutGrad& grad_out, const AttnGrad& grad_in,
                                 Context& context) {
  exact::require_arrays(kOp, in);
  const exact::Problem p = exact::check(in, softmax_of(options), kOp);
  exact::check_gradients(p, in, forward, grad_out, grad_in, kOp);
  for (const auto& [name, view] : {std::pair{"grad q", &grad_in.q}, {"grad k", &grad_in.k}, {"grad v", &grad_in.v}})
    exact::require_apart(kOp, name, *view, "spans", spans);
  const BlockMask mask = mask_of(p, spans, context);
  softmax_attention_backward(in, p.options, forward, grad_out, grad_in, context, {.mask = &mask});
}

}  // namespace attend
