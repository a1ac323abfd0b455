#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "attend/lm/ids.h"
#include "attend/report/plot.h"
#include "attend/report/table.h"
#include "attend/simd/isa.h"
#include "attend/simd/row_ops.h"
#include "attend/tensor/error.h"
#include "attend/tensor/spec.h"
#include "json.h"
#include "model_options.h"
#include "terminal.h"

namespace attend::app {
namespace {

struct ScoreOptions {
  ModelOptions model;
  std::string text, ids, policies = "softmax", svg;
  int64_t top = 0, parts = 1;
  bool json = false;
};

struct Score {
  int64_t tokens = 0;
  std::vector<double> log_probability;
  std::vector<std::pair<int32_t, float>> top;

  // Mean over scored tokens [begin, end).
  double nll(size_t begin, size_t end) const {
    const auto first = log_probability.begin();
    return -std::accumulate(first + static_cast<std::ptrdiff_t>(begin), first + static_cast<std::ptrdiff_t>(end), 0.0) /
           static_cast<double>(end - begin);
  }
  double nll() const { return nll(0, log_probability.size()); }
};

struct PolicyScore {
  std::string policy;
  Score score;
};

std::vector<int32_t> read_ids(const ScoreOptions& options, const Tokenizer& tokenizer) {
  constexpr int64_t kLongestList = int64_t{1} << 28;
  if (!options.ids.empty()) return parse_ids(read_bytes(options.ids, kLongestList), options.ids);
  // With --ctx every chunk begins with BOS: the text's own would come twice.
  return tokenizer.encode(require_text(read_text(options.text), options.text), options.model.context == 0);
}

std::vector<std::pair<int32_t, float>> largest(std::span<const float> logits, int64_t count) {
  std::vector<int32_t> id(logits.size());
  std::iota(id.begin(), id.end(), 0);
  const auto end = id.begin() + std::min<int64_t>(count, static_cast<int64_t>(id.size()));
  std::partial_sort(id.begin(), end, id.end(), [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  });
  std::vector<std::pair<int32_t, float>> top;
  for (auto i = id.begin(); i != end; ++i) top.emplace_back(*i, logits[static_cast<size_t>(*i)]);
  return top;
}

// Scores ids[skip..] of one run from an empty cache: ln p of each given all before it.
void score_run(Ensemble& session, std::span<const int32_t> ids, int64_t chunk, int64_t top, Score& score,
               Context& context) {
  const RowOps& ops = row_ops(active_isa(context));
  session.clear();
  session.prefill(
      ids, chunk, Outputs::kAll,
      [&](int64_t first, const View& logits) {
        for (int64_t r = 0; r < logits.shape[0]; ++r) {
          const float* row = logits.at<float>({r});
          const size_t next = static_cast<size_t>(first + r + 1);
          if (next < ids.size())
            score.log_probability.push_back(row[ids[next]] - ops.log_sum_exp(row, logits.shape[1]));
          else if (top > 0)
            score.top = largest({row, static_cast<size_t>(logits.shape[1])}, top);
        }
      },
      context);
}

Ensemble open(const ScoreOptions& options, const std::string& policy,
              const std::shared_ptr<const LanguageModel>& model) {
  return {model, model_readings(policy, model->compute(), registry()), registry(), options.model.context};
}

Score score_all(const ScoreOptions& options, const std::string& policy, const std::vector<int32_t>& ids,
                const std::shared_ptr<const LanguageModel>& model, Context& context) {
  Ensemble session = open(options, policy, model);
  Score score{.tokens = static_cast<int64_t>(ids.size()), .log_probability = {}, .top = {}};
  if (options.model.context == 0) {
    if (ids.size() < 2)
      throw Error(ErrorKind::kArgument, "score", "tokens", std::to_string(ids.size()), "must be at least 2");
    score_run(session, ids, options.model.chunk, options.top, score, context);
    return score;
  }
  if (ids.empty()) throw Error(ErrorKind::kArgument, "score", "tokens", "0", "must be at least 1");
  const int32_t bos = model->tokenizer().bos();
  if (bos < 0) throw Error(ErrorKind::kUnsupported, "[score] the model has no bos token, which --ctx needs");
  const size_t step = static_cast<size_t>(options.model.context) - 1;
  for (size_t begin = 0; begin < ids.size(); begin += step) {
    std::vector<int32_t> chunk = {bos};
    chunk.insert(chunk.end(), ids.begin() + static_cast<std::ptrdiff_t>(begin),
                 ids.begin() + static_cast<std::ptrdiff_t>(std::min(ids.size(), begin + step)));
    score_run(session, chunk, options.model.chunk, options.top, score, context);
  }
  return score;
}

// Bounds of `parts` parts of the scored tokens, as equal as can be.
std::vector<size_t> part_bounds(size_t scored, int64_t parts) {
  if (parts > 1 && static_cast<size_t>(parts) > scored)
    throw Error(ErrorKind::kArgument, "score", "--parts", std::to_string(parts),
                fmt::format("must be at most the {} tokens that are scored", scored));
  std::vector<size_t> bounds;
  for (size_t i = 0; i <= static_cast<size_t>(parts); ++i) bounds.push_back(scored * i / static_cast<size_t>(parts));
  return bounds;
}

std::string picture(const ScoreOptions& options, const std::vector<PolicyScore>& scores, const LanguageModel& model) {
  constexpr size_t kWindows = 64;
  const int64_t window = static_cast<int64_t>(std::max<size_t>(1, scores[0].score.log_probability.size() / kWindows));
  Chart chart{.title = fmt::format("{}: negative log-likelihood along {} tokens of {}", model.graph().name,
                                   scores[0].score.tokens, options.text.empty() ? options.ids : options.text),
              .x_label = "token",
              .y_label = "NLL, nats",
              .series = {},
              .caption = fmt::format("Mean of the last {} tokens; lower is better.", window)};
  for (const PolicyScore& row : scores) {
    std::vector<float> nll;
    for (double p : row.score.log_probability) nll.push_back(static_cast<float>(-p));
    chart.series.push_back({row.policy, moving_mean(nll, 1, window)});
  }
  return chart_svg(chart);
}

Json score_json(const Score& score, std::span<const size_t> bounds) {
  Json out = {{"tokens", score.tokens},
              {"nll", score.nll()},
              {"ppl", std::exp(score.nll())},
              {"logprobs", score.log_probability}};
  Json top = Json::array(), parts = Json::array();
  for (const auto& [id, logit] : score.top) top.push_back(Json::array({id, logit}));
  for (size_t i = 0; i + 1 < bounds.size(); ++i) parts.push_back(score.nll(bounds[i], bounds[i + 1]));
  out["top"] = std::move(top);
  if (parts.size() > 1) out["parts"] = std::move(parts);
  return out;
}

void print_scores(const std::vector<PolicyScore>& scores, std::span<const size_t> bounds) {
  std::vector<Column> columns = {{.title = "policy", .left = true},
                                 {.title = "mean NLL", .better = Better::kLower, .help = "nats a token"},
                                 {.title = "perplexity", .better = Better::kLower, .help = "its exponential"}};
  for (size_t i = 0; i + 1 < bounds.size() && bounds.size() > 2; ++i)
    columns.push_back({.title = fmt::format("{} to {}", bounds[i], bounds[i + 1]),
                       .better = Better::kLower,
                       .help = "mean NLL of these tokens"});
  Table table(columns);
  for (const PolicyScore& row : scores) {
    const double nll = row.score.nll();
    std::vector<Cell> cells = {
        row.policy, {fmt::format("{:.4f}", nll), nll}, {fmt::format("{:.4f}", std::exp(nll)), nll}};
    for (size_t i = 0; i + 1 < bounds.size() && bounds.size() > 2; ++i) {
      const double part = row.score.nll(bounds[i], bounds[i + 1]);
      cells.push_back({fmt::format("{:.3f}", part), part});
    }
    table.row(std::move(cells));
  }
  fmt::print("{} tokens\n\n{}", scores[0].score.tokens, table.text(has_colour(Stream::kOut)));
}

int run_score(const ScoreOptions& options) {
  if (options.text.empty() == options.ids.empty()) throw UsageError("give either -f TEXTFILE or --ids FILE");
  const std::vector<std::string> policies = split_policies(options.policies);
  if (policies.size() > 1 && options.top > 0) throw UsageError("--top is of one policy");
  for (const std::string& policy : policies) check_policies(policy);
  check_writable(options.svg);
  ProgressBar bar;
  Context context = make_context(options.model.threads, &bar);
  const auto model = load_model(options.model, context);
  for (const std::string& policy : policies) open(options, policy, model);  // what can't run says so before the first
  const std::vector<int32_t> ids = read_ids(options, model->tokenizer());
  // With --ctx every chunk's first token follows BOS and is scored too.
  const std::vector<size_t> bounds =
      part_bounds(ids.empty() || options.model.context > 0 ? ids.size() : ids.size() - 1, options.parts);
  std::vector<PolicyScore> scores;
  for (const std::string& policy : policies)
    scores.push_back({policy, score_all(options, policy, ids, model, context)});
  bar.wipe();
  const Score& first = scores[0].score;
  if (!options.svg.empty()) write_file(options.svg, picture(options, scores, *model));
  if (options.json) {
    if (scores.size() == 1) {
      print_json(score_json(first, bounds));
      return 0;
    }
    Json rows = Json::array();
    for (const PolicyScore& row : scores) {
      rows.push_back(score_json(row.score, bounds));
      rows.back()["policy"] = row.policy;
    }
    print_json({{"rows", std::move(rows)}});
    return 0;
  }
  if (scores.size() > 1 || options.parts > 1) {
    print_scores(scores, bounds);
  } else {
    fmt::print("tokens      {}\nmean NLL    {:.4f} nats\nperplexity  {:.4f}\n", first.tokens, first.nll(),
               std::exp(first.nll()));
  }
  if (!options.svg.empty()) fmt::print("\npicture: {}\n", safe_text(options.svg, Lines::kOne));
  if (!first.top.empty()) {
    Table table({{.title = "next token", .left = true}, {.title = "id"}, {.title = "logit"}});
    for (const auto& [id, logit] : first.top)
      table.row({safe_text(model->tokenizer().piece(id, true), Lines::kOne), std::to_string(id),
                 fmt::format("{:.3f}", logit)});
    fmt::print("\n{}", table.text(has_colour(Stream::kOut)));
  }
  return 0;
}

}  // namespace

const Command kScore = {
    "score", "Tell how likely a model finds a text.",
    "Prints the mean negative log-likelihood a token and the perplexity; --json adds every token's log-probability.\n"
    "With --ctx N the text is cut into chunks of N-1 tokens, each run after the model's bos token from an empty "
    "cache.\n\n"
    "Examples:\n"
    "  attend score -f /usr/share/common-licenses/GPL-3\n"
    "  attend score -f text.txt --policy \"softmax:window=512,sinks=4\"\n"
    "  attend score -f long.txt --ctx 32768 --parts 8 --svg nll.svg --policies \"rope; streaming; dca\"\n"
    "  attend score --ids ids.json --compute f32 --top 10 --json",
    [](Options& options) -> std::function<int()> {
      auto o = std::make_shared<ScoreOptions>();
      options.text("-f,--file TEXTFILE", o->text, "text to score; - is standard input");
      options.text("--ids FILE", o->ids, "token ids instead, as a JSON list; taken as they are");
      options.integer("--top K", o->top, 1, 1 << 20, "show the K largest logits after the last token");
      options.text("--policy,--policies SPECS", o->policies,
                   "what to attend to and what to keep, specs joined by '+', e.g. \"softmax:window=512,sinks=4 + f16\" "
                   "(see attend list); policies joined by ';' are scored one after another; joined by '|' they read "
                   "side by side, their predictions merged by confidence");
      options.integer("--parts N", o->parts, 1, 1000, "also show the NLL of so many parts of the text");
      options.text("--svg OUT", o->svg, "draw the NLL along the text");
      declare_json(options, o->json);
      declare_model_options(options, o->model);
      return [o] { return run_score(*o); };
    }};

}  // namespace attend::app
