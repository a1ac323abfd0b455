#include "drafting.h"

#include <fmt/format.h>

#include <algorithm>

namespace attend::app {

void declare_draft(Options& options, DraftOptions& draft) {
  options.group("Drafts: several tokens a step, the same text");
  options.text("--draft SPEC", draft.spec, "draft what followed the text's last words before: ngram[:n=3,max=8]");
  options.text("--draft-model MODEL", draft.model, "draft with another model of the same vocabulary");
  options.text("--draft-policy SPECS", draft.policy,
               "draft under another policy, with the same model unless --draft-model names one, e.g. "
               "\"softmax:window=512,sinks=4 + q4_0\"");
  options.integer("--draft-tokens N", draft.tokens, 1, kOutputRows - 1, "most tokens of a draft (default: 8)");
}

void check_draft(const DraftOptions& draft) {
  if (!draft.spec.empty() && draft.has_session())
    throw UsageError("--draft takes the text as it stands: leave out --draft-model and --draft-policy");
  if (!draft.spec.empty()) (void)ngram_options(draft.spec);
  if (!draft.policy.empty()) (void)registry().policy(draft.policy);
}

std::unique_ptr<Drafter> make_drafter(const DraftOptions& draft, const std::shared_ptr<const LanguageModel>& target,
                                      const ModelOptions& options, int64_t limit, Context& context) {
  if (!draft.spec.empty()) return make_ngram_drafter(ngram_options(draft.spec));
  std::shared_ptr<const LanguageModel> model = target;
  if (!draft.model.empty()) {
    ModelOptions other = options;
    other.model = draft.model;
    model = load_model(other, context);
  }
  const Policy policy = model_policy(draft.policy.empty() ? "softmax" : draft.policy, model->compute(), registry());
  return make_session_drafter(*target, model, policy, registry(), std::min(limit, model->graph().context));
}

std::string draft_summary(const Speculation::Counts& counts) {
  return fmt::format("; drafts: {:.2f} tokens a step, {} of {} accepted", counts.tokens_a_step(), counts.accepted,
                     counts.drafted);
}

Json draft_json(const Speculation::Counts& counts) {
  return {{"steps", counts.steps},
          {"tokens", counts.tokens},
          {"drafted", counts.drafted},
          {"accepted", counts.accepted},
          {"tokens_a_step", counts.tokens_a_step()}};
}

}  // namespace attend::app
