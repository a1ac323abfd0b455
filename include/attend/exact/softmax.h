#pragma once
// Softmax attention over all visible keys: fused, tiled, without a Tq x Tk matrix.
//
//   o[i] = sum_j w[i,j] v[j]     w[i,.] = softmax over visible j of  bias[i,j] + cap(scale * dot(q[i], k[j]))
//   j visible to i  <=>  document(j) = document(i)  and
//                        (j < prefix  or  (not causal or j <= P(i)) and (P(i) - j < window or j < sinks))
//
// P(i) is the query's position; j stands for the key's position.
//
// Source   Dao et al. 2022, arXiv:2205.14135, Algorithm 1 (tiles, online softmax); Shazeer 2019, arXiv:1911.02150
//          (query heads that share keys); Xiao et al. 2023, arXiv:2309.17453, section 3.2 (sinks and window).
//          Differs: the running maximum advances once every 512 positions, so that results don't depend on tiling.
// Shapes   q [B,Hq,Tq,D] f32   k [B,Hkv,Tk,D]   v [B,Hkv,Tk,Dv] f32, f16 or bf16
//          -> out [B,Hq,Tq,Dv]   lse [B,Hq,Tq]
//          1 <= D, Dv <= 512; Hq a multiple of Hkv; query head h reads kv head h / (Hq / Hkv)
// Cost     2 (D + Dv) flops for each visible pair; memory O(threads * 512 (D + Dv)), never Tq * Tk
// Empty    a query that sees no key gets out = 0 and lse = -inf
// Errors   Error(kArgument) naming argument, value and rule; nothing is written before it is thrown. Error(kCancelled)
//          and Error(kMemory) may leave outputs partly written.
// Compute  SoftmaxOptions::compute rounds what is multiplied, queries with keys and weights with values (Shah et al.
//          2024, arXiv:2407.08608, section 3.3, has the blocks and the turn; see attend/tensor/compute.h). All between
//          is f32. int8 and fp8 take no hooks on weights and no other normaliser. int8-qk smooths keys by blocks (Zhang
//          et al. 2024, arXiv:2410.02367, section 4.2; differs: blocks of 64 that a row sees all of, not all keys).
// Numerics f32 accumulation; |out - reference| <= bound::softmax(...). Same bits: any.
#include <span>

#include "attend/exact/block_mask.h"
#include "attend/exact/softmax_options.h"
#include "attend/simd/hook.h"
#include "attend/simd/normalizer.h"
#include "attend/tensor/context.h"
#include "attend/tensor/key_view.h"
#include "attend/tensor/view.h"

namespace attend {

// Inputs. Views may have any strides with the last axis dense. Optional views are absent when their data is null.
struct Qkv {
  View q;
  View k = {}, v = {};                 // or, instead of both:
  std::span<const KeyView> keys = {};  // [B * Hkv], each with its own length and positions; q8_0 and q4_0, too
  int64_t dv = 0;                      // value width; needed with `keys` only
  View kv_lens = {};                   // [B] i32 or i64: keys of b beyond its length don't exist
  View q_positions = {};               // [B, Tq] i32; absent: the last query sits on the last key.
  View bias = {};                      // f32, rank 4, each axis 1 or that of [B, Hq, Tq, Tk]; keys by slot
  View sink_logits = {};               // [Hq] f32
  View documents = {};                 // [B, T] i32, by position, non-decreasing
};

// Either may be absent.
struct AttnOut {
  View out = {};  // f32
  View lse = {};  // f32, the natural log of the denominator, sink logit included; of softmax normalisers alone
};

// What a mechanism changes in softmax attention, beside what inputs can say (a bias of any strides, with a col stride
// of 1 and a token stride of -1 a Toeplitz one; sink logits; documents).
struct Variant {
  Normalizer normalizer = Normalizer::kSoftmax;
  // s <- f(s), after the scale and before soft-cap and bias.
  const Hook* score = nullptr;
  // With a softmax: weight <- f(weight), f linear in the weight; the denominator is the sum before it. With kSum and
  // kNone: weight = f(score), f(-inf) not asked for.
  const Hook* weight = nullptr;
  // A second pass over the keys: weight <- f(normalised weight), then divided by their sum if `renormalise`.
  const Hook* final_weight = nullptr;
  bool renormalise = false;
  // Positions that are visible, on top of what the options say.
  const BlockMask* mask = nullptr;
  // Of `score`, for the backward pass: s -> d f(s) / d s. score_slope() makes it from a functor.
  const Hook* score_slope = nullptr;
};

void softmax_attention(const Qkv& in, const SoftmaxOptions& options, const AttnOut& out, Context& context,
                       const Variant& variant = {});

// Gradients of a loss with respect to the outputs; either may be absent.
struct AttnOutGrad {
  View out = {};  // [B,Hq,Tq,Dv] f32
  View lse = {};  // [B,Hq,Tq] f32
};

// Gradients with respect to the inputs, f32, in the shapes of the inputs; each may be absent. Axes that an input
// repeats are summed over.
struct AttnGrad {
  View q = {}, k = {}, v = {}, bias = {}, sink_logits = {};
};

// Writes `grad_in`. `forward` holds both outputs of softmax_attention for the same arguments.
//
// Source   Dao et al. 2022, arXiv:2205.14135, Algorithm 4: scores are computed again, a tile at a time.
// Cost     2 (3 D + 2 Dv) flops for each visible pair; memory O(threads * (256 (4 D + 4 Dv) + 96 * 816)) and one
//          float a query. Threads take splits of 256 positions; sums over splits and heads are in ascending order, so
//          the bits do not depend on the number of threads.
// Errors   as softmax_attention; Error(kArgument) also for inputs that are key views, and for variants that are no
//          softmax, have final weights, or a score hook without its slope.
// Numerics |grad - reference| <= bound::softmax_dq(...) and its neighbours.
void softmax_attention_backward(const Qkv& in, const SoftmaxOptions& options, const AttnOut& forward,
                                const AttnOutGrad& grad_out, const AttnGrad& grad_in, Context& context,
                                const Variant& variant = {});

// Attention over part of the keys, not yet normalised, for B * Hq * Tq queries. Partials over disjoint keys merge to
// what attention over all of them gives; merging is associative up to rounding, and the empty partial is its identity.
class Partial {
 public:
  // The empty partial: max -inf, sum 0, acc 0. Throws Error(kArgument), Error(kMemory).
  Partial(int64_t batch, int64_t heads, int64_t queries, int64_t dv);

  int64_t batch() const { return batch_; }
  int64_t heads() const { return heads_; }
  int64_t queries() const { return queries_; }
  int64_t dv() const { return dv_; }
  int64_t rows() const { return batch_ * heads_ * queries_; }
  float* max() const { return storage_.as<float>(); }               // [rows]
  float* sum() const { return storage_.as<float>() + rows(); }      // [rows]
  float* acc() const { return storage_.as<float>() + 2 * rows(); }  // [rows, acc_stride]
  int64_t acc_stride() const { return acc_stride_; }

 private:
  int64_t batch_, heads_, queries_, dv_, acc_stride_;
  Buffer storage_;
};

// The part of softmax_attention over keys with positions in `range`. Sink logits don't take part: they enter at
// finish(). Throws Error(kArgument) for a normaliser other than a softmax and for `final_weight`.
Partial softmax_partial(const Qkv& in, const SoftmaxOptions& options, KeyRange range, Context& context,
                        const Variant& variant = {});

// into <- into + from. Throws Error(kArgument) if their shapes differ.
void merge(Partial& into, const Partial& from, const Context& context);

// Normalises; `sink_logits` may be absent. Partials cut at multiples of 512 positions and merged in ascending order
// give softmax_attention's bits.
void finish(const Partial& partial, const View& sink_logits, const AttnOut& out, const Context& context);

}  // namespace attend
