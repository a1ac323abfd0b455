#include "exact/columns.h"

#include "attend/simd/dense.h"
#include "attend/simd/isa.h"
#include "attend/tensor/parallel.h"

namespace attend::exact {

Columns::Columns(const Problem& p, const View& k, Context& context) : p_(p), keys_(k.shape[2]), k_(k) {
  if (k.type == DType::kF32) return;
  widened_ = Buffer(std::max<int64_t>(1, k.count()) * 4);
  k_ = dense_view(widened_.data(), DType::kF32, k.rank, k.shape);
  const DenseKernels& kernels = dense_kernels(active_isa(context));
  parallel_for(context.threads, p.batch * p.kv_heads, [&](int64_t task, int) {
    const int64_t b = task / p_.kv_heads, h = task % p_.kv_heads;
    kernels.widen(k.type, k.as<char>() + (b * k.stride[0] + h * k.stride[1]) * size_of(k.type), k.stride[2], keys_,
                  p_.d, k_.at<float>({b, h}), p_.d);
  });
}

void Columns::lse(const float* row, float* out, Context& context) const {
  // One call for each query head of a group: its heads are a strided view.
  for (int64_t g = 0; g < p_.group; ++g) {
    View q = p_.q;
    q.data = p_.q.at<float>({0, g});
    q.shape[1] = p_.kv_heads;
    q.stride[1] *= p_.group;
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

}  // namespace attend::exact
