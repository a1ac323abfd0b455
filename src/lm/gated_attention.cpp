#include "gated_attention.h"

#include <cstring>

#include "attend/simd/isa.h"
#include "attend/simd/row_ops.h"
#include "attend/tensor/parallel.h"
#include "rows.h"

namespace attend {
namespace {

void copy(Buffer& to, const float* from, int64_t floats) {
  std::memcpy(reserve(to, floats), from, static_cast<size_t>(floats) * sizeof(float));
}

}  // namespace

Qkv GatedAttention::inputs() {
  return {.q = by_head(q_.as<float>(), layer_.heads, rows_, layer_.d),
          .k = by_head(k_.as<float>(), layer_.kv_heads, rows_, layer_.d),
          .v = by_head(v_.as<float>(), layer_.kv_heads, rows_, layer_.dv)};
}

SoftmaxOptions GatedAttention::options(bool streaming) const {
  return {.causal = true,
          .scale = layer_.scale,
          .window = streaming ? streaming_.recent : layer_.window,
          .sinks = streaming ? streaming_.sinks : 0};
}

AttnOut GatedAttention::outputs(bool streaming) {
  Buffer &out = streaming ? narrow_ : full_, &lse = streaming ? narrow_lse_ : full_lse_;
  return {.out = by_head(out.as<float>(), layer_.heads, rows_, layer_.dv),
          .lse = dense_view(lse.as<float>(), DType::kF32, {1, layer_.heads, rows_})};
}

float GatedAttention::gate(int head) const {
  return gates_.empty() ? 1 : gates_[static_cast<size_t>(head / (layer_.heads / layer_.kv_heads))];
}

void GatedAttention::forward(const AttentionLayer& layer, const Streaming& streaming, std::span<const float> gates,
                             int64_t rows, const float* q, const float* k, const float* v, float* out,
                             Context& context) {
  layer_ = layer, streaming_ = streaming, gates_ = gates, rows_ = rows;
  copy(q_, q, rows * layer.heads * layer.d);
  copy(k_, k, rows * layer.kv_heads * layer.d);
  copy(v_, v, rows * layer.kv_heads * layer.dv);
  const int64_t n = layer.heads * layer.dv;
  reserve(full_, rows * n), reserve(full_lse_, rows * layer.heads);
  softmax_attention(inputs(), options(false), outputs(false), context);
  if (gates.empty()) {
    std::memcpy(out, full_.data(), static_cast<size_t>(rows * n) * sizeof(float));
    return;
  }
  reserve(narrow_, rows * n), reserve(narrow_lse_, rows * layer.heads);
  softmax_attention(inputs(), options(true), outputs(true), context);
  parallel_for(context.threads, rows, [&](int64_t r, int) {
    for (int h = 0; h < layer.heads; ++h) {
      const float g = gate(h);
      const int64_t at = r * n + h * layer.dv;
      const float *full = full_.as<float>() + at, *narrow = narrow_.as<float>() + at;
      for (int64_t c = 0; c < layer.dv; ++c) out[at + c] = g == 1 ? full[c] : g * full[c] + (1 - g) * narrow[c];
    }
  });
}

// d loss / d gate = sum over rows and query heads of d_out . (full - streaming).
void GatedAttention::gate_gradients(const float* d_out, std::span<double> d_gates, Context& context) const {
  const int64_t n = layer_.heads * layer_.dv, part = n / layer_.kv_heads;
  parallel_for(context.threads, layer_.kv_heads, [&](int64_t kv, int) {
    double sum = 0;
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t at = r * n + kv * part; at < r * n + (kv + 1) * part; ++at)
        sum += static_cast<double>(d_out[at]) * (full_.as<float>()[at] - narrow_.as<float>()[at]);
    d_gates[static_cast<size_t>(kv)] = sum;
  });
}

void GatedAttention::backward(const float* d_out, float* d_q, float* d_k, float* d_v, Context& context) {
  const RowOps& ops = row_ops(active_isa(context));
  const int64_t n = layer_.heads * layer_.dv, q = layer_.heads * layer_.d, k = layer_.kv_heads * layer_.d,
                v = layer_.kv_heads * layer_.dv;
  float* share_of_out = reserve(scratch_, rows_ * (n + q + k + v));
  float *to_q = share_of_out + rows_ * n, *to_k = to_q + rows_ * q, *to_v = to_k + rows_ * k;
  for (bool streaming : {false, true}) {
    auto share = [&](int h) { return streaming ? 1 - gate(h) : gate(h); };
    bool any = false;
    for (int h = 0; h < layer_.heads; ++h) any |= share(h) != 0;
    if (!any) continue;
    parallel_for(context.threads, rows_, [&](int64_t r, int) {
      for (int64_t c = 0; c < n; ++c)
        share_of_out[r * n + c] = share(static_cast<int>(c / layer_.dv)) * d_out[r * n + c];
    });
    softmax_attention_backward(inputs(), options(streaming), outputs(streaming),
                               {.out = by_head(share_of_out, layer_.heads, rows_, layer_.dv)},
                               {.q = by_head(to_q, layer_.heads, rows_, layer_.d),
                                .k = by_head(to_k, layer_.kv_heads, rows_, layer_.d),
                                .v = by_head(to_v, layer_.kv_heads, rows_, layer_.dv)},
                               context);
    parallel_for(context.threads, rows_, [&](int64_t r, int) {
      ops.add(d_q + r * q, to_q + r * q, q);
      ops.add(d_k + r * k, to_k + r * k, k);
      ops.add(d_v + r * v, to_v + r * v, v);
    });
  }
}

}  // namespace attend
