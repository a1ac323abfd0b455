#pragma once
// Guesses at how a text goes on, cheaper than the model that will judge them.
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "attend/lm/engine.h"

namespace attend {

class Drafter {
 public:
  virtual ~Drafter() = default;

  // Appends at most `most` tokens that may follow `text`, none where it has no guess. `text` is all that was read and
  // generated so far, so it tells what became of the last draft: the part that was accepted stands in it.
  virtual void propose(std::span<const int32_t> text, int64_t most, std::vector<int32_t>& draft, Context& context) = 0;
};

// Prompt lookup: the last n tokens of the text, else the last n - 1, .. 1, where they stood last before; what followed
// them there is the draft.
//
// Source   Saxena 2023, Prompt Lookup Decoding, github.com/apoorvumang/prompt-lookup-decoding. Differs: the newest
//          earlier place is taken, not the first.
// Cost     one pass over the text for each length tried
struct NgramOptions {
  int64_t n = 3;    // tokens that are looked up at most, 1..64
  int64_t max = 8;  // tokens of a draft, 1..1024
};
std::unique_ptr<Drafter> make_ngram_drafter(const NgramOptions& options);

// Of a spec, `ngram[:n=3,max=8]`. Throws Error(kSpec) naming what is wrong.
NgramOptions ngram_options(std::string_view spec);

// The likeliest tokens of a session of its own: of a smaller model, or of the same one under a policy that reads less.
// What it drafts is read on trial, so that any policy but one with a selector may draft. Drafts end where a retention
// of its policy acts, or its context ends.
//
// Throws Error(kSpec), naming the first token that differs, for a model with another vocabulary than `target`;
// Error(kUnsupported) for a selector, and what Session throws.
std::unique_ptr<Drafter> make_session_drafter(const LanguageModel& target, std::shared_ptr<const LanguageModel> model,
                                              const Policy& policy, const Registry& registry, int64_t context = 0);

}  // namespace attend
