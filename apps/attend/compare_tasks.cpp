#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>

#include "attend/report/table.h"
#include "attend/study/task_run.h"
#include "attend/tensor/error.h"
#include "compare.h"
#include "json.h"
#include "terminal.h"

namespace attend::app {
namespace {

// Texts that every Debian system has; together 13,000 words.
constexpr const char* kEssayFolder = "/usr/share/common-licenses/";
constexpr const char* kEssays[] = {"GPL-3", "GFDL-1.3", "MPL-2.0", "Apache-2.0"};

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts(1);
  for (char c : list)
    if (c == ',')
      parts.emplace_back();
    else if (c != ' ')
      parts.back() += c;
  return parts;
}

template <class T>
std::vector<T> numbers(const std::string& list, const char* option, T low, T high) {
  std::vector<T> values;
  for (const std::string& part : split(list)) {
    T value{};
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), value);
    if (error != std::errc() || end != part.data() + part.size() || !(value >= low && value <= high))
      throw UsageError(fmt::format("{} = \"{}\", must be numbers from {} to {}, joined by commas", option,
                                   safe_text(list, Lines::kOne), low, high));
    if (std::find(values.begin(), values.end(), value) == values.end()) values.push_back(value);
  }
  return values;
}

std::vector<const Task*> wanted_tasks(const std::string& list) {
  std::vector<const Task*> wanted;
  for (const std::string& name : split(list))
    for (const Task* task : find_tasks(name))
      if (std::find(wanted.begin(), wanted.end(), task) == wanted.end()) wanted.push_back(task);
  return wanted;
}

struct Essay {
  std::string source, text;
};

Essay read_essay(const CompareCommand& options, const std::vector<const Task*>& tasks) {
  if (std::none_of(tasks.begin(), tasks.end(), [](const Task* task) { return task->essay; })) return {};
  if (!options.text.empty()) return {options.text, require_text(read_text(options.text), options.text)};
  Essay essay{.source = std::string(kEssayFolder) + fmt::format("{{{}}}", fmt::join(kEssays, ",")), .text = {}};
  for (const char* name : kEssays) {
    const std::string path = std::string(kEssayFolder) + name;
    if (!std::filesystem::exists(path))
      throw Error(ErrorKind::kFile, fmt::format("{} is missing: give a text to hide needles in, -f TEXTFILE", path));
    essay.text += read_text(path) + "\n";
  }
  return essay;
}

std::string percent(double share) {
  return std::isfinite(share) ? fmt::format("{:.0f} %", 100 * share) : "-";
}

Table result_table(const TaskComparison& comparison, bool generated) {
  std::vector<Column> columns = {
      {.title = "policy", .left = true},
      {.title = "answer NLL", .better = Better::kLower, .help = "nats a token of the right answer, mean"},
      {.title = "exact",
       .better = Better::kHigher,
       .help = "samples whose right answer greedy decoding gives, token by token"}};
  if (generated)
    columns.push_back({.title = "match",
                       .better = Better::kHigher,
                       .help = "RULER's score: share of the right strings in what greedy decoding gives"});
  columns.push_back(
      {.title = "KV held", .better = Better::kLower, .help = "most memory of keys and values after a prompt"});
  columns.push_back(
      {.title = "KV peak", .better = Better::kLower, .help = "the same at any time, the prompt's included"});
  columns.push_back(
      {.title = "read/token", .better = Better::kLower, .help = "keys and values that a token sees, mean"});
  columns.push_back({.title = "prefill", .better = Better::kLower, .help = "seconds to read all prompts"});
  columns.push_back({.title = "decode", .better = Better::kHigher, .help = "forced tokens a second"});
  Table table(columns);
  for (const TaskRow& row : comparison.rows) {
    std::vector<Cell> cells = {
        row.policy, {fmt::format("{:.4f}", row.all.nll), row.all.nll}, {percent(row.all.exact), row.all.exact}};
    if (generated) cells.push_back({percent(row.all.match), row.all.match});
    cells.push_back({bytes_text(row.kv_bytes), static_cast<double>(row.kv_bytes)});
    cells.push_back({bytes_text(row.peak_bytes), static_cast<double>(row.peak_bytes)});
    cells.push_back({bytes_text(static_cast<int64_t>(row.bytes_read)), row.bytes_read});
    cells.push_back({fmt::format("{:.2f} s", row.prefill_s), row.prefill_s});
    cells.push_back({fmt::format("{:.1f} tok/s", row.decode_tps), row.decode_tps});
    table.row(std::move(cells));
  }
  return table;
}

// Cells of one task and length, at all depths.
struct Stretch {
  const Task* task;
  int64_t length;
  std::vector<size_t> cells;
};

std::vector<Stretch> stretches(const TaskComparison& comparison) {
  std::vector<Stretch> all;
  for (size_t i = 0; i < comparison.cells.size(); ++i) {
    const TaskCell& cell = comparison.cells[i];
    if (all.empty() || all.back().task != cell.task || all.back().length != cell.length)
      all.push_back({cell.task, cell.length, {}});
    all.back().cells.push_back(i);
  }
  return all;
}

double mean(const TaskRow& row, const Stretch& stretch, double TaskScore::*score) {
  double sum = 0;
  for (size_t cell : stretch.cells) sum += row.cells[cell].*score;
  return sum / static_cast<double>(stretch.cells.size());
}

// Policies and stretches, the fewer of them side by side.
Table stretch_table(const TaskComparison& comparison, bool generated) {
  const std::vector<Stretch> all = stretches(comparison);
  auto cell = [&](const TaskRow& row, const Stretch& stretch) -> Cell {
    const double nll = mean(row, stretch, &TaskScore::nll);
    return {
        fmt::format("{:.3f}, {}", nll, percent(mean(row, stretch, generated ? &TaskScore::match : &TaskScore::exact))),
        nll};
  };
  if (all.size() <= comparison.rows.size()) {
    std::vector<Column> columns = {{.title = "policy", .left = true}};
    for (const Stretch& stretch : all)
      columns.push_back({.title = fmt::format("{} {}", stretch.task->name, stretch.length), .better = Better::kLower});
    Table table(columns);
    for (const TaskRow& row : comparison.rows) {
      std::vector<Cell> cells = {row.policy};
      for (const Stretch& stretch : all) cells.push_back(cell(row, stretch));
      table.row(std::move(cells));
    }
    return table;
  }
  std::vector<Column> columns = {{.title = "task", .left = true}, {.title = "tokens"}};
  for (const TaskRow& row : comparison.rows) columns.push_back({.title = row.policy});
  Table table(columns);
  for (const Stretch& stretch : all) {
    std::vector<Cell> cells = {std::string(stretch.task->name), std::to_string(stretch.length)};
    for (const TaskRow& row : comparison.rows) cells.push_back(cell(row, stretch));
    table.row(std::move(cells));
  }
  return table;
}

Json number_or_null(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}

Json result_json(const TaskComparison& comparison, const CompareCommand& options, const Essay& essay) {
  Json rows = Json::array();
  for (const TaskRow& row : comparison.rows) {
    Json cells = Json::array();
    for (size_t i = 0; i < row.cells.size(); ++i) {
      const TaskCell& cell = comparison.cells[i];
      cells.push_back({{"task", cell.task->name},
                       {"length", cell.length},
                       {"depth", cell.depth < 0 ? Json(nullptr) : Json(cell.depth)},
                       {"samples", cell.samples},
                       {"nll", row.cells[i].nll},
                       {"exact", row.cells[i].exact},
                       {"match", number_or_null(row.cells[i].match)}});
    }
    rows.push_back({{"policy", row.policy},
                    {"nll", row.all.nll},
                    {"exact", row.all.exact},
                    {"match", number_or_null(row.all.match)},
                    {"kv_bytes", row.kv_bytes},
                    {"peak_kv_bytes", row.peak_bytes},
                    {"bytes_read_per_token", row.bytes_read},
                    {"prefill_s", row.prefill_s},
                    {"decode_tps", row.decode_tps},
                    {"cells", cells}});
  }
  return {{"model", options.model.model},
          {"seed", options.seed},
          {"late_question", options.late_question},
          {"haystack", essay.source.empty() ? Json(nullptr) : Json(essay.source)},
          {"samples", comparison.samples},
          {"prompt_tokens", comparison.prompt_tokens},
          {"answer_tokens", comparison.answer_tokens},
          {"rows", rows}};
}

// A map a policy, of depth over length, for each task whose needle has a depth.
void add_heat_maps(Page& page, const TaskComparison& comparison, bool generated) {
  for (const Task& task : tasks()) {
    std::vector<int64_t> lengths;
    std::vector<double> depths;
    for (const TaskCell& cell : comparison.cells) {
      if (cell.task->name != task.name || cell.depth < 0) continue;
      if (std::find(lengths.begin(), lengths.end(), cell.length) == lengths.end()) lengths.push_back(cell.length);
      if (std::find(depths.begin(), depths.end(), cell.depth) == depths.end()) depths.push_back(cell.depth);
    }
    if (lengths.empty()) continue;
    std::sort(lengths.begin(), lengths.end());
    std::sort(depths.begin(), depths.end());
    HeatMaps nll{.title = fmt::format("{}: likelihood of the answer by depth and length", task.name),
                 .x_label = "tokens",
                 .y_label = "depth, %",
                 .columns = {},
                 .rows = {},
                 .maps = {},
                 .caption = "Nats a token of the right answer; lower and lighter is better."};
    for (int64_t length : lengths) nll.columns.push_back(std::to_string(length));
    for (double depth : depths) nll.rows.push_back(fmt::format("{:g}", depth));
    HeatMaps right = nll;
    right.title = fmt::format("{}: right answers by depth and length", task.name);
    right.caption = generated ? "Share of the right strings in what greedy decoding gives; more and darker is better."
                              : "Share of samples whose right answer greedy decoding gives, token by token; more and "
                                "darker is better.";
    right.range = {0, 1};
    right.percent = true;
    for (const TaskRow& row : comparison.rows) {
      HeatMap losses{row.policy, std::vector<double>(lengths.size() * depths.size(), NAN)}, shares = losses;
      for (size_t i = 0; i < comparison.cells.size(); ++i) {
        const TaskCell& cell = comparison.cells[i];
        if (cell.task->name != task.name) continue;
        const auto column = std::find(lengths.begin(), lengths.end(), cell.length) - lengths.begin();
        const auto line = std::find(depths.begin(), depths.end(), cell.depth) - depths.begin();
        const size_t at = static_cast<size_t>(line) * lengths.size() + static_cast<size_t>(column);
        losses.values[at] = row.cells[i].nll;
        shares.values[at] = generated ? row.cells[i].match : row.cells[i].exact;
      }
      nll.maps.push_back(std::move(losses));
      right.maps.push_back(std::move(shares));
    }
    page.heat_maps(nll);
    page.heat_maps(right);
  }
}

// The likelihood of the answers of each task over the length of its text.
void add_length_charts(Page& page, const TaskComparison& comparison) {
  for (const Task& task : tasks()) {
    Chart chart{.title = fmt::format("{}: likelihood of the answer by length", task.name),
                .x_label = "tokens",
                .y_label = "NLL, nats",
                .series = {},
                .caption = "Nats a token of the right answer, mean over depths and samples; lower is better."};
    for (const TaskRow& row : comparison.rows) {
      Series series{row.policy, {}};
      for (const Stretch& stretch : stretches(comparison))
        if (stretch.task->name == task.name)
          series.values.emplace_back(static_cast<double>(stretch.length), mean(row, stretch, &TaskScore::nll));
      std::sort(series.values.begin(), series.values.end());
      chart.series.push_back(std::move(series));
    }
    if (chart.series[0].values.size() > 1) page.chart(chart);
  }
}

std::string page(const CompareCommand& options, const TaskComparison& comparison, const LanguageModel& model,
                 const Essay& essay, const Context& context) {
  Page page("Attention policies compared on tasks",
            fmt::format("{}: {} samples, {} tokens of prompts and {} of answers for each policy, seed {}.",
                        model.graph().name, comparison.samples, comparison.prompt_tokens, comparison.answer_tokens,
                        options.seed));
  page.table(result_table(comparison, options.generate));
  page.text(
      "The prompt is read under the policy, then the right answer is forced one token a step: its NLL is a mean over "
      "its tokens. An answer is exact if each of its tokens is the most likely one on the way. Tasks are those of "
      "RULER "
      "(arXiv:2404.06654), asked without a chat template.");
  if (options.late_question)
    page.text(
        "Each prompt ended before its question, which was then decoded one token a step: what stays was chosen without "
        "knowing what would be asked.");
  if (!essay.source.empty()) page.text("Essay: " + essay.source);
  Chart held{.title = "Quality against memory",
             .x_label = "MB of keys and values held after the prompt",
             .y_label = "NLL of the answer, nats",
             .series = {},
             .caption = "Lower and further left is better."};
  Chart peak = held, read = held;
  peak.title = "Quality against peak memory";
  peak.x_label = "MB of keys and values at the peak";
  read.title = "Quality against what a token reads";
  read.x_label = "MB of keys and values a token";
  for (const TaskRow& row : comparison.rows) {
    held.series.push_back({row.policy, {{static_cast<double>(row.kv_bytes) / 1e6, row.all.nll}}, true});
    peak.series.push_back({row.policy, {{static_cast<double>(row.peak_bytes) / 1e6, row.all.nll}}, true});
    read.series.push_back({row.policy, {{row.bytes_read / 1e6, row.all.nll}}, true});
  }
  for (const Chart* chart : {&held, &peak, &read}) page.chart(*chart);
  page.heading("By task and length");
  page.table(stretch_table(comparison, options.generate));
  page.text(fmt::format("NLL, and {} answers.", options.generate ? "matching" : "exact"));
  add_heat_maps(page, comparison, options.generate);
  add_length_charts(page, comparison);
  const TaskCell& shown = comparison.cells[comparison.example.cell];
  std::vector<KeptRow> kept;
  for (const TaskRow& row : comparison.rows) kept.push_back({row.policy, row.kept});
  add_kept(page,
           fmt::format("Tokens held after the first prompt of {} in {} tokens{}", shown.task->name, shown.length,
                       shown.depth < 0 ? "" : fmt::format(", depth {:g} %", shown.depth)),
           kept, comparison.example.prompt, comparison.example.targets, model.tokenizer());
  std::string command =
      fmt::format("attend compare -m {} --task {} --lengths {} --depths {} --samples {} --seed {} --policies \"{}\"",
                  options.model.model, options.tasks, options.lengths, options.depths, options.samples, options.seed,
                  options.policies);
  if (!options.text.empty()) command += fmt::format(" -f {}", options.text);
  if (options.generate) command += " --generate";
  if (options.late_question) command += " --late-question";
  add_command(page, command, options, context);
  return page.html();
}

}  // namespace

int run_task_comparison(const CompareCommand& options) {
  ProgressBar bar;
  Context context = make_context(options.model.threads, &bar);
  TaskRunOptions run{.tasks = wanted_tasks(options.tasks),
                     .lengths = numbers<int64_t>(options.lengths, "--lengths", 256, int64_t{1} << 24),
                     .depths = numbers<double>(options.depths, "--depths", 0, 100),
                     .samples = options.samples,
                     .seed = static_cast<uint64_t>(options.seed),
                     .generate = options.generate,
                     .late_question = options.late_question,
                     .kept = !options.html.empty(),
                     .chunk = options.model.chunk,
                     .context = options.model.context};
  const Essay essay = read_essay(options, run.tasks);
  run.essay = essay.text;
  const auto model = load_model(options.model, context);
  const TaskComparison comparison = run_tasks(model, compared_policies(options, *model), registry(), run, context);
  bar.wipe();
  if (!options.html.empty()) write_file(options.html, page(options, comparison, *model, essay, context));
  if (options.json) {
    print_json(result_json(comparison, options, essay));
    return 0;
  }
  fmt::print("{}: {} samples, {} tokens of prompts, {} of answers, seed {}\n\n{}",
             safe_text(model->graph().name, Lines::kOne), comparison.samples, comparison.prompt_tokens,
             comparison.answer_tokens, options.seed,
             result_table(comparison, options.generate).text(has_colour(Stream::kOut)));
  if (stretches(comparison).size() > 1)
    fmt::print("\nNLL, {} answers:\n{}", options.generate ? "matching" : "exact",
               stretch_table(comparison, options.generate).text(has_colour(Stream::kOut)));
  if (!options.html.empty()) fmt::print("\npage: {}\n", safe_text(options.html, Lines::kOne));
  return 0;
}

}  // namespace attend::app
