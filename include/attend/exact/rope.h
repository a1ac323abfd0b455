#pragma once
// Rotary position embeddings: pair i of a head turns by position * f[i], so that a dot product depends on the distance
// of its tokens alone; and the ways to stretch f over contexts longer than the trained one.
//
//   y[a] = m (x[a] cos - x[b] sin)     y[b] = m (x[b] cos + x[a] sin)      of the angle position * f[i]
//   f[i] = theta[i] = base^(-2i / dims), and with s = factor, L = original, T = the text's length so far
//     linear    theta / s
//     ntk       theta of base * s^(dims / (dims - 2))
//     dynamic   theta of base * (s T / L - (s - 1))^(dims / (dims - 2)) where T > L
//     yarn      theta (1 - r) + r theta / s, r = extrapolation * clamp((i - low) / (high - low), 0, 1) + (1 -
//               extrapolation), low = floor and high = ceil of dims ln(L / (2 pi beta)) / (2 ln base) for beta_fast and
//               beta_slow, kept in 0..dims - 1;   m = 1 + 0.1 ln s
//     llama3    t = L theta / (2 pi) turns: t < low_factor: theta / s, t > high_factor: theta, else
//               theta (g + (1 - g) / s), g = (t - low_factor) / (high_factor - low_factor)
//     longrope  theta / short[i] where T <= L, theta / long[i] beyond;   m = sqrt(1 + ln s / ln L) for s > 1
//   m = 1 unless said otherwise; both queries and keys are multiplied by it, so scores are by its square.
//
// Attention with a window W and S sinks sees keys j with P - j < W or j < S from position P. Their scores are those of
//   text positions    (R(P) q) . (R(j) k[j])
//   cache positions   the same for j >= S;  (R(min(P, W + S - 1)) q) . (R(j) k[j])  for the sinks, j < S
// so that from P = W + S on, when the first keys have left, what is seen counts as a text of W + S tokens: keys of the
// window keep their distances, the sinks stand right before the window, and no distance ever exceeds W + S - 1.
// Without a window, keys of views (what a retention left of a text) have cache positions, too: (R(s) q) . (R(t) k[t])
// of the slots t of a key and s of the query's own, so that what is left counts as a text by itself (as in the code of
// Zhang et al. 2023, arXiv:2306.14048, for texts without end). Each call then turns the keys that it reads.
//
// Source   Su et al. 2021, arXiv:2104.09864, equation 34; Chen et al. 2023, arXiv:2306.15595 (linear); Peng et al.
//          2023, arXiv:2309.00071, sections 3.1 (ntk), 3.2 (yarn, whose lambda and gamma(r) are written by pair as in
//          its authors' code), 3.3 (dynamic), 3.4 (m); Llama 3.1's reference code (llama3); Ding et al. 2024,
//          arXiv:2402.13753 (longrope; m as in Phi-3's code); Xiao et al. 2023, arXiv:2309.17453, section 3.2 (cache
//          positions; the paper turns all cached keys again at every step, here the query is turned twice).
// Shapes   x [B,H,T,D] f32, f16 or bf16   positions [B,T] i32   ->   out [B,H,T,D] f32
// Cost     3 flops an element and a sine and cosine for every 64th position and pair
// Empty    in rope_attention() a query that sees no key gets out = 0 and lse = -inf
// Errors   Error(kArgument) naming argument, value and rule; nothing is written before it is thrown
// Numerics angles in double, turned into f32; every rotated pair has an error of 5 epsilon of its length. Same bits:
//          any for none, linear, ntk, yarn and llama3; dynamic and longrope change with the text's length by
//          definition.
#include <vector>

#include "attend/exact/rope_options.h"
#include "attend/exact/softmax.h"
#include "attend/simd/row_ops.h"
#include "attend/tensor/weight_places.h"

namespace attend {

// Learned divisors of longrope, one a pair; either may be absent and is 1 then. `short_factors` without longrope are
// divisors of the unscaled frequencies too (GGUF's rope_freqs).
struct RopeFactors {
  View short_factors = {}, long_factors = {};  // [dims / 2] f32
};

struct RopeTable {
  int64_t dims = 0;
  std::vector<double> frequency;  // [dims / 2], radians a token
  double magnitude = 1;
};

// For heads of `d` elements and a text of `length` tokens.
RopeTable rope_table(const RopeOptions& options, int64_t d, int64_t length, const RopeFactors& factors = {});

// Cosines and sines, times the magnitude. Those of position 64 a + b come from those of 64 a and of b by one complex
// product, so that they never depend on where a chunk began.
class RopeAngles {
 public:
  explicit RopeAngles(RopeTable table);

  const RopeTable& table() const { return table_; }
  int64_t pairs() const { return table_.dims / 2; }

  // cosine and sine [rows, pairs].
  void fill(const int32_t* positions, int64_t rows, const RowOps& ops, float* cosine, float* sine) const;
  void fill(int64_t first, int64_t rows, const RowOps& ops, float* cosine, float* sine) const;

 private:
  static constexpr int64_t kStep = 64;
  class Filler;

  RopeTable table_;
  std::vector<double> cosine_, sine_;  // [kStep, pairs] of the positions 0 .. kStep - 1
};

// out = x rotated to its positions; without positions those are 0, 1, .. `out` may be x itself.
void rope_rotate(const View& x, const View& positions, const RopeAngles& angles, bool interleaved, const View& out,
                 Context& context);

// Whether keys of views come unrotated, for they stand where they lie.
inline bool rope_keeps_unturned(const RopeAttentionOptions& options) {
  return options.positions == RopePositions::kCache && options.window == 0;
}

// Softmax attention of rotated queries and keys. `bases` [B] f32, if given, replaces the base of each batch entry:
// copies of one text as batch entries are read with several bases at once (Chen et al. 2023, arXiv:2312.04455,
// "attention buckets"), whose output distributions merge_buckets() merges. Keys as arrays come unrotated, at positions
// 0, 1, ..; the text's length is Tk. Those of key views were rotated when they were stored, unless
// rope_keeps_unturned(): then `bases`, and scalings that depend on the text's length, are refused. `angles`, if given,
// are those of options.rope for heads as wide as these, and replace bases and factors. `variant` is that of
// softmax_attention; with cache positions one of softmax_partial.
void rope_attention(const Qkv& in, const View& bases, const RopeFactors& factors, const RopeAttentionOptions& options,
                    const AttnOut& out, Context& context, const RopeAngles* angles = nullptr,
                    const Variant& variant = {});

// The weights that queries give to each key, as add_weights (attend/exact/weight_statistics.h); `lse` as rope_attention
// gave it.
void rope_add_weights(const Qkv& in, const View& bases, const RopeFactors& factors, const RopeAttentionOptions& options,
                      const View& lse, const WeightPlaces& to, Context& context, const RopeAngles* angles = nullptr);

// As softmax_attention_backward (attend/exact/softmax.h), with respect to unrotated queries and keys: the gradients of
// the rotated ones, turned back. `forward` holds both outputs of rope_attention for the same arguments. Bases and
// factors have no gradient. Cache positions take neither bias, sink logits, documents nor a variant here.
void rope_attention_backward(const Qkv& in, const View& bases, const RopeFactors& factors,
                             const RopeAttentionOptions& options, const AttnOut& forward, const AttnOutGrad& grad_out,
                             const AttnGrad& grad_in, Context& context, const RopeAngles* angles = nullptr,
                             const Variant& variant = {});

// Merges the output distributions of N parallel readings of one text: out[v] = sum_n a[n] p[n,v] / sum_n a[n], p[n,.]
// the softmax of logits[n,.] and a[n] = max over v of p[n,v] its confidence (arXiv:2312.04455, section 3.2). logits
// [N,V] f32, out [V] f32.
void merge_buckets(const View& logits, const View& out);
// The same as natural logarithms.
void merge_bucket_logits(const View& logits, const View& out);

}  // namespace attend
