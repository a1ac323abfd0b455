#include <attend/attend.h>
#include <cstdio>

int main() {
  float q[2] = {0, 0}, k[6] = {}, v[6] = {1, 0, 0, 1, 1, 1}, out[2];
  attend::Context context;
  auto older_counts_less = [](float score, int, int, int i, int j) { return score - 0.5f * float(i - j); };
  const attend::Hook hook = attend::make_hook(older_counts_less);
  attend::softmax_attention({.q = attend::dense_view(q, attend::DType::kF32, {1, 1, 1, 2}),
                             .k = attend::dense_view(k, attend::DType::kF32, {1, 1, 3, 2}),
                             .v = attend::dense_view(v, attend::DType::kF32, {1, 1, 3, 2})},
                            {.causal = true}, {.out = attend::dense_view(out, attend::DType::kF32, {1, 1, 1, 2})},
                            context, {.score = &hook});
  std::printf("%.4f %.4f\n", out[0], out[1]);
}
