#pragma once
// The backward of one block of query rows against one split of the keys: scores are computed again, nothing of size
// Tq x Tk is kept.
//
//   s = bias + cap(hook(q . k))     p = exp(s - lse)     w = sign(s) p with a signed softmax, else p
//   ds = p (m(dO . v) - sign(s) delta)     dq += ds slope k     dk += ds slope q     dv += m(w) dO
//
// m is the weight hook, slope = d s / d (q . k), delta = dO . O - dlse. Columns of a split are added in ascending
// order, rows of a block too.
//
// Source   Dao et al. 2022, arXiv:2205.14135, Algorithm 4.
#include <cstdint>

#include "attend/simd/split.h"

namespace attend {

// Keys are cut here in position; smaller than the forward's splits, since five matrices of a split are live.
inline constexpr int64_t kBackwardPositions = 256;
inline constexpr int kBackwardRows = 96;

struct BackwardJob {
  // The keys, and rows of one head (`heads` is 1): at most kBackwardRows rows and kBackwardPositions columns. `weight`,
  // results and scratch of the forward are not used.
  SplitJob split;
  const Hook* score_slope;   // of split.hook: s -> d hook(s) / d s; null where there is no such hook
  const Hook* weight;        // linear; null: none
  const float *lse, *delta;  // [rows]
  const float* d_out;        // [rows, padded_dv(dv)], zeros behind dv; null: 0 everywhere
  float* dq;                 // [rows, padded_dv(d)], written: sum of ds slope k
  const float** d_score;     // if not null: points to ds [rows, kBackwardStride], 0 where hidden, until the next call
  bool finite;               // what prepare() said
  std::byte* scratch;
};
inline constexpr int64_t kBackwardStride = kBackwardPositions + 16;  // rows at whole pages would share cache sets

struct BackwardKernels {
  // Copies a split's keys and values into scratch and clears its dk and dv. Returns whether all of them are finite.
  bool (*prepare)(const BackwardJob&) noexcept;
  void (*block)(const BackwardJob&) noexcept;
  // to[r] = factor * from[r], or added to it; strides are in elements.
  void (*scale_rows)(const float* from, int64_t from_stride, float factor, float* to, int64_t to_stride, int64_t rows,
                     int64_t width, bool add) noexcept;
};

// Where scratch holds what the blocks since prepare() added up: [cols, padded_dv(d)] and [cols, padded_dv(dv)].
struct BackwardSums {
  const float *dk, *dv;
};
BackwardSums backward_sums(const std::byte* scratch, int64_t d, int64_t dv);

// Throws Error(kUnsupported) if this build has no kernels for it.
const BackwardKernels& backward_kernels(Isa isa);

int64_t backward_scratch_bytes(int64_t d, int64_t dv);

}  // namespace attend
