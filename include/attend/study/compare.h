#pragma once
// The comparison protocol: the same tokens under several policies, each against the exact run.
//
// The first part of a text is the prompt, prefilled under the policy; the rest is forced one token a step under it. The
// first forced token is predicted by the prefill's last row. Exact means the same compute mode, store and codec with
// nothing dropped, a codec of quantised rows held against the mode's own codec; it runs in lockstep, outside of every
// timed span. A policy that is itself exact is the exact run of its codec: another would give the same bits. Several
// readings of one text are held against the exact run of the first's codec. Beyond the model's own context the exact
// run is `rope`, which is softmax attention of rotated queries and keys there, too.
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "attend/lm/ensemble.h"
#include "attend/study/kept.h"

namespace attend {

struct CompareOptions {
  int64_t prompt = 0;   // tokens; 0: floor(3n/4)
  int64_t chunk = 512;  // prompt tokens a step
  int64_t context = 0;  // most tokens a session may hold; 0: the model's own
  int64_t greedy = 0;   // tokens with which greedy decoding goes on after the prompt; the prompt is read twice for them
  bool kept = false;    // tell what each policy keeps of the prompt
};

struct PolicyResult {
  std::string policy;                // shortest form
  double prefill_s = 0;              // seconds
  double decode_tps = 0;             // forced tokens a second; 0 if none was timed
  int64_t kv_bytes = 0;              // most that the store held while decoding
  int64_t peak_bytes = 0;            // most that it ever held, the prompt's steps included
  double bytes_read = 0;             // bytes of visible keys and values a token, mean
  double nll = 0, kl = 0;            // nats, means over the forced tokens; kl = KL(exact || policy)
  double top1 = 0;                   // share of tokens whose most likely token is that of the exact run
  std::vector<float> nll_at, kl_at;  // of each forced token
  std::vector<int32_t> greedy;       // what greedy decoding adds to the prompt
  int64_t greedy_same = 0;           // how many of its tokens are those of the exact run before the first that differs
  bool greedy_differs = false;
  KeptMap kept;  // of the prompt, if asked for
};

struct Comparison {
  int64_t tokens = 0, prompt = 0;
  std::vector<float> exact_nll_at;  // of each forced token, under the first policy's codec
  std::vector<PolicyResult> rows;   // in the order of the policies
};

// At most 16 runs: the policies, and the exact runs that they lack. Cost: a run of each policy, and an exact run of
// each codec that has none among them. One row of logits a run is live. Throws Error(kArgument) for fewer than 2 tokens
// or a prompt that leaves none to force, and what Session throws.
Comparison compare_policies(const std::shared_ptr<const LanguageModel>& model, std::span<const int32_t> ids,
                            std::span<const Readings> policies, const Registry& registry, const CompareOptions& options,
                            Context& context);

// Policies that each read alone.
Comparison compare_policies(const std::shared_ptr<const LanguageModel>& model, std::span<const int32_t> ids,
                            std::span<const Policy> policies, const Registry& registry, const CompareOptions& options,
                            Context& context);

}  // namespace attend
