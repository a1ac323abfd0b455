// attend fit: what a plan needs to know of a model, found by running it.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <span>

#include "attend/study/fit_duo.h"
#include "attend/study/fit_fastgen.h"
#include "json.h"
#include "model_options.h"
#include "terminal.h"

namespace attend::app {
namespace {

// Options that the other method does not have.
constexpr const char* kOfDuo[] = {"--steps", "--rate",  "--penalty", "--min-length", "--passkeys",
                                  "--words", "--sinks", "--recent",  "--seed"};
constexpr const char* kOfFastGen[] = {"--recovery", "--local", "--frequent"};

struct FitCommand {
  ModelOptions model;
  std::string method, text, out;
  DuoFitOptions duo;
  FastGenOptions fastgen;
  int64_t seed = static_cast<int64_t>(DuoFitOptions{}.seed);
  bool min_length_given = false, json = false;
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

HeadGates run_duo(FitCommand& command, const std::shared_ptr<const LanguageModel>& model, const std::string& text,
                  Json& report, Context& context) {
  DuoFitOptions& options = command.duo;
  options.seed = static_cast<uint64_t>(command.seed);
  if (!command.min_length_given)
    options.min_length =
        std::max(options.min_length, PasskeyTexts(model->tokenizer(), text, options.passkeys).shortest());
  options.max_length = std::min(options.max_length, model->graph().context);
  Json steps = Json::array();
  HeadGates gates = fit_duo(model, text, options, context, [&](const DuoFitStep& step) {
    steps.push_back(
        {{"step", step.step}, {"tokens", step.tokens}, {"distance", step.distance}, {"gate", step.mean_gate}});
  });
  report["steps"] = std::move(steps);
  gates.made_by = fmt::format(
      "attend {} fit duo, seed {}, {} steps of {} to {} tokens, rate {}, penalty {}, sinks {}, recent {}, {} passkeys "
      "of {} words",
      ATTEND_VERSION, options.seed, options.steps, options.min_length, options.max_length, options.rate,
      options.penalty, options.sinks, options.recent, options.passkeys.passkeys, options.passkeys.words);
  return gates;
}

HeadGates run_fastgen(const FitCommand& command, const std::shared_ptr<const LanguageModel>& model,
                      const std::string& text, Json& report, Context& context) {
  std::vector<int32_t> ids = model->tokenizer().encode(text);
  const int64_t most = std::min(command.duo.max_length, model->graph().context);
  if (static_cast<int64_t>(ids.size()) > most) ids.resize(static_cast<size_t>(most));
  HeadGates gates = fit_fastgen(model, ids, command.fastgen, context);
  report["tokens"] = ids.size();
  gates.made_by = fmt::format("attend {} fit fastgen, {} tokens, recovery {}, local {}, frequent {}", ATTEND_VERSION,
                              ids.size(), command.fastgen.recovery, command.fastgen.local, command.fastgen.frequent);
  return gates;
}

int run_fit(FitCommand& command, const Options& given) {
  if (command.method != "duo" && command.method != "fastgen")
    throw UsageError(fmt::format("\"{}\" can't be fitted; duo and fastgen can", command.method));
  const bool duo = command.method == "duo";
  for (const char* name : duo ? std::span<const char* const>(kOfFastGen) : std::span<const char* const>(kOfDuo))
    if (given.given(name)) throw UsageError(fmt::format("{} is of fit {}", name, duo ? "fastgen" : "duo"));
  check_writable(command.out);
  command.min_length_given = given.given("--min-length");
  ProgressBar bar;
  Context context = make_context(command.model.threads, &bar);
  const std::string text = require_text(read_text(command.text), command.text);
  const auto model = load_model(command.model, context);
  Json report = {{"out", command.out}};
  const HeadGates gates = command.method == "duo" ? run_duo(command, model, text, report, context)
                                                  : run_fastgen(command, model, text, report, context);
  bar.wipe();
  write_file(command.out, to_json(gates));
  report["made_by"] = gates.made_by;
  if (command.json) {
    print_json(report);
    return 0;
  }
  fmt::print("{}\n", drawn(gates));
  if (command.method == "duo") {
    const auto open = std::count_if(gates.gates.begin(), gates.gates.end(), [](double gate) { return gate >= 0.5; });
    const auto none = std::count(gates.gates.begin(), gates.gates.end(), HeadGates::kNone);
    fmt::print("{} of {} gates are at least 0.5\n", open, static_cast<std::ptrdiff_t>(gates.gates.size()) - none);
  } else {
    for (int level = 0; level <= 4; ++level)
      fmt::print("{} heads of level {}\n", std::count(gates.gates.begin(), gates.gates.end(), level / 4.0), level);
  }
  fmt::print("wrote {}\n", safe_text(command.out, Lines::kOne));
  return 0;
}

}  // namespace

const Command kFit = {
    "fit", "Find out which heads of a model need what, for a plan.",
    "fit duo optimises a gate on every kv head: 1 sees the whole context, 0 sinks and recent tokens alone. Texts hide\n"
    "passkeys in the file given and ask for them; weights stay as they are. The paper takes 2000 steps of 1000 to "
    "32000\n"
    "tokens. A step costs four passes over its text.\n\n"
    "fit fastgen profiles the heads on the text: which kinds of tokens (special, punctuation, frequent, local) give a\n"
    "head its attention back.\n\n"
    "Examples:\n"
    "  attend fit duo -m smollm2-135m -f book.txt -o heads.json\n"
    "  attend fit duo -f book.txt -o heads.json --steps 60 --rate 0.05 --passkeys 4 --words 16 --max-length 1500\n"
    "  attend fit fastgen -f book.txt -o levels.json --max-length 4096\n"
    "  attend run -f long.txt --policy 'duo:plan=\"heads.json\",share=0.5'",
    [](Options& options) -> std::function<int()> {
      auto o = std::make_shared<FitCommand>();
      options.text("method", o->method, "what to fit: duo or fastgen", true);
      options.text("-f,--file TEXTFILE", o->text,
                   "text in which passkeys are hidden, or that is profiled; - is standard input", true);
      options.text("-o,--out FILE", o->out, "where the plan's file goes", true);
      options.integer("--max-length N", o->duo.max_length, 1, 1 << 30,
                      "most tokens of a text (default: 32000, or the model's context if that is less)");
      declare_json(options, o->json);
      options.group("duo");
      options.integer("--steps N", o->duo.steps, 1, 1000000, "texts to learn from (default: 2000)");
      options.real("--rate X", o->duo.rate, 0, 1, "how far a gate moves in a step at most, about (default: 0.02)");
      options.real("--penalty X", o->duo.penalty, 0, 1e6, "of the mean gate (default: 0.05)");
      options.integer(
          "--min-length N", o->duo.min_length, 1, 1 << 30,
          "tokens of the shortest text (default: 1000, or what passkeys and questions take if that is more)");
      options.integer("--passkeys N", o->duo.passkeys.passkeys, 1, 20, "passkeys in a text (default: 10)");
      options.integer("--words N", o->duo.passkeys.words, 1, 1024, "words of a passkey (default: 32)");
      options.integer("--sinks N", o->duo.sinks, 0, 1 << 20, "first tokens that a shut head sees (default: 128)");
      options.integer("--recent N", o->duo.recent, 1, 1 << 20, "newest tokens that it sees (default: 256)");
      options.integer("--seed N", o->seed, 0, int64_t{1} << 53,
                      "of texts (default: 42); the same gives the same gates");
      options.group("fastgen");
      options.real("--recovery X", o->fastgen.recovery, 0, 1,
                   "share of its attention that a head must get back "
                   "(default: 0.95)");
      options.real("--local X", o->fastgen.local, 0, 1, "share of the text that is local (default: 0.3)");
      options.real("--frequent X", o->fastgen.frequent, 0, 1, "share of the text that is frequent (default: 0.3)");
      options.group("Model and machine");
      declare_model(options, o->model.model);
      options.text(
          "--compute MODE", o->model.compute,
          "default: weights stay quantised, products in int8; f32: everything in f32, slower (default: default)");
      declare_threads(options, o->model.threads);
      return [o, &options] { return run_fit(*o, options); };
    }};

}  // namespace attend::app
