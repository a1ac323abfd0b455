#pragma once
// hsa: self-attention over a tree of tokens. Tokens in different branches meet as averages of their branches.
//
//   Of the children of a node, A attends to its sibling B through one score for all pairs of their tokens,
//     psi(A,B) = scale * dot(mean of q in A, mean of k in B)
//   Bottom-up, with |A| the number of tokens under A and phi(token i) = scale * dot(q[i], k[i]):
//     Z(A) = exp(phi(A)) + sum over siblings B of |B| exp(psi(A,B))
//     phi(parent) = sum over A of |A|/|parent| ln Z(A)
//   Top-down, with m(root) = 1 and m(A) = m(parent) exp(phi(A)) / Z(A):
//     o[i] = m(i) v[i] + sum over A on the path from i to the root, over siblings B of A, of
//                        m(parent of A) |B| exp(psi(A,B)) / Z(A) * mean of v in B
//
//   Among all weights that are equal for the pairs of two siblings' tokens, these are the closest to softmax
//   attention's in total KL divergence; a flat tree gives softmax attention.
//
// Source   Amizadeh et al. 2025, arXiv:2509.15448, theorem 3.2 and equation 8, algorithms 1 to 3. Differs: a token's
//          own energy is its score with itself, so that the flat tree is softmax attention, self included; q and k are
//          used as they are given, without the paper's layer normalisation.
// Shapes   q [B,Hq,T,D] f32   k [B,Hkv,T,D]   v [B,Hkv,T,Dv] f32, f16 or bf16   ->   out [B,Hq,T,Dv]
// Cost     2 (D + Dv) flops for each ordered pair of siblings: T * branch in a balanced tree, T^2 in a flat one; memory
//          O(threads * nodes * (D + Dv))
// Empty    every token sees itself
// Errors   Error(kArgument); nothing is written before it is thrown. Error(kCancelled) and Error(kMemory) may leave
//          outputs partly written.
// Numerics f32 accumulation; |out - reference| <= bound::hsa(...). Same bits: any (a token depends on all tokens).
#include <span>
#include <vector>

#include "attend/exact/hsa_options.h"
#include "attend/exact/softmax.h"

namespace attend {

// Parents of a balanced tree over `tokens` tokens: nodes 0 to tokens - 1 are the tokens, then groups of `branch` in
// order, then groups of groups; the last node is the root, with parent -1.
std::vector<int32_t> balanced_tree(int64_t tokens, int64_t branch);

// Only q, k and v of `in` may be given.
void hsa_attention(const Qkv& in, const HsaOptions& options, const View& out, Context& context);

// Over any tree: the parent of node n is parents[n] > n, that of the last node -1; the first T nodes are the tokens and
// have no children, every other node has some.
void hsa_attention(const Qkv& in, std::span<const int32_t> parents, double scale, const View& out, Context& context);

// Writes the gradients of q, k and v from the gradient of out, [B,Hq,T,Dv] f32; the way up the tree is computed again.
// With dO(n) the sum of the gradients of out of the tokens below n and dm(n) the gradient of m(n):
//
//   dm(i) = dO[i].v[i]   dm(P) = sum over children A of dO(A).u(A) + exp(phi(A)) / Z(A) dm(A),  u(A) what A takes from
//                        its siblings
//   scores of A get what a softmax's do from m(P) dO(A) . mean v(B), from m(P) dm(A) at its own energy, and from
//   dphi(P) |A|/|P| as gradient of ln Z(A);  an own score's gradient is that of the energy phi(A); means pass theirs on
//   by |A|/|P|
//
// Source   the derivative of the definition
// Cost     2 (3 D + 3 Dv) flops for each ordered pair of siblings and the forward pass's. Threads take kv heads. Memory
//          O(threads * nodes * (D + Dv))
// Errors   as above, and for a gradient that is not of its argument's shape
void hsa_attention_backward(const Qkv& in, const HsaOptions& options, const View& grad_out, const AttnGrad& grad_in,
                            Context& context);
void hsa_attention_backward(const Qkv& in, std::span<const int32_t> parents, double scale, const View& grad_out,
                            const AttnGrad& grad_in, Context& context);

}  // namespace attend
