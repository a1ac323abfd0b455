#pragma once
// How much weight each key gets: what retentions rank keys by, without a Tq x Tk matrix.
//
//   sums[b,h,j] += sum_i w[i,j]     w[i,.] the softmax weights of softmax_attention() for query i of head h
//
// Source   the accumulated attention scores of Zhang et al. 2023, arXiv:2306.14048, and the votes of Li et al. 2024,
//          arXiv:2404.14469, equation 3: both are column sums of the weights of some queries.
// Shapes   inputs as softmax_attention (Qkv::dv is not needed); lse [B,Hq,Tq] as it gave it; sums [B * Hq] pointers, each to as many floats as
//          its kv head has keys, by slot
// Cost     2 D flops and an exponential for each visible pair; values are not read. Memory O(threads * 512 (D + Hq /
// Hkv)) Errors   as softmax_attention; Error(kArgument) also for a normaliser that is no softmax and for final weights.
// Numerics Sums are f32, in ascending order of queries, whatever calls they came in: their bits depend neither on
//          threads nor on how queries were grouped.
#include <span>

#include "attend/exact/softmax.h"

namespace attend {

void add_weight_sums(const Qkv& in, const SoftmaxOptions& options, const View& lse, std::span<float* const> sums,
                     Context& context, const Variant& variant = {});

}  // namespace attend
