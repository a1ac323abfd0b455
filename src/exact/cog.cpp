#include "attend/exact/cog.h"

namespace attend {

void cog_attention(const Qkv& in, const CogOptions& options, const AttnOut& out, Context& context) {
  softmax_attention(in, {.causal = options.causal, .scale = options.scale}, out, context,
                    {.normalizer = Normalizer::kSignedSoftmax});
}

}  // namespace attend
