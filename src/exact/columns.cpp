#include "exact/columns.h"

#include "exact/widen.h"

namespace attend::exact {

Columns::Columns(const Problem& p, const View& k, Context& context)
    : p_(p), keys_(k.shape[2]), k_(widened(k, widened_, context)) {}

void Columns::lse(const float* row, float* out, Context& context) const {
  // One call for each query head of a group.
  for (int64_t g = 0; g < p_.group; ++g) {
    const View q = heads_of(p_.q, g, p_);
    View none = q;  // values nobody asks for
    none.shape[3] = 1;
    Qkv in{.q = k_, .k = q, .v = none};
    if (row) {
      in.bias =
          dense_view(const_cast<float*>(row) + g * p_.queries, DType::kF32, {p_.batch, p_.kv_heads, 1, p_.queries});
      in.bias.stride[0] = p_.heads * p_.queries;
      in.bias.stride[1] = p_.group * p_.queries;
    }
    View to = dense_view(out + g * keys_, DType::kF32, {p_.batch, p_.kv_heads, keys_});
    to.stride[0] = p_.heads * keys_;
    to.stride[1] = p_.group * keys_;
    softmax_attention(in, {.scale = p_.scale}, {.lse = to}, context);
  }
}

View heads_of(View x, int64_t place, const Problem& p) {
  if (!x.data) return x;
  x.data = x.at<float>({0, place});
  x.shape[1] = p.kv_heads;
  x.stride[1] *= p.group;
  return x;
}

}  // namespace attend::exact
