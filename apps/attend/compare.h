#pragma once
// What the forms of `attend compare` share.
#include <span>
#include <string>
#include <vector>

#include "attend/lm/ensemble.h"
#include "attend/report/page.h"
#include "model_options.h"

namespace attend::app {

struct CompareCommand {
  ModelOptions model;
  std::string text, policies, html;
  int64_t prompt = 0, greedy = 0;
  bool json = false;
  // Tasks
  std::string tasks, lengths = "1024,2048,4096", depths = "0,25,50,75,100";
  int64_t samples = 1, seed = 0;
  bool generate = false, late_question = false;
};

// Policies of a loaded model, in the order of --policies.
std::vector<Readings> compared_policies(const CompareCommand& options, const LanguageModel& model);

// What each policy holds of a prompt, drawn for those that drop some of it; the first place of each marked text stands
// out.
struct KeptRow {
  std::string policy;
  const KeptMap& kept;
};
void add_kept(Page& page, const std::string& heading, const std::vector<KeptRow>& rows, std::span<const int32_t> prompt,
              const std::vector<std::string>& marked, const Tokenizer& tokenizer);

// The last section of a page: the command that gives it again, and what ran it.
void add_command(Page& page, const std::string& command, const CompareCommand& options, const Context& context);

int run_task_comparison(const CompareCommand& options);

}  // namespace attend::app
