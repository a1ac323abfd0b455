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

struct Run {
  Ensemble session;
  Clock::duration prefill{}, decode{};
  int64_t steps = 0;
};

struct Ids {
  std::vector<int32_t> all;
  size_t prompt = 0;
};

// The prompt is what encoding the whole and encoding the prompt alone begin with alike: a token may reach across.
Ids encode(const Tokenizer& tokenizer, const TaskSample& sample) {
  Ids ids{.all = tokenizer.encode(sample.prompt + sample.answer)};
  const std::vector<int32_t> alone = tokenizer.encode(sample.prompt);
  const auto differ = std::mismatch(alone.begin(), alone.end(), ids.all.begin(), ids.all.end()).first;
  ids.prompt = std::min(static_cast<size_t>(differ - alone.begin()), ids.all.size() - 1);
  return ids;
}

void prefill(Run& run, std::span<const int32_t> ids, int64_t chunk, Context& context) {
  run.session.clear();
  run.session.prefill(ids, chunk, Outputs::kLast, nullptr, context);
}

std::string generate(Run& run, int64_t tokens, const Tokenizer& tokenizer, const RowOps& ops, Context& context) {
  std::string text;
  for (int32_t id : greedy_tokens(run.session, tokens, tokenizer, ops, context)) text += tokenizer.piece(id, false);
  return text;
}

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
  std::vector<Run> runs;
  for (const Readings& policy : policies) {
    runs.push_back({.session = Ensemble(model, policy, registry, options.context)});
    result.rows.push_back({.policy = to_string(policy, registry), .cells = {}, .all = {}});
    for (int64_t length : options.lengths)
      if (length > runs.back().session.context())
        throw Error(ErrorKind::kArgument, "tasks", "length", std::to_string(length),
                    fmt::format("the context holds {}", runs.back().session.context()));
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
      const Ids ids = encode(tokenizer, sample);
      const std::span<const int32_t> prompt(ids.all.data(), ids.prompt);
      const int64_t answer = static_cast<int64_t>(ids.all.size() - ids.prompt);
      const bool shown = options.kept && c == result.example.cell && number == 0;
      if (shown) {
        result.example.prompt.assign(prompt.begin(), prompt.end());
        result.example.targets = sample.targets;
      }
      ++result.samples;
      result.prompt_tokens += static_cast<int64_t>(prompt.size());
      result.answer_tokens += answer;
      for (size_t p = 0; p < policies.size(); ++p) {
        Run& run = runs[p];
        TaskRow& row = result.rows[p];
        Clock::time_point begin = Clock::now();
        prefill(run, prompt, options.chunk, context);
        run.prefill += Clock::now() - begin;
        row.kv_bytes = std::max(row.kv_bytes, run.session.bytes());
        if (shown) row.kept = kept_map(run.session, model->graph());
        std::span<const float> logits = run.session.last_logits();
        double nll = 0;
        bool exact = true;
        for (size_t j = ids.prompt; j < ids.all.size(); ++j) {
          const int64_t vocabulary = static_cast<int64_t>(logits.size());
          nll += ops.log_sum_exp(logits.data(), vocabulary) - logits[static_cast<size_t>(ids.all[j])];
          exact &= ops.largest(logits.data(), vocabulary) == ids.all[j];
          if (j + 1 == ids.all.size()) break;
          row.bytes_read += static_cast<double>(run.session.bytes_read_next());
          begin = Clock::now();
          logits = run.session.decode(ids.all[j], context);
          run.decode += Clock::now() - begin;
          ++run.steps;
        }
        row.peak_bytes = std::max(row.peak_bytes, run.session.peak_bytes());
        sums[p].nll += nll / static_cast<double>(answer);
        sums[p].exact += exact;
        if (options.generate && !exact) {
          prefill(run, prompt, options.chunk, context);
          sums[p].match += string_match(generate(run, cell.task->answer, tokenizer, ops, context), sample.targets);
        } else if (options.generate) {
          sums[p].match += 1;
        } else {
          sums[p].match = std::numeric_limits<double>::quiet_NaN();
        }
        whole.done += cell.length;
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
  for (size_t p = 0; p < policies.size(); ++p) {
    TaskRow& row = result.rows[p];
    row.prefill_s = seconds(runs[p].prefill);
    if (runs[p].steps == 0) continue;
    row.decode_tps = static_cast<double>(runs[p].steps) / seconds(runs[p].decode);
    row.bytes_read /= static_cast<double>(runs[p].steps);
  }
  return result;
}

}  // namespace attend
