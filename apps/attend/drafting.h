#pragma once
// Speculative decoding on the command line.
#include <memory>
#include <string>

#include "attend/lm/speculation.h"
#include "json.h"
#include "model_options.h"

namespace attend::app {

struct DraftOptions {
  std::string spec, model, policy;
  int64_t tokens = 8;

  bool any() const { return !(spec + model + policy).empty(); }
  bool has_session() const { return !(model + policy).empty(); }
};

void declare_draft(Options& options, DraftOptions& draft);

// Throws UsageError or Error(kSpec) for what no model could do.
void check_draft(const DraftOptions& draft);

// The drafter that was asked for, of a model that is loaded if it is another.
std::unique_ptr<Drafter> make_drafter(const DraftOptions& draft, const std::shared_ptr<const LanguageModel>& target,
                                      const ModelOptions& options, int64_t limit, Context& context);

std::string draft_summary(const Speculation::Counts& counts);
Json draft_json(const Speculation::Counts& counts);

}  // namespace attend::app
