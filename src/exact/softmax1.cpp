#include "attend/exact/softmax1.h"

#include <vector>

#include "attend/tensor/error.h"

namespace attend {

void softmax1_attention(const Qkv& in, const Softmax1Options& options, const AttnOut& out, Context& context) {
  if (in.sink_logits.data) throw Error(ErrorKind::kArgument, "softmax1", "sink_logits", "given", "must be absent");
  const int64_t heads = in.q.rank == 4 && in.q.shape[1] > 0 && in.q.shape[1] < (1 << 20) ? in.q.shape[1] : 0;
  std::vector<float> zeros(static_cast<size_t>(heads) + 1, 0.0f);
  Qkv with_sink = in;
  with_sink.sink_logits = dense_view(zeros.data(), DType::kF32, {heads});
  softmax_attention(with_sink, {.causal = options.causal, .scale = options.scale}, out, context);
}

}  // namespace attend
