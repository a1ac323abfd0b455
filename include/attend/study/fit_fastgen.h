#pragma once
// Which kinds of tokens each kv head of a model attends to, found by profiling a text.
//
//   recovered(S) = mean over queries i of  sum over j in S(i) of w[i,j]        w the weights of softmax attention
//   level of a head = the lowest l with recovered(S_l) >= recovery, 4 if there is none
//     S_0 special tokens   S_1 = S_0 + punctuation   S_2 = S_1 + the share `frequent` of keys with the largest column
//     sums of w   S_3(i) = S_2 + the last `local` tokens before i, i included
//
// w of heads that share a kv head are averaged. Shares are of the text's length.
//
// Source   Ge et al. 2023, arXiv:2310.01801, sections 3.2 and 3.3, Algorithm 1 (recovery ratio T, hybrid policies in
//          ascending order of cost). The sums over S are exp(lse over S - lse over all): no T x T map.
// Cost     a forward of the text and five times the scores of its attention.
#include <functional>
#include <memory>
#include <span>

#include "attend/kv/head_gates.h"
#include "attend/lm/gated_model.h"

namespace attend {

struct FastGenOptions {
  double recovery = 0.95, local = 0.3, frequent = 0.3;
};

// Gates are levels / 4 (see the plan fastgen). Layers with a window of the model's own have none. Throws
// Error(kArgument) for options outside 0..1 and a text that is empty or beyond the model's context, Error(kCancelled).
HeadGates fit_fastgen(const std::shared_ptr<const LanguageModel>& model, std::span<const int32_t> ids,
                      const FastGenOptions& options, Context& context);

}  // namespace attend
