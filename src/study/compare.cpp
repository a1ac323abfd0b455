#include "attend/study/compare.h"

#include <fmt/format.h>

#include <algorithm>

#include "attend/simd/isa.h"
#include "attend/simd/row_ops.h"
#include "attend/tensor/error.h"
#include "study/runs.h"

namespace attend {
namespace {

struct Run {
  Ensemble session;
  std::span<const float> logits;
  double lse = 0;
  int64_t top = 0;
  Clock::duration prefill{}, decode{};
};

void prefill(Run& run, std::span<const int32_t> ids, int64_t chunk, Context& context) {
  const Clock::time_point begin = Clock::now();
  run.session.clear();
  run.session.prefill(ids, chunk, Outputs::kLast, nullptr, context);
  run.prefill = Clock::now() - begin;
  run.logits = run.session.last_logits();
}

void step(Run& run, int32_t id, Context& context) {
  const Clock::time_point begin = Clock::now();
  run.logits = run.session.decode(id, context);
  run.decode += Clock::now() - begin;
}

// Where a continuation leaves that of the exact run.
void compare_greedy(PolicyResult& row, const std::vector<int32_t>& exact) {
  const auto differ = std::mismatch(row.greedy.begin(), row.greedy.end(), exact.begin(), exact.end());
  row.greedy_same = differ.first - row.greedy.begin();
  row.greedy_differs = differ.first != row.greedy.end() || differ.second != exact.end();
}

}  // namespace

Comparison compare_policies(const std::shared_ptr<const LanguageModel>& model, std::span<const int32_t> ids,
                            std::span<const Readings> policies, const Registry& registry, const CompareOptions& options,
                            Context& context) {
  const int64_t n = static_cast<int64_t>(ids.size());
  if (policies.empty() || policies.size() > kMostRuns)
    throw Error(ErrorKind::kArgument, "compare", "policies", std::to_string(policies.size()),
                fmt::format("must be 1 to {}", kMostRuns));
  if (options.greedy < 0)
    throw Error(ErrorKind::kArgument, "compare", "greedy", std::to_string(options.greedy), "must be at least 0");
  const int64_t prompt = options.prompt > 0 ? options.prompt : n * 3 / 4;
  if (prompt < 1 || prompt >= n)
    throw Error(ErrorKind::kArgument, "compare", "tokens", std::to_string(n),
                prompt >= n && options.prompt > 0 ? fmt::format("a prompt of {} leaves none to force", prompt)
                                                  : "must be at least 2");

  // Runs of the policies come first; truth[p] is the run that policy p is held against.
  Comparison result{.tokens = n, .prompt = prompt, .exact_nll_at = {}, .rows = {}};
  std::vector<std::string> names;
  std::vector<Readings> to_run(policies.begin(), policies.end());
  for (const Readings& policy : policies) {
    names.push_back(to_string(policy, registry));
    result.rows.push_back({});
    result.rows.back().policy = names.back();
  }
  std::vector<size_t> truth;
  for (const Readings& policy : policies) {
    Readings exact = {exact_policy(policy.front(), model->compute(), registry)};
    if (options.context > model->graph().context) exact.front()[Kind::kMechanism] = registry.complete(Spec{"rope", {}});
    const std::string name = to_string(exact, registry);
    const auto found = std::find(names.begin(), names.end(), name);
    truth.push_back(static_cast<size_t>(found - names.begin()));
    if (found != names.end()) continue;
    names.push_back(name);
    to_run.push_back(exact);
  }
  if (to_run.size() > kMostRuns)
    throw Error(ErrorKind::kArgument, "compare", "policies", std::to_string(policies.size()),
                fmt::format("must leave room for {} exact runs among {}", to_run.size() - policies.size(), kMostRuns));
  std::vector<Run> runs;
  runs.reserve(to_run.size());
  for (const Readings& policy : to_run) runs.push_back({Ensemble(model, policy, registry, options.context), {}});

  const std::span<const int32_t> first = ids.first(static_cast<size_t>(prompt));
  Whole whole(context);
  auto read_prompt = [&](auto&& then) {
    whole.what = "reading the prompt";
    whole.done = 0;
    whole.total = static_cast<int64_t>(runs.size()) * prompt;
    for (size_t r = 0; r < runs.size(); ++r, whole.done += prompt) {
      prefill(runs[r], first, options.chunk, context);
      then(r);
    }
  };
  read_prompt([&](size_t r) {
    if (options.kept && r < policies.size()) result.rows[r].kept = kept_map(runs[r].session, model->graph());
  });

  const RowOps& ops = row_ops(active_isa(context));
  const int64_t vocabulary = model->graph().vocabulary;
  whole.what = "forcing tokens";
  whole.done = 0;
  whole.total = n - prompt;
  for (int64_t j = prompt; j < n; ++j, ++whole.done) {
    const int32_t id = ids[static_cast<size_t>(j)];
    if (id < 0 || id >= vocabulary)
      throw Error(ErrorKind::kArgument, "compare", "token id", std::to_string(id),
                  fmt::format("the vocabulary has 0 to {}", vocabulary - 1));
    for (Run& run : runs) {
      run.lse = ops.log_sum_exp(run.logits.data(), vocabulary);
      run.top = ops.largest(run.logits.data(), vocabulary);
    }
    for (size_t p = 0; p < policies.size(); ++p) {
      const Run &run = runs[p], &exact = runs[truth[p]];
      PolicyResult& row = result.rows[p];
      row.nll_at.push_back(static_cast<float>(run.lse - run.logits[static_cast<size_t>(id)]));
      row.kl_at.push_back(
          static_cast<float>(ops.divergence(exact.logits.data(), exact.lse, run.logits.data(), run.lse, vocabulary)));
      row.top1 += run.top == exact.top;
      row.kv_bytes = std::max(row.kv_bytes, run.session.bytes());
    }
    const Run& exact = runs[truth[0]];
    result.exact_nll_at.push_back(static_cast<float>(exact.lse - exact.logits[static_cast<size_t>(id)]));
    whole.tell(1);
    if (j + 1 == n) break;
    auto count_reads = [&](bool after) {
      for (size_t p = 0; p < policies.size(); ++p)
        if (selects(policies[p]) == after)
          result.rows[p].bytes_read += static_cast<double>(runs[p].session.bytes_read_next());
    };
    count_reads(false);
    for (Run& run : runs) step(run, id, context);
    count_reads(true);
  }

  const double forced = static_cast<double>(n - prompt);
  for (size_t p = 0; p < policies.size(); ++p) {
    PolicyResult& row = result.rows[p];
    for (float x : row.nll_at) row.nll += x / forced;
    for (float x : row.kl_at) row.kl += x / forced;
    row.top1 /= forced;
    row.prefill_s = seconds(runs[p].prefill);
    if (n - prompt > 1) {
      row.decode_tps = (forced - 1) / seconds(runs[p].decode);
      row.bytes_read /= forced - 1;
    } else {
      row.bytes_read = static_cast<double>(runs[p].session.bytes_read_next());
    }
    row.kv_bytes = std::max(row.kv_bytes, runs[p].session.bytes());
    row.peak_bytes = runs[p].session.peak_bytes();
  }
  if (options.greedy == 0) return result;
  std::vector<std::vector<int32_t>> greedy(runs.size());
  read_prompt(
      [&](size_t r) { greedy[r] = greedy_tokens(runs[r].session, options.greedy, model->tokenizer(), ops, context); });
  for (size_t p = 0; p < policies.size(); ++p) {
    result.rows[p].greedy = greedy[p];
    compare_greedy(result.rows[p], greedy[truth[p]]);
  }
  return result;
}

Comparison compare_policies(const std::shared_ptr<const LanguageModel>& model, std::span<const int32_t> ids,
                            std::span<const Policy> policies, const Registry& registry, const CompareOptions& options,
                            Context& context) {
  std::vector<Readings> alone;
  for (const Policy& policy : policies) alone.push_back({policy});
  return compare_policies(model, ids, std::span<const Readings>(alone), registry, options, context);
}

}  // namespace attend
