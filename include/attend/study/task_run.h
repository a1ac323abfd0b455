#pragma once
// Tasks under several policies: the same samples for each.
//
// A sample's prompt is prefilled under the policy, then the right answer is forced one token a step: its mean negative
// log-likelihood tells policies apart long before a small model answers right. Greedy decoding gives the whole answer
// exactly if each of its tokens is the most likely one on the way, so that is read off the same pass. RULER's own score
// needs a generated text; where greedy decoding already gave the answer, that is known, else the prompt is read again.
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "attend/lm/ensemble.h"
#include "attend/study/kept.h"
#include "attend/study/task.h"

namespace attend {

struct TaskRunOptions {
  std::vector<const Task*> tasks;
  std::vector<int64_t> lengths = {4096};  // tokens
  std::vector<double> depths = {};        // percent, for tasks that have one; none: drawn
  int64_t samples = 1;                    // of each task, length and depth
  uint64_t seed = 0;
  std::string_view essay = {};
  bool generate = false;  // RULER's score too
  // The prompt ends before its question, which is then decoded one token a step, the answer after it: what stays is
  // chosen without knowing what will be asked. Else the prompt is the whole, as in RULER.
  bool late_question = false;
  bool kept = false;    // tell what each policy keeps of one prompt
  int64_t chunk = 512;  // prompt tokens a step
  int64_t context = 0;  // most tokens a session may hold; 0: the model's own
};

// Means over samples.
struct TaskScore {
  double nll = 0;    // nats a token of the right answer
  double exact = 0;  // share of samples whose right answer greedy decoding gives, token by token
  double match = 0;  // RULER's string_match_all of what greedy decoding gives; NaN unless generated
};

struct TaskCell {
  const Task* task;
  int64_t length;
  double depth;  // below 0: drawn
  int64_t samples;
};

struct TaskRow {
  std::string policy;
  std::vector<TaskScore> cells;  // of each TaskComparison::cells
  TaskScore all;                 // over all samples
  double prefill_s = 0;          // seconds, of all prompts
  double decode_tps = 0;         // forced tokens a second; 0 if none was timed
  int64_t kv_bytes = 0;          // most that the store held after a prompt
  int64_t peak_bytes = 0;        // most that it ever held
  double bytes_read = 0;         // bytes of visible keys and values a forced token, mean
  KeptMap kept = {};             // of TaskComparison::example
};

// One sample of the run: the first of the first task, at its shortest length and the depth nearest to 50.
struct TaskExample {
  size_t cell = 0;
  std::vector<int32_t> prompt;
  std::vector<std::string> targets;
};

struct TaskComparison {
  int64_t samples = 0, prompt_tokens = 0, answer_tokens = 0;
  std::vector<TaskCell> cells;
  std::vector<TaskRow> rows;  // in the order of the policies
  TaskExample example;        // if asked for
};

// The seed of a sample, from 0 on, of a length: the same question at every depth.
uint64_t task_seed(uint64_t seed, int64_t length, int64_t sample);

// Samples are those of draw_task under task_seed. At most 16 policies. Throws Error(kArgument) for options out of
// range, before anything is run, and what draw_task and Session throw.
TaskComparison run_tasks(const std::shared_ptr<const LanguageModel>& model, std::span<const Readings> policies,
                         const Registry& registry, const TaskRunOptions& options, Context& context);

}  // namespace attend
