#pragma once
// How much weight each key gets: what retentions rank keys by, without a Tq x Tk matrix.
//
//   sum[j] += sum_i w[i,j]      largest[j] = max(largest[j], max_i w[i,j])      w[i,.] softmax_attention()'s weights
//   times[j] += |{i: attends}|  newest[j] = position of the last i that attends    i attends to j: w[i,j] > c / n[i],
//                                                                                  n[i] keys are visible to i
//
// Source   the accumulated attention scores of Zhang et al. 2023, arXiv:2306.14048, and the votes of Li et al. 2024,
//          arXiv:2404.14469, equation 3: both are column sums of the weights of some queries. Counts of weights above
//          the mean are those of Liu et al. 2023, arXiv:2305.17118, algorithm 2.
// Shapes   inputs as softmax_attention (add_weights: Qkv::dv is not needed); lse [B,Hq,Tq] as it gave it; places
//          [B * Hq], each for as many numbers as its kv head has keys, by slot
// Cost     2 D flops and an exponential for each visible pair; values are not read. Memory O(threads * 512 (D + 4 Hq /
//          Hkv)). Few queries in attend_and_add_weights(): an exponential for each visible pair beside what
//          softmax_attention() does; memory 4 Hq Tq Tk bytes, at most 64 MB.
// Empty    a query that sees no key adds nothing
// Errors   as softmax_attention; Error(kArgument) also for a normaliser that is no softmax, for final weights, and for
//          counts under a mask.
// Numerics Sums are f32, in ascending order of queries, whatever calls they came in: bits depend neither on threads nor
//          on how queries were grouped, nor on which of the two functions gathers.
#include "attend/exact/softmax.h"
#include "attend/tensor/weight_places.h"

namespace attend {

// Of the keys at positions in `range` alone: where scores of several ranges are those of several queries.
void add_weights(const Qkv& in, const SoftmaxOptions& options, const View& lse, const WeightPlaces& to,
                 Context& context, const Variant& variant = {}, KeyRange range = {0, kNoEnd});

// softmax_attention() with lse, then add_weights() of all its queries.
void attend_and_add_weights(const Qkv& in, const SoftmaxOptions& options, const AttnOut& out, const WeightPlaces& to,
                            Context& context, const Variant& variant = {});

}  // namespace attend
