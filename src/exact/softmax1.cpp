#include "attend/exact/softmax1.h"

#include <vector>

#include "attend/tensor/error.h"

namespace attend {

namespace {

constexpr std::string_view kOp = "softmax1";

// The arguments with a sink logit of 0 for every head, whose memory is `zeros`.
Qkv with_sink(const Qkv& in, std::vector<float>& zeros) {
  if (in.sink_logits.data) throw Error(ErrorKind::kArgument, kOp, "sink_logits", "given", "must be absent");
  const int64_t heads = in.q.rank == 4 && in.q.shape[1] > 0 && in.q.shape[1] < (1 << 20) ? in.q.shape[1] : 0;
  zeros.assign(static_cast<size_t>(heads) + 1, 0.0f);
  Qkv all = in;
  all.sink_logits = dense_view(zeros.data(), DType::kF32, {heads});
  return all;
}

}  // namespace

void softmax1_attention(const Qkv& in, const Softmax1Options& options, const AttnOut& out, Context& context) {
  std::vector<float> zeros;
  softmax_attention(with_sink(in, zeros), {.causal = options.causal, .scale = options.scale}, out, context);
}

void softmax1_attention_backward(const Qkv& in, const Softmax1Options& options, const AttnOut& forward,
                                 const AttnOutGrad& grad_out, const AttnGrad& grad_in, Context& context) {
  if (grad_in.sink_logits.data)
    throw Error(ErrorKind::kArgument, kOp, "gradient of sink_logits", "given", "must be absent");
  std::vector<float> zeros;
  softmax_attention_backward(with_sink(in, zeros), {.causal = options.causal, .scale = options.scale}, forward,
                             grad_out, grad_in, context);
}

}  // namespace attend
