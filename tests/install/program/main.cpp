#include <attend/attend.h>
#include <cstdio>

int main() {
  float q[2] = {1, 0}, k[4] = {1, 0, 0, 1}, v[4] = {1, 2, 3, 4}, out[2];
  attend::Context context;
  attend::softmax_attention({.q = attend::dense_view(q, attend::DType::kF32, {1, 1, 1, 2}),
                             .k = attend::dense_view(k, attend::DType::kF32, {1, 1, 2, 2}),
                             .v = attend::dense_view(v, attend::DType::kF32, {1, 1, 2, 2})},
                            {}, {.out = attend::dense_view(out, attend::DType::kF32, {1, 1, 1, 2})}, context);
  std::printf("%.4f %.4f\n", out[0], out[1]);
}
