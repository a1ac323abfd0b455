#pragma once
// Decoding several tokens a step: a drafter guesses, the model reads the guesses in one step, and those that it would
// have chosen itself stay.
//
//   draft  d[1..k] after the text and its next token t[0];  one step gives the logits after t[0], d[1], .., d[k]
//   t[i]   is chosen from the logits after t[i-1], by whatever chooses;  while t[i] = d[i], the next logits are there
//
// Lossless: logits are, bit for bit, those of Session::decode(), because a token's logits don't depend on the tokens
// that are read along with it. Whoever samples from them, greedily or at random, gets the text that it would get
// without a drafter from the same seed.
//
// Source   Leviathan et al. 2023, arXiv:2211.17192, algorithm 1. Differs: tokens are chosen from the model's logits
//          alone and compared with the draft, in place of rejection sampling, so that the text itself stays, not only
//          its distribution. A drafter that puts all its weight on one token, as these do, is accepted as often.
// Length   a draft of which all was accepted is followed by one twice as long, another by one that is longer by one
//          than what was accepted: where guesses fail, a step reads two tokens, which costs hardly more than one.
// Cost     a step for each draft, and that of the drafter
#include <cstdint>
#include <span>
#include <vector>

#include "attend/lm/drafter.h"

namespace attend {

class Speculation {
 public:
  // `session` and `drafter` must outlive it; `most`: tokens of a draft, 1..kOutputRows - 1. Between read() and settle()
  // the session belongs to it. Throws Error(kArgument); Error(kUnsupported) for a session whose policy has a selector.
  Speculation(Session& session, Drafter& drafter, int64_t most);

  // Told of tokens that the session has read by other calls, in order.
  void read(std::span<const int32_t> ids) { text_.insert(text_.end(), ids.begin(), ids.end()); }

  // As Session::decode().
  std::span<const float> decode(int32_t id, Context& context);

  // Takes back what was drafted and not asked for: the session stands where decode() left the text.
  void settle(Context& context);

  int64_t position() const;  // tokens that the session would hold after settle()

  struct Counts {
    int64_t steps = 0;     // of the model
    int64_t tokens = 0;    // that decode() was asked for
    int64_t drafted = 0;   // guesses that the model read
    int64_t accepted = 0;  // of these
    double tokens_a_step() const { return steps ? static_cast<double>(tokens) / static_cast<double>(steps) : 0; }
  };
  const Counts& counts() const { return counts_; }

 private:
  Session& session_;
  Drafter& drafter_;
  int64_t most_, length_;       // of any draft, of the next
  std::vector<int32_t> text_;   // that decode() was told of, and read()
  std::vector<int32_t> tried_;  // on trial
  std::vector<int32_t> draft_;
  int64_t asked_ = 0;  // of tried_
  View logits_;        // after each of tried_
  Counts counts_;
};

}  // namespace attend
