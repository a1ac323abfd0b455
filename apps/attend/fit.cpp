// attend fit: what a plan needs to know of a model, found by running it.
#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "attend/study/fit_duo.h"
#include "attend/tensor/error.h"
#include "json.h"
#include "model_options.h"
#include "terminal.h"

namespace attend::app {
namespace {

struct FitCommand {
  ModelOptions model;
  std::string method, text, out;
  DuoFitOptions duo;
  int64_t seed = static_cast<int64_t>(DuoFitOptions{}.seed);
  bool json = false;
};

// The gates as a map: a row a layer, a digit a head, from 0 (shut) to 9 (open).
std::string drawn(const HeadGates& gates) {
  std::string text = "layer  gates\n";
  for (int layer = 0; layer < gates.layers; ++layer) {
    text += fmt::format("{:5}  ", layer);
    for (int h = 0; h < gates.kv_heads; ++h) {
      const double gate = gates.gate(layer, h);
      text += gate == HeadGates::kNone ? '-' : static_cast<char>('0' + std::min(9, static_cast<int>(gate * 10)));
    }
    text += '\n';
  }
  return text;
}

int run_fit(FitCommand& command) {
  if (command.method != "duo") throw UsageError(fmt::format("\"{}\" can't be fitted; duo can", command.method));
  ProgressBar bar;
  Context context = make_context(command.model.threads, &bar);
  const std::string haystack = require_text(read_text(command.text), command.text);
  const auto model = load_model(command.model, context);
  DuoFitOptions& options = command.duo;
  options.seed = static_cast<uint64_t>(command.seed);
  options.max_length = std::min(options.max_length, model->graph().context);
  Json steps = Json::array();
  HeadGates gates = fit_duo(model, haystack, options, context, [&](const DuoFitStep& step) {
    steps.push_back(
        {{"step", step.step}, {"tokens", step.tokens}, {"distance", step.distance}, {"gate", step.mean_gate}});
  });
  bar.wipe();
  gates.made_by = fmt::format(
      "attend {} fit duo, seed {}, {} steps of {} to {} tokens, rate {}, penalty {}, sinks {}, recent {}, {} passkeys "
      "of "
      "{} words",
      ATTEND_VERSION, options.seed, options.steps, options.min_length, options.max_length, options.rate,
      options.penalty, options.sinks, options.recent, options.passkeys.passkeys, options.passkeys.words);
  write_file(command.out, to_json(gates));
  if (command.json) {
    print_json({{"out", command.out}, {"made_by", gates.made_by}, {"steps", std::move(steps)}});
    return 0;
  }
  std::vector<double> sorted;
  for (double gate : gates.gates)
    if (gate != HeadGates::kNone) sorted.push_back(gate);
  const auto open = std::count_if(sorted.begin(), sorted.end(), [](double gate) { return gate >= 0.5; });
  fmt::print("{}\n{} of {} gates are at least 0.5; wrote {}\n", drawn(gates), open, sorted.size(),
             safe_text(command.out, Lines::kOne));
  return 0;
}

}  // namespace

const Command kFit = {
    "fit", "Find out which heads of a model need what, for a plan.",
    "fit duo optimises a gate on every kv head: 1 sees the whole context, 0 sinks and recent tokens alone. Texts hide\n"
    "passkeys in the file given and ask for them; weights stay as they are. The paper takes 2000 steps of 1000 to "
    "32000\n"
    "tokens. A step costs four passes over its text.\n\n"
    "Examples:\n"
    "  attend fit duo -m smollm2-135m -f book.txt -o heads.json\n"
    "  attend fit duo -f book.txt -o heads.json --steps 60 --rate 0.05 --max-length 1500\n"
    "  attend run -f long.txt --policy 'duo:plan=\"heads.json\",share=0.5'",
    [](Options& options) -> std::function<int()> {
      auto o = std::make_shared<FitCommand>();
      options.text("method", o->method, "what to fit: duo", true);
      options.text("-f,--file TEXTFILE", o->text, "text in which passkeys are hidden; - is standard input", true);
      options.text("-o,--out FILE", o->out, "where the plan's file goes", true);
      options.integer("--steps N", o->duo.steps, 1, 1000000, "texts to learn from (default 2000)");
      options.real("--rate X", o->duo.rate, 0, 1, "how far a gate moves in a step at most, about (default 0.02)");
      options.real("--penalty X", o->duo.penalty, 0, 1e6, "of the mean gate (default 0.05)");
      options.integer("--min-length N", o->duo.min_length, 1, 1 << 30, "tokens of the shortest text (default 1000)");
      options.integer("--max-length N", o->duo.max_length, 1, 1 << 30,
                      "tokens of the longest text (default 32000, or the model's context if that is less)");
      options.integer("--passkeys N", o->duo.passkeys.passkeys, 1, 20, "passkeys in a text (default 10)");
      options.integer("--words N", o->duo.passkeys.words, 1, 1024, "words of a passkey (default 32)");
      options.integer("--sinks N", o->duo.sinks, 0, 1 << 20, "first tokens that a shut head sees (default 128)");
      options.integer("--recent N", o->duo.recent, 1, 1 << 20, "newest tokens that it sees (default 256)");
      options.integer("--seed N", o->seed, 0, int64_t{1} << 53, "of texts (default 42); the same gives the same gates");
      declare_json(options, o->json);
      options.group("Model and machine");
      declare_model(options, o->model.model);
      options.text("--compute MODE", o->model.compute, "default or f32 (see attend score --help)");
      declare_threads(options, o->model.threads);
      return [o] { return run_fit(*o); };
    }};

}  // namespace attend::app
