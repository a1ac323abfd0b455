#pragma once
// attend_split: one block of query rows against one split of the keys, softmax and hooks inside. The only attention
// code that is compiled per instruction set.
//
//   max[r] = max_j s[r,j]     p[r,j] = exp(s[r,j] - max[r])     sum[r] = sum_j p[r,j]     acc[r] = sum_j p[r,j] v[j]
//
// over the visible columns j, with s = bias + cap(hook(scale * q . k)); other normalisers (attend/simd/normalizer.h)
// leave max at 0 and weigh by p = f(s), so that their partials merge by addition. Results of a row depend on its own
// query and on the keys it sees, by position, and on nothing else: neither on the other rows, nor on the slots of the
// keys, nor on keys that it does not see. Weights that are rounded to 8 bits or fewer may be relative to another of the
// row's scores, which takes nothing from their precision; max[r] is that one then. Dots accumulate in ascending d, acc
// in ascending position, sum in 16 lanes by position mod 16.
#include <cstdint>
#include <span>

#include "attend/simd/hook.h"
#include "attend/simd/normalizer.h"
#include "attend/tensor/compute.h"
#include "attend/tensor/key_view.h"
#include "attend/tensor/weight_places.h"

namespace attend {

// Keys are cut into splits at multiples of this in position: the unit that threads take and that folds in order.
inline constexpr int64_t kSplitPositions = 512;

// Visible columns of a split: [a0, a1) and [b0, b1), ascending and disjoint, either may be empty.
struct ColumnRanges {
  int32_t a0 = 0, a1 = 0, b0 = 0, b1 = 0;
  bool empty() const { return a0 >= a1 && b0 >= b1; }
};

struct SplitJob {
  // Queries: heads x tokens rows, head-major, [rows, d] dense, scaled already if compute is f32.
  const float* q = nullptr;
  Compute compute = Compute::kF32;
  float score_scale = 1;  // multiplies scores where compute is not f32; queries are not scaled then
  int heads = 1, tokens = 0, d = 0, dv = 0;
  const int32_t* q_position = nullptr;  // [tokens]; for hooks

  // Keys: `cols` consecutive slots from `first_slot` on, all of one split.
  std::span<const KeyRun> runs = {};
  int64_t first_slot = 0;
  int cols = 0;
  const int32_t* k_position = nullptr;    // [cols], or null: first_position + column
  int64_t first_position = 0;             // of column 0
  const ColumnRanges* visible = nullptr;  // [tokens]
  const uint64_t* mask = nullptr;         // [tokens, 8], a bit a column: also hidden where it is 0; null: none
  int64_t mask_head_stride = 0;           // words; 0 where heads share it

  // Scores.
  float softcap = 0;            // 0: none
  const float* bias = nullptr;  // of head 0, token 0, column 0; null: none
  int64_t bias_head_stride = 0, bias_token_stride = 0, bias_col_stride = 0;
  const Hook* hook = nullptr;  // null: none
  int batch = 0, first_head = 0;

  // Weights.
  Normalizer normalizer = Normalizer::kSoftmax;
  const Hook* weight = nullptr;  // softmax: p <- f(p) once the sum is taken, f linear in p; else p = f(s)
  // A second pass over the keys: weights are normalised by what the first one found, p = exp(s - given_max) *
  // given_inverse or f(s) * given_inverse, and `final_hook`, if any, maps them. [rows], or null in the first pass.
  const float *given_max = nullptr, *given_inverse = nullptr;
  const Hook* final_hook = nullptr;
  bool sums_only = false;  // acc is not computed
  // Statistics of the rows' weights join those at [head * kSplitPositions + column], in ascending order of rows; null:
  // none. In units of what normalises them, so in a second pass. `attended`: [rows], the weight above which a key is.
  const KeyStatistics* statistics = nullptr;
  const float* attended = nullptr;
  // Scores as the normaliser takes them, -inf where hidden, at [head * head_stride + token * token_stride + column] for
  // columns that some row sees; null: they are not kept.
  float* scores = nullptr;
  int64_t scores_head_stride = 0, scores_token_stride = 0;

  // Results, one row after another; acc rows are padded to a multiple of 16.
  float *max = nullptr, *sum = nullptr, *acc = nullptr;
  int64_t acc_stride = 0;

  std::byte* scratch = nullptr;  // split_scratch_bytes(d, dv)
};

// Rows of a finished part of the softmax; the empty one has max -inf, sum 0, acc 0.
struct PartialRows {
  float *max, *sum, *acc;
  int64_t acc_stride;
};

struct SplitKernels {
  void (*attend)(const SplitJob&) noexcept;
  // to[i] = from[i] * factor.
  void (*scale)(const float* from, int64_t count, float factor, float* to) noexcept;
  // into <- into + from, row by row: an associative merge with the empty partial as identity.
  void (*fold)(const PartialRows& into, const PartialRows& from, int64_t rows, int64_t dv) noexcept;
  // out[r] = acc[r] / sum[r], 0 for an empty row; `sink` (one logit a row, or null) joins the denominator.
  // lse[r] = max + ln(sum), the sink included.
  void (*finish)(const PartialRows& rows, int64_t row, const float* sink, int64_t dv, float* out, float* lse) noexcept;
  // Weights exp(scores[c] - lse) of a row join the statistics, as they do in a second pass.
  void (*gather)(const float* scores, int64_t count, float lse, float attended, int32_t position,
                 const KeyStatistics& to) noexcept;
};

// Throws Error(kUnsupported) if this build has no kernels for it.
const SplitKernels& split_kernels(Isa isa);

int64_t split_scratch_bytes(int64_t d, int64_t dv);
constexpr int64_t padded_dv(int64_t dv) {
  return (dv + 15) / 16 * 16;
}

}  // namespace attend
