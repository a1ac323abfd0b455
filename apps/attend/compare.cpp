#include "compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "attend/report/table.h"
#include "attend/simd/isa.h"
#include "attend/study/compare.h"
#include "attend/tensor/spec.h"
#include "json.h"
#include "terminal.h"

namespace attend::app {
namespace {

Table result_table(const Comparison& comparison, int64_t greedy) {
  std::vector<Column> columns = {
      {.title = "policy", .left = true},
      {.title = "prefill", .better = Better::kLower, .help = "seconds to read the prompt"},
      {.title = "decode", .better = Better::kHigher, .help = "forced tokens a second"},
      {.title = "KV held", .better = Better::kLower, .help = "most memory of keys and values while decoding"},
      {.title = "KV peak", .better = Better::kLower, .help = "the same at any time, the prompt's steps included"},
      {.title = "read/token", .better = Better::kLower, .help = "keys and values that a token sees, mean"},
      {.title = "NLL", .better = Better::kLower, .help = "mean negative log-likelihood of the text, nats"},
      {.title = "KL", .better = Better::kLower, .help = "mean KL(exact || policy), nats"},
      {.title = "top-1", .better = Better::kHigher, .help = "most likely token as in the exact run"}};
  if (greedy > 0)
    columns.push_back({.title = "same text",
                       .better = Better::kHigher,
                       .help =
                           "tokens that greedy decoding adds to the prompt before the first that the exact run does "
                           "not"});
  Table table(columns);
  for (const PolicyResult& row : comparison.rows) {
    std::vector<Cell> cells = {row.policy,
                               {fmt::format("{:.2f} s", row.prefill_s), row.prefill_s},
                               {fmt::format("{:.1f} tok/s", row.decode_tps), row.decode_tps},
                               {bytes_text(row.kv_bytes), static_cast<double>(row.kv_bytes)},
                               {bytes_text(row.peak_bytes), static_cast<double>(row.peak_bytes)},
                               {bytes_text(static_cast<int64_t>(row.bytes_read)), row.bytes_read},
                               {fmt::format("{:.4f}", row.nll), row.nll},
                               {number_text(row.kl), row.kl},
                               {fmt::format("{:.1f} %", 100 * row.top1), row.top1}};
    if (greedy > 0)
      cells.push_back({fmt::format("{} tok{}", row.greedy_same, row.greedy_differs ? "" : ", all"),
                       static_cast<double>(row.greedy_same)});
    table.row(std::move(cells));
  }
  return table;
}

Json result_json(const Comparison& comparison, const CompareCommand& options) {
  Json rows = Json::array();
  for (const PolicyResult& row : comparison.rows) {
    rows.push_back({{"policy", row.policy},
                    {"prefill_s", row.prefill_s},
                    {"decode_tps", row.decode_tps},
                    {"kv_bytes", row.kv_bytes},
                    {"peak_kv_bytes", row.peak_bytes},
                    {"bytes_read_per_token", row.bytes_read},
                    {"nll", row.nll},
                    {"kl", row.kl},
                    {"top1", row.top1}});
    if (options.greedy == 0) continue;
    rows.back()["greedy_same_tokens"] = row.greedy_same;
    rows.back()["greedy_differs"] = row.greedy_differs;
    rows.back()["greedy_tokens"] = row.greedy;
  }
  return {{"model", options.model.model}, {"tokens", comparison.tokens}, {"prompt", comparison.prompt}, {"rows", rows}};
}

void add_greedy(Page& page, const Comparison& comparison, const Tokenizer& tokenizer) {
  page.heading("Greedy continuations of the prompt");
  for (const PolicyResult& row : comparison.rows) {
    std::string same, rest;
    for (size_t i = 0; i < row.greedy.size(); ++i)
      (static_cast<int64_t>(i) < row.greedy_same ? same : rest) += tokenizer.piece(row.greedy[i], false);
    page.text(row.policy + (row.greedy_differs ? fmt::format(": {} tokens like the exact run, then", row.greedy_same)
                                               : std::string(": like the exact run")));
    page.preformatted(row.greedy_differs ? same + "\u2503" + rest : same);
  }
}

std::string page(const CompareCommand& options, const Comparison& comparison, std::span<const int32_t> ids,
                 const LanguageModel& model, const Context& context) {
  Page page("Attention policies compared",
            fmt::format("{} over {} tokens of {}: a prompt of {}, then {} forced tokens. {} threads, {}.",
                        model.graph().name, comparison.tokens, options.text, comparison.prompt,
                        comparison.tokens - comparison.prompt, context.threads, name_of(active_isa(context))));
  page.table(result_table(comparison, options.greedy));
  page.text(
      "KL and top-1 are against an exact run in the same compute mode and codec (of a quantised one in the "
      "default codec) "
      "with nothing dropped. Times are of the policy's own run; the exact run goes in lockstep, untimed.");
  const int64_t window = std::clamp<int64_t>((comparison.tokens - comparison.prompt) / 20, 1, 128);
  Chart nll{.title = "Negative log-likelihood along the text",
            .x_label = "token",
            .y_label = "NLL, nats",
            .series = {},
            .caption = fmt::format("Mean of the last {} tokens; lower is better.", window)};
  Chart kl{.title = "Distance from the exact run along the text",
           .x_label = "token",
           .y_label = "KL, nats",
           .series = {},
           .caption = fmt::format("KL(exact || policy), mean of the last {} tokens; lower is better.", window)};
  Chart held{.title = "Quality against memory",
             .x_label = "MB of keys and values held",
             .y_label = "NLL, nats",
             .series = {},
             .caption = "Lower and further left is better."};
  Chart read{.title = "Quality against what a token reads",
             .x_label = "MB of keys and values a token",
             .y_label = "KL, nats",
             .series = {},
             .caption = "Lower and further left is better."};
  for (const PolicyResult& row : comparison.rows) {
    nll.series.push_back({row.policy, moving_mean(row.nll_at, comparison.prompt, window)});
    kl.series.push_back({row.policy, moving_mean(row.kl_at, comparison.prompt, window)});
    held.series.push_back({row.policy, {{static_cast<double>(row.kv_bytes) / 1e6, row.nll}}, true});
    read.series.push_back({row.policy, {{row.bytes_read / 1e6, row.kl}}, true});
  }
  for (const Chart* chart : {&nll, &kl, &held, &read}) page.chart(*chart);
  std::vector<KeptRow> kept;
  for (const PolicyResult& row : comparison.rows) kept.push_back({row.policy, row.kept});
  add_kept(page, "Tokens held after the prompt", kept, ids.first(static_cast<size_t>(comparison.prompt)), {},
           model.tokenizer());
  if (options.greedy > 0) add_greedy(page, comparison, model.tokenizer());
  add_command(page,
              fmt::format("attend compare -m {} -f {} --policies \"{}\" --prompt {}{}", options.model.model,
                          options.text, options.policies, comparison.prompt,
                          options.greedy > 0 ? fmt::format(" --greedy {}", options.greedy) : ""),
              options, context);
  return page.html();
}

int run_text_comparison(const CompareCommand& options) {
  ProgressBar bar;
  Context context = make_context(options.model.threads, &bar);
  const std::string text = require_text(read_text(options.text), options.text);
  const auto model = load_model(options.model, context);
  const std::vector<int32_t> ids = model->tokenizer().encode(text);
  const Comparison comparison = compare_policies(model, ids, compared_policies(options, *model), registry(),
                                                 {.prompt = options.prompt,
                                                  .chunk = options.model.chunk,
                                                  .context = options.model.context,
                                                  .greedy = options.greedy,
                                                  .kept = !options.html.empty()},
                                                 context);
  bar.wipe();
  if (!options.html.empty()) write_file(options.html, page(options, comparison, ids, *model, context));
  if (options.json) {
    print_json(result_json(comparison, options));
    return 0;
  }
  fmt::print("{}: {} tokens, prompt {}, {} forced\n\n{}", safe_text(model->graph().name, Lines::kOne),
             comparison.tokens, comparison.prompt, comparison.tokens - comparison.prompt,
             result_table(comparison, options.greedy).text(has_colour(Stream::kOut)));
  if (!options.html.empty()) fmt::print("\npage: {}\n", safe_text(options.html, Lines::kOne));
  return 0;
}

int run_compare(const CompareCommand& options, const Options& given) {
  for (const std::string& policy : split_policies(options.policies)) check_policies(policy);
  check_writable(options.html);
  if (!options.tasks.empty()) {
    for (const char* name : {"--prompt", "--greedy"})
      if (given.given(name)) throw UsageError(fmt::format("{} is of a text: a task has prompts of its own", name));
    return run_task_comparison(options);
  }
  for (const char* name : {"--lengths", "--depths", "--samples", "--seed", "--generate", "--late-question"})
    if (given.given(name)) throw UsageError(fmt::format("{} is of a task: name one with --task", name));
  if (options.text.empty()) throw UsageError("a text is needed, -f TEXTFILE, or a task, --task NAME");
  return run_text_comparison(options);
}

}  // namespace

std::vector<Readings> compared_policies(const CompareCommand& options, const LanguageModel& model) {
  std::vector<Readings> policies;
  for (const std::string& policy : split_policies(options.policies))
    policies.push_back(model_readings(policy, model.compute(), registry()));
  return policies;
}

void add_kept(Page& page, const std::string& heading, const std::vector<KeptRow>& rows, std::span<const int32_t> prompt,
              const std::vector<std::string>& marked, const Tokenizer& tokenizer) {
  std::vector<std::string> pieces;
  std::string text;
  std::vector<size_t> ends;  // of pieces in the text
  for (int32_t id : prompt) {
    text += pieces.emplace_back(tokenizer.piece(id, false));
    ends.push_back(text.size());
  }
  std::vector<std::pair<int64_t, int64_t>> marks;
  for (const std::string& part : marked) {
    const size_t at = text.find(part);
    if (at == std::string::npos) continue;
    const auto first = std::upper_bound(ends.begin(), ends.end(), at);
    const auto last = std::lower_bound(first, ends.end(), at + part.size());
    marks.emplace_back(first - ends.begin(), last - ends.begin() + 1);
  }
  bool any = false;
  for (const KeptRow& row : rows) {
    const auto whole = [&](const std::vector<int32_t>& head) { return head.size() == prompt.size(); };
    if (std::all_of(row.kept.positions.begin(), row.kept.positions.end(), whole)) continue;
    if (!any) page.heading(heading);
    any = true;
    page.kept({row.policy, row.kept, pieces, marks});
  }
}

void add_command(Page& page, const std::string& command, const CompareCommand& options, const Context& context) {
  page.heading("Command");
  std::string line = command;
  if (options.model.compute != "default") line += " --compute " + options.model.compute;
  if (options.model.context > 0) line += fmt::format(" --ctx {}", options.model.context);
  page.preformatted(line);
  page.text(fmt::format("attend {}, {} threads, {}.", ATTEND_VERSION, context.threads, name_of(active_isa(context))));
}

const Command kCompare = {
    "compare", "Run a model under several attention policies, side by side: time, memory, quality.",
    "The first part of a text is read as a prompt, the rest is forced one token a step. KL and top-1 compare with an\n"
    "exact run that drops nothing. With --task, questions are generated instead (RULER's tasks: a needle in a "
    "haystack,\n"
    "variable tracking, common and frequent words), and the right answers are forced; -f is then the haystack of the\n"
    "tasks that read an essay.\n\n"
    "Tasks: niah_single_1 to 3, niah_multikey_1 to 3, niah_multivalue, niah_multiquery, vt, cwe, fwe; needle is\n"
    "niah_single_2, ruler is all of them.\n\n"
    "Examples:\n"
    "  attend compare -f /usr/share/common-licenses/GPL-3 --policies \"softmax; softmax:window=1024,sinks=4\"\n"
    "  attend compare -f text.txt --policies \"f16; bf16; softmax:window=512\" --html compare.html\n"
    "  attend compare --task needle,vt --policies \"softmax; h2o:budget=512; snapkv:budget=512\" --html tasks.html",
    [](Options& options) -> std::function<int()> {
      auto o = std::make_shared<CompareCommand>();
      options.text("-f,--file TEXTFILE", o->text, "the text; - is standard input");
      options.text("--policies POLICIES", o->policies,
                   "policies joined by ';', each of specs joined by '+' (see attend list)", true);
      options.integer("--prompt N", o->prompt, 1, int64_t{1} << 30,
                      "tokens read as a prompt (default: three quarters of the text)");
      options.integer("--greedy N", o->greedy, 1, 1 << 20,
                      "also let greedy decoding add N tokens to the prompt, and tell where it leaves the exact run's "
                      "text");
      options.text("--html OUT", o->html, "write a page with tables and charts");
      declare_json(options, o->json);
      options.group("Tasks");
      options.text("--task TASKS", o->tasks, "questions to ask, joined by ','");
      options.text("--lengths LIST", o->lengths, "tokens of prompt and answer (default: 1024,2048,4096)");
      options.text("--depths LIST", o->depths,
                   "percent of the haystack before the needle that is asked for (default: 0,25,50,75,100)");
      options.integer("--samples N", o->samples, 1, 10000, "questions of each task, length and depth (default: 1)");
      options.integer("--seed N", o->seed, 0, int64_t{1} << 62, "what questions are drawn from (default: 0)");
      options.flag("--generate", o->generate, "also let the model answer, and score that as RULER does");
      options.flag("--late-question", o->late_question,
                   "end the prompt before its question, so that what stays is chosen without knowing it");
      declare_model_options(options, o->model);
      return [o, &options] { return run_compare(*o, options); };
    }};

}  // namespace attend::app
