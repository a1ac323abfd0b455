#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "attend/lm/ids.h"
#include "attend/report/table.h"
#include "attend/simd/isa.h"
#include "attend/simd/row_ops.h"
#include "attend/tensor/error.h"
#include "json.h"
#include "model_options.h"
#include "terminal.h"

namespace attend::app {
namespace {

struct ScoreOptions {
  ModelOptions model;
  std::string text, ids, policy = "softmax";
  int64_t top = 0;
  bool json = false;
};

struct Score {
  int64_t tokens = 0;
  std::vector<double> log_probability;
  std::vector<std::pair<int32_t, float>> top;

  double nll() const {
    return -std::accumulate(log_probability.begin(), log_probability.end(), 0.0) /
           static_cast<double>(log_probability.size());
  }
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

Score score_all(const ScoreOptions& options, const std::shared_ptr<const LanguageModel>& model, Context& context) {
  const Readings policy = model_readings(options.policy, model->compute(), registry());
  Ensemble session(model, policy, registry(), options.model.context);
  const std::vector<int32_t> ids = read_ids(options, model->tokenizer());
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

int run_score(const ScoreOptions& options) {
  if (options.text.empty() == options.ids.empty()) throw UsageError("give either -f TEXTFILE or --ids FILE");
  ProgressBar bar;
  Context context = make_context(options.model.threads, &bar);
  const auto model = load_model(options.model, context);
  const Score score = score_all(options, model, context);
  bar.wipe();
  const double nll = score.nll();
  if (options.json) {
    Json out = {{"tokens", score.tokens}, {"nll", nll}, {"ppl", std::exp(nll)}, {"logprobs", score.log_probability}};
    Json top = Json::array();
    for (const auto& [id, logit] : score.top) top.push_back(Json::array({id, logit}));
    out["top"] = std::move(top);
    print_json(out);
    return 0;
  }
  fmt::print("tokens      {}\nmean NLL    {:.4f} nats\nperplexity  {:.4f}\n", score.tokens, nll, std::exp(nll));
  if (!score.top.empty()) {
    Table table({{.title = "next token", .left = true}, {.title = "id"}, {.title = "logit"}});
    for (const auto& [id, logit] : score.top)
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
    "  attend score --ids ids.json --compute f32 --top 10 --json",
    [](Options& options) -> std::function<int()> {
      auto o = std::make_shared<ScoreOptions>();
      options.text("-f,--file TEXTFILE", o->text, "text to score; - is standard input");
      options.text("--ids FILE", o->ids, "token ids instead, as a JSON list; taken as they are");
      options.integer("--top K", o->top, 1, 1 << 20, "show the K largest logits after the last token");
      declare_policy(options, o->policy);
      declare_json(options, o->json);
      declare_model_options(options, o->model);
      return [o] { return run_score(*o); };
    }};

}  // namespace attend::app
