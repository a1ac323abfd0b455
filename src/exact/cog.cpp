#include "attend/exact/cog.h"

namespace attend {
namespace {

constexpr Variant kSigned = {.normalizer = Normalizer::kSignedSoftmax};

SoftmaxOptions softmax_of(const CogOptions& options) {
  return {.causal = options.causal, .scale = options.scale};
}

}  // namespace

void cog_attention(const Qkv& in, const CogOptions& options, const AttnOut& out, Context& context) {
  softmax_attention(in, softmax_of(options), out, context, kSigned);
}

void cog_attention_backward(const Qkv& in, const CogOptions& options, const AttnOut& forward,
                            const AttnOutGrad& grad_out, const AttnGrad& grad_in, Context& context) {
  softmax_attention_backward(in, softmax_of(options), forward, grad_out, grad_in, context, kSigned);
}

}  // namespace attend
