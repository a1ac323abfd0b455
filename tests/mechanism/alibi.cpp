#include "mechanism/alibi.h"

#include <cmath>
#include <cstdlib>
#include <vector>

namespace attend {

void alibi_attention(const Qkv& in, const AlibiOptions& options, const AttnOut& out, Context& context) {
  const int64_t heads = in.q.rank == 4 ? in.q.shape[1] : 0;
  std::vector<float> slope(static_cast<size_t>(std::max<int64_t>(heads, 0)));
  for (size_t h = 0; h < slope.size(); ++h) {
    slope[h] = static_cast<float>(std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(heads)));
  }
  auto falls = [&](float s, int, int head, int32_t i, int32_t j) {
    return s - slope[static_cast<size_t>(head)] * static_cast<float>(std::abs(i - j));
  };
  const Hook hook = make_hook(falls);
  softmax_attention(in, {.causal = options.causal}, out, context, {.score = &hook});
}

}  // namespace attend
