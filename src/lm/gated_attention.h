#pragma once
// One layer's attention with a gate on every kv head (attend/lm/gated_model.h), and its gradients.
#include <cstdint>
#include <span>

#include "attend/exact/softmax.h"
#include "attend/lm/graph.h"
#include "attend/tensor/buffer.h"
#include "attend/tensor/context.h"

namespace attend {

// Which keys a shut head sees.
struct Streaming {
  int64_t sinks, recent;
};

// Rows are [rows, heads * size]. Holds what the last forward() saw and gave, 2 d_model floats a row beside q, k and v.
class GatedAttention {
 public:
  // `gates` [kv heads]; none: the layer has no gates. Writes `out`.
  void forward(const AttentionLayer& layer, const Streaming& streaming, std::span<const float> gates, int64_t rows,
               const float* q, const float* k, const float* v, float* out, Context& context);

  // Gradients with respect to gates, given that with respect to `out`, in ascending order of rows.
  void gate_gradients(const float* d_out, std::span<double> d_gates, Context& context) const;

  // Adds the gradients with respect to q, k and v.
  void backward(const float* d_out, float* d_q, float* d_k, float* d_v, Context& context);

 private:
  Qkv inputs();
  SoftmaxOptions options(bool streaming) const;
  AttnOut outputs(bool streaming);
  float gate(int head) const;  // of a query head

  AttentionLayer layer_{};
  Streaming streaming_{};
  std::span<const float> gates_;
  int64_t rows_ = 0;
  Buffer q_, k_, v_, full_, full_lse_, narrow_, narrow_lse_, scratch_;
};

}  // namespace attend
