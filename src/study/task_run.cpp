#include "attend/study/task_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "attend/simd/isa.h"
#include "attend/simd/row_ops.h"
#include "attend/tensor/error.h"
#include "study/runs.h"

namespace attend {
namespace {

struct Ids {
  std::vector<int32_t> all;
  size_t prompt = 0;  // how many of them
  size_t read = 0;    // and how many of these are read at once, the rest one by one
};

size_t alike(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  return static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

// The prompt is what encoding the whole and encoding the prompt alone begin with alike: a token may reach across. The
// same holds for what is read at once.
Ids encode(const Tokenizer& tokenizer, const TaskSample& sample, bool late_question) {
  Ids ids{.all = tokenizer.encode(sample.prompt + sample.answer)};
  ids.prompt = std::min(alike(ids.all, tokenizer.encode(sample.prompt)), ids.all.size() - 1);
  ids.read = ids.prompt;
  if (late_question)
    ids.read =
        std::clamp<size_t>(alike(ids.all, tokenizer.encode(sample.prompt.substr(0, sample.question))), 1, ids.prompt);
  return ids;
}

// One policy's session, and what it costs to ask it.
class Asker {
 public:
  Asker(Ensemble session, const Readings& policy) : session_(std::move(session)), selects_(selects(policy)) {}

  Ensemble& session() { return session_; }

  // Reads a prompt up to its question, or whole.
  void read(const Ids& ids, int64_t chunk, TaskRow& row, Context& context) {
    session_.clear();
    const Clock::time_point begin = Clock::now();
    session_.prefill(std::span(ids.all).first(ids.read), chunk, Outputs::kLast, nullptr, context);
    prefill_ += Clock::now() - begin;
    row.kv_bytes = std::max(row.kv_bytes, session_.bytes());
  }

  // Reads the rest of the prompt and forces the answer.
  TaskScore force(const Ids& ids, TaskRow& row, const RowOps& ops, Context& context) {
    read_question(ids, row, context);
    std::span<const float> logits = session_.last_logits();
    TaskScore score{.exact = 1};
    for (size_t j = ids.prompt;; ++j) {
      const int64_t vocabulary = static_cast<int64_t>(logits.size());
      score.nll += ops.log_sum_exp(logits.data(), vocabulary) - logits[static_cast<size_t>(ids.all[j])];
      if (ops.largest(logits.data(), vocabulary) != ids.all[j]) score.exact = 0;
      if (j + 1 == ids.all.size()) break;
      logits = step(ids.all[j], row, context);
    }
    row.peak_bytes = std::max(row.peak_bytes, session_.peak_bytes());
    score.nll /= static_cast<double>(ids.all.size() - ids.prompt);
    return score;
  }

  // Greedy decoding's answer, the prompt read anew; this counts for nothing.
  std::string answer(const Ids& ids, int64_t tokens, int64_t chunk, const Tokenizer& tokenizer, const RowOps& ops,
                     Context& context) {
    session_.clear();
    session_.prefill(std::span(ids.all).first(ids.read), chunk, Outputs::kLast, nullptr, context);
    for (size_t j = ids.read; j < ids.prompt; ++j) (void)session_.decode(ids.all[j], context);
    std::string text;
    for (int32_t id : greedy_tokens(session_, tokens, tokenizer, ops, context)) text += tokenizer.piece(id, false);
    return text;
  }

  void finish(TaskRow& row) const {
    row.prefill_s = seconds(prefill_);
    if (steps_ == 0) return;
    row.decode_tps = static_cast<double>(steps_) / seconds(decode_);
    row.bytes_read /= static_cast<double>(steps_);
  }

 private:
  void read_question(const Ids& ids, TaskRow& row, Context& context) {
    for (size_t j = ids.read; j < ids.prompt; ++j) (void)step(ids.all[j], row, context);
  }

  std::span<const float> step(int32_t id, TaskRow& row, Context& context) {
    const int64_t before = session_.bytes_read_next();
    const Clock::time_point begin = Clock::now();
    const std::span<const float> logits = session_.decode(id, context);
    decode_ += Clock::now() - begin;
    ++steps_;
    row.bytes_read += static_cast<double>(selects_ ? session_.bytes_read_next() : before);
    return logits;
  }

  Ensemble session_;
  bool selects_;
  Clock::duration prefill_{}, decode_{};
  int64_t steps_ = 0;
};

void check(const TaskRunOptions& options, size_t policies) {
  auto refuse = [](std::string_view argument, const std::string& got, std::string_view rule) {
    throw Error(ErrorKind::kArgument, "tasks", argument, got, rule);
  };
  if (policies < 1 || policies > kMostRuns)
    refuse("policies", std::to_string(policies), fmt::format("must be 1 to {}", kMostRuns));
  if (options.tasks.empty()) refuse("tasks", "none", "must be at least one");
  if (options.lengths.empty()) refuse("lengths", "none", "must be at least one");
  if (options.samples < 1) refuse("samples", std::to_string(options.samples), "must be at least 1");
  for (double depth : options.depths)
    if (!(depth >= 0 && depth <= 100)) refuse("depth", fmt::format("{}", depth), "must be 0 to 100");
}

std::vector<TaskCell> make_cells(const TaskRunOptions& options) {
  std::vector<TaskCell> cells;
  for (const Task* task : options.tasks)
    for (int64_t length : options.lengths)
      if (task->at_depth && !options.depths.empty())
        for (double depth : options.depths) cells.push_back({task, length, depth, options.samples});
      else
        cells.push_back({task, length, -1, options.samples});
  return cells;
}

size_t example_cell(const std::vector<TaskCell>& cells) {
  size_t best = 0;
  auto rank = [](const TaskCell& cell) { return std::pair(cell.length, std::abs(cell.depth - 50)); };
  for (size_t i = 1; i < cells.size(); ++i)
    if (cells[i].task == cells[0].task && rank(cells[i]) < rank(cells[best])) best = i;
  return best;
}

}  // namespace

uint64_t task_seed(uint64_t seed, int64_t length, int64_t number) {
  uint64_t x = seed;
  for (uint64_t part : {static_cast<uint64_t>(length), static_cast<uint64_t>(number)}) {  // splitmix64
    x += part + 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    x ^= x >> 31;
  }
  return x;
}

TaskComparison run_tasks(const std::shared_ptr<const LanguageModel>& model, std::span<const Readings> policies,
                         const Registry& registry, const TaskRunOptions& options, Context& context) {
  check(options, policies.size());
  TaskComparison result;
  result.cells = make_cells(options);
  std::vector<Asker> askers;
  for (const Readings& policy : policies) {
    askers.emplace_back(Ensemble(model, policy, registry, options.context), policy);
    result.rows.push_back({.policy = to_string(policy, registry), .cells = {}, .all = {}});
    for (int64_t length : options.lengths)
      if (length > askers.back().session().context())
        throw Error(ErrorKind::kArgument, "tasks", "length", std::to_string(length),
                    fmt::format("the context holds {}", askers.back().session().context()));
  }
  const Tokenizer& tokenizer = model->tokenizer();
  const RowOps& ops = row_ops(active_isa(context));
  Whole whole(context);
  for (const TaskCell& cell : result.cells)
    whole.total += cell.length * cell.samples * static_cast<int64_t>(policies.size());

  result.example.cell = example_cell(result.cells);
  for (size_t c = 0; c < result.cells.size(); ++c) {
    const TaskCell& cell = result.cells[c];
    std::vector<TaskScore> sums(policies.size());
    whole.what = fmt::format("{} in {} tokens", cell.task->name, cell.length);
    for (int64_t number = 0; number < cell.samples; ++number) {
      context.throw_if_stopped();
      const TaskSample sample = draw_task(*cell.task,
                                          {.length = cell.length,
                                           .depth = cell.depth,
                                           .seed = task_seed(options.seed, cell.length, number),
                                           .essay = options.essay},
                                          tokenizer);
      const Ids ids = encode(tokenizer, sample, options.late_question);
      const bool shown = options.kept && c == result.example.cell && number == 0;
      if (shown) {
        result.example.prompt.assign(ids.all.begin(), ids.all.begin() + static_cast<std::ptrdiff_t>(ids.read));
        result.example.targets = sample.targets;
      }
      ++result.samples;
      result.prompt_tokens += static_cast<int64_t>(ids.prompt);
      result.answer_tokens += static_cast<int64_t>(ids.all.size() - ids.prompt);
      for (size_t p = 0; p < policies.size(); ++p, whole.done += cell.length) {
        Asker& asker = askers[p];
        TaskRow& row = result.rows[p];
        asker.read(ids, options.chunk, row, context);
        if (shown) row.kept = kept_map(asker.session(), model->graph());
        TaskScore score = asker.force(ids, row, ops, context);
        if (!options.generate)
          score.match = std::numeric_limits<double>::quiet_NaN();
        else if (score.exact == 1)
          score.match = 1;
        else
          score.match = string_match(asker.answer(ids, cell.task->answer, options.chunk, tokenizer, ops, context),
                                     sample.targets);
        sums[p].nll += score.nll;
        sums[p].exact += score.exact;
        sums[p].match += score.match;
      }
    }
    const double n = static_cast<double>(cell.samples), share = 1 / static_cast<double>(result.cells.size());
    for (size_t p = 0; p < policies.size(); ++p) {
      const TaskScore mean{.nll = sums[p].nll / n, .exact = sums[p].exact / n, .match = sums[p].match / n};
      TaskRow& row = result.rows[p];
      row.cells.push_back(mean);
      row.all.nll += mean.nll * share;
      row.all.exact += mean.exact * share;
      row.all.match += mean.match * share;
    }
  }
  for (size_t p = 0; p < policies.size(); ++p) askers[p].finish(result.rows[p]);
  return result;
}

}  // namespace attend
