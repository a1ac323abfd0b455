#pragma once
// lssar: softplus attention, scaled by length and sharpened by a power; made to keep its shape on longer texts.
//
//   a[j] = softplus(ln D * ln n * cos(q[i], k[j])) over their sum     n: keys that query i sees
//   o[i] = sum over visible j of w[j] v[j]     w[j] = max(0, n a[j] - (n > 3 ? 1 : 0))^power over their sum, 0 if it is
//   0
//
//   power = 0 leaves w = a (LSSA).
//
// Source   Gao et al. 2025, arXiv:2501.13428, equations 4 and 5, power 15. The shift spares the first three rows of the
//          causal matrix, as there; here those are the rows that see at most three keys, causal or not.
// Shapes   q [B,Hq,Tq,D] f32   k [B,Hkv,Tk,D]   v [B,Hkv,Tk,Dv] f32, f16 or bf16   ->   out [B,Hq,Tq,Dv]
// Cost     2 (D + Dv) flops for each visible pair and about 60 for its weight; threads hold at most 64 rows of scores,
//          about 2 MB. Never Tq * Tk.
// Empty    a query that sees no key gets 0
// Errors   Error(kArgument); nothing is written before it is thrown. Error(kCancelled) and Error(kMemory) may leave
//          outputs partly written.
// Numerics f32; where no weight stands out from 1/n the power magnifies errors by power / (largest n a - 1). Same bits:
// any.
#include "attend/exact/lssar_options.h"
#include "attend/exact/softmax.h"

namespace attend {

// Of `in`, q, k, v, kv_lens and q_positions may be given.
void lssar_attention(const Qkv& in, const LssarOptions& options, const View& out, Context& context);

}  // namespace attend
