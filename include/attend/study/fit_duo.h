#pragma once
// Which kv heads of a model need their whole context: gates found by optimisation on passkey texts.
//
//   loss = mean over the asked tokens and the width of (h[i] - h'[i])^2  +  penalty * mean |gate|
//
// h are the model's output activations and h' those with gates (attend/lm/gated_model.h), all gates 1 at first and kept
// within 0 to 1. AdamW without decay (betas 0.9 and 0.999), one text a step; its rate rises over the first fifth of the
// steps from a tenth, and falls likewise over the last.
//
// Source   Xiao et al. 2024, arXiv:2410.10819, section 2.2 and appendix; means, schedule and questions as trained
//          tokens (not answers alone) as in the authors' code (mit-han-lab/duo-attention, train.py, loss.py).
// Cost     a step: four forwards of a text. Bits depend neither on threads nor on where it is cancelled.
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

#include "attend/kv/head_gates.h"
#include "attend/lm/gated_model.h"
#include "attend/study/passkeys.h"

namespace attend {

struct DuoFitOptions {
  int64_t sinks = 128, recent = 256;  // of streaming heads while fitting
  int64_t steps = 2000;
  double rate = 0.02, penalty = 0.05;
  int64_t min_length = 1000, max_length = 32000;  // tokens of a text; drawn evenly
  PasskeyOptions passkeys;
  uint64_t seed = 42;
};

struct DuoFitStep {
  int64_t step;     // from 1
  int64_t tokens;   // of its text
  double distance;  // the loss without the penalty
  double mean_gate;
};

// Throws Error(kArgument) for options out of range or lengths that the model's context or the passkeys don't fit,
// Error(kUnsupported) for a model without a layer that sees its whole context, Error(kCancelled).
HeadGates fit_duo(const std::shared_ptr<const LanguageModel>& model, std::string_view haystack,
                  const DuoFitOptions& options, Context& context,
                  const std::function<void(const DuoFitStep&)>& told = nullptr);

// The optimiser of the gates, by itself.
class GateOptimizer {
 public:
  GateOptimizer(size_t count, int64_t steps, double rate);

  // Of step 0, 1, ..
  double rate(int64_t step) const;

  // Moves gates against their gradients and keeps them within 0 to 1.
  void move(std::span<float> gates, std::span<const double> gradients);

 private:
  int64_t steps_, step_ = 0;
  double rate_;
  std::vector<double> mean_, square_;
};

}  // namespace attend
