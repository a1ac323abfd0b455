#include <fmt/format.h>

#include <chrono>
#include <iostream>
#include <memory>
#include <optional>

#include "attend/lm/chat.h"
#include "attend/lm/sampler.h"
#include "attend/report/table.h"
#include "attend/tensor/error.h"
#include "drafting.h"
#include "json.h"
#include "model_options.h"
#include "terminal.h"

namespace attend::app {
namespace {

using Clock = std::chrono::steady_clock;

struct RunOptions {
  ModelOptions model;
  SamplerOptions sampler;
  DraftOptions draft;
  std::string text, prompt, policy = "softmax", save_state, load_state;
  std::vector<std::string> stops;
  int64_t count = 256, seed = 0, samples = 1;
  bool chat = false, ignore_end = false, json = false;
};

struct Answer {
  std::vector<int32_t> tokens;
  std::string text;
  int64_t prompt_tokens = 0, decoded = 0;
  double prefill_s = 0, decode_s = 0;
  bool full = false;   // the context ended it
  bool ended = false;  // by an end token, which the cache then holds in a conversation

  double prefill_tps() const { return prefill_s > 0 ? static_cast<double>(prompt_tokens) / prefill_s : 0; }
  double decode_tps() const { return decode_s > 0 ? static_cast<double>(decoded) / decode_s : 0; }
};

double since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Reads the prompt, then samples until an end token, a stop string, the count or the context.
class Generator {
 public:
  // `speculation`: null for one token a step.
  Generator(const RunOptions& options, const LanguageModel& model, Ensemble& session, Speculation* speculation,
            ProgressBar& bar, Context& context)
      : options_(options),
        tokenizer_(model.tokenizer()),
        session_(session),
        speculation_(speculation),
        bar_(bar),
        context_(context),
        sampler_(options.sampler) {}

  Answer answer(const std::vector<int32_t>& prompt) {
    Answer answer = read(prompt);
    go_on(prompt, answer);
    return answer;
  }

  Answer read(const std::vector<int32_t>& prompt) {
    Answer answer;
    answer.prompt_tokens = static_cast<int64_t>(prompt.size());
    const Clock::time_point begin = Clock::now();
    session_.prefill(prompt, options_.model.chunk, options_.count > 0 ? Outputs::kLast : Outputs::kNone, nullptr,
                     context_);
    answer.prefill_s = since(begin);
    bar_.wipe();
    return answer;
  }

  // After the prompt, which the session has read.
  void go_on(const std::vector<int32_t>& prompt, Answer& answer) {
    for (int32_t id : prompt) sampler_.accept(id);
    if (speculation_) speculation_->read(prompt);

    Utf8Stream characters;
    StopStrings stops(options_.stops);
    std::span<const float> next = session_.last_logits();
    for (int64_t i = 0; i < options_.count; ++i) {
      const int32_t id = sampler_.sample(next);
      sampler_.accept(id);
      answer.tokens.push_back(id);
      const bool end = tokenizer_.is_end(id) && !options_.ignore_end;
      if (!end) show(stops.push(characters.push(tokenizer_.piece(id, false))), answer);
      if (stops.stopped()) break;
      // A conversation needs the end token in the cache before the next question.
      answer.ended = end;
      if (end && !options_.chat) break;
      if (position() == session_.context()) {
        answer.full = true;
        break;
      }
      // A saved text ends with its last token.
      if (i + 1 == options_.count && !options_.chat && options_.save_state.empty()) break;
      const Clock::time_point begin = Clock::now();
      next = speculation_ ? speculation_->decode(id, context_) : session_.decode(id, context_);
      answer.decode_s += since(begin);
      ++answer.decoded;
      if (end) break;
    }
    if (speculation_) speculation_->settle(context_);
    if (!stops.stopped()) show(stops.push(characters.finish()), answer);
    show(stops.finish(), answer);
  }

  const Speculation* speculation() const { return speculation_; }

 private:
  int64_t position() const { return speculation_ ? speculation_->position() : session_.position(); }

  void show(const std::string& text, Answer& answer) {
    answer.text += text;
    if (options_.json || text.empty()) return;
    write_out(text);
    std::fflush(stdout);
  }

  const RunOptions& options_;
  const Tokenizer& tokenizer_;
  Ensemble& session_;
  Speculation* speculation_;
  ProgressBar& bar_;
  Context& context_;
  Sampler sampler_;
};

void print_summary(const Answer& answer, const Ensemble& session, const Speculation* speculation) {
  const std::string line = fmt::format(
      "prefill {} tokens, {:.1f} tok/s; decode {} tokens, {:.1f} tok/s{}; keys and values {}{}; peak memory {}{}",
      answer.prompt_tokens, answer.prefill_tps(), answer.tokens.size(), answer.decode_tps(),
      speculation ? draft_summary(speculation->counts()) : "", bytes_text(session.bytes()),
      session.disk_bytes() ? fmt::format(" ({} on disk)", bytes_text(session.disk_bytes())) : "",
      bytes_text(peak_memory()), answer.full ? "; the context is full" : "");
  fmt::print(stderr, "{}\n", coloured(line, Colour::kDim, has_colour(Stream::kError)));
}

Json json_report(const Answer& answer, const Ensemble& session, const Speculation* speculation) {
  Json report = {{"tokens", answer.tokens},
                 {"text", answer.text},
                 {"prompt_tokens", answer.prompt_tokens},
                 {"prefill_tps", answer.prefill_tps()},
                 {"decode_tps", answer.decode_tps()},
                 {"kv_bytes", session.bytes()},
                 {"kv_disk_bytes", session.disk_bytes()},
                 {"peak_rss_bytes", peak_memory()}};
  if (speculation) report["draft"] = draft_json(speculation->counts());
  return report;
}

// The text that a model reads next in a conversation; what came before is in its cache.
class Conversation {
 public:
  explicit Conversation(const LanguageModel& model)
      : format_(model.tokenizer().chat_template(), model.graph().name), tokenizer_(model.tokenizer()) {}

  std::vector<int32_t> ask(const std::string& question) {
    const bool first = messages_.empty();
    const std::string before = first ? "" : format_.render(messages_, false);
    messages_.push_back({"user", question});
    std::string text = format_.render(messages_).substr(before.size());
    // The answer's end token may stand in the cache; the line feed after it never does.
    if (!first) text.insert(0, ended_ ? "\n" : "<|im_end|>\n");
    return tokenizer_.encode(text, first, true);
  }

  void answered(const Answer& answer) {
    messages_.push_back({"assistant", answer.text});
    ended_ = answer.ended;
  }

 private:
  ChatFormat format_;
  const Tokenizer& tokenizer_;
  std::vector<ChatMessage> messages_;
  bool ended_ = false;
};

int converse(Generator& generator, Conversation& conversation, const Ensemble& session) {
  const bool terminal = is_terminal(Stream::kOut);
  if (terminal) fmt::print(stderr, "Ask something; an empty line or Ctrl-D ends.\n");
  for (std::string line;;) {
    if (terminal) fmt::print("{}", coloured("> ", Colour::kGreen, has_colour(Stream::kOut)));
    std::fflush(stdout);
    if (!std::getline(std::cin, line) || line.empty()) break;
    const Answer answer = generator.answer(conversation.ask(line));
    conversation.answered(answer);
    fmt::print("\n");
    print_summary(answer, session, generator.speculation());
    if (answer.full) break;
  }
  return interrupted() ? 128 + interrupted() : 0;
}

// Several answers to one prompt that the session has read, each from a fork of its own.
int print_samples(RunOptions options, const LanguageModel& model, const Ensemble& session, Drafter* drafter,
                  const Answer& read, const std::vector<int32_t>& prompt, ProgressBar& bar, Context& context) {
  Json samples = Json::array();
  for (int64_t i = 0; i < options.samples; ++i, ++options.sampler.seed) {
    Ensemble own = session.fork();
    std::optional<Speculation> speculation;
    if (drafter) speculation.emplace(own.alone(), *drafter, options.draft.tokens);
    Generator generator(options, model, own, speculation ? &*speculation : nullptr, bar, context);
    const std::string title = fmt::format("sample {}, seed {}:", i + 1, options.sampler.seed);
    if (!options.json) fmt::print("{}\n", coloured(title, Colour::kBold, has_colour(Stream::kOut)));
    Answer answer = read;
    generator.go_on(prompt, answer);
    if (options.json) {
      samples.push_back(json_report(answer, own, generator.speculation()));
      samples.back()["seed"] = options.sampler.seed;
      continue;
    }
    fmt::print("{}", answer.text.ends_with('\n') ? "\n" : "\n\n");
    std::fflush(stdout);
    print_summary(answer, own, generator.speculation());
  }
  if (options.json) print_json({{"samples", samples}});
  return 0;
}

int run_run(const RunOptions& given, bool has_prompt) {
  RunOptions options = given;
  options.sampler.seed = static_cast<uint64_t>(options.seed);
  std::string text;
  if (!options.text.empty()) text = read_text(options.text);
  if (!text.empty() && !text.ends_with('\n') && !options.prompt.empty()) text += '\n';
  text += options.prompt;
  const bool conversation = options.chat && !has_prompt && options.text.empty();
  if (options.chat && !(options.load_state + options.save_state).empty())
    throw UsageError("--load-state and --save-state continue a text: leave out --chat");
  if (conversation && options.json) throw UsageError("--json needs a prompt (-p or -f)");
  if (!conversation && !options.chat && !has_prompt && options.text.empty())
    throw UsageError("give a prompt (-p PROMPT or -f TEXTFILE), or --chat for a conversation");
  if (options.samples > 1 && (conversation || !options.save_state.empty()))
    throw UsageError("--samples answers one prompt several times: leave out conversations and --save-state");
  if (options.samples > 1 && options.sampler.temperature == 0)
    throw UsageError("--samples are all the same at --temp 0");
  if (!conversation) text = require_text(text, options.text.empty() ? "the prompt" : options.text);
  check_policies(options.policy);
  check_draft(options.draft);
  if (options.draft.has_session() && !options.load_state.empty())
    throw UsageError("--load-state has no text that another session could read: draft with --draft ngram");
  (void)Sampler(options.sampler);
  check_writable(options.save_state);

  ProgressBar bar;
  Context context = make_context(options.model.threads, &bar);
  const auto model = load_model(options.model, context);
  const Readings policy = model_readings(options.policy, model->compute(), registry());
  Ensemble session(model, policy, registry(), options.model.context);
  std::unique_ptr<Drafter> drafter;
  std::optional<Speculation> speculation;
  if (options.draft.any()) {
    session.alone().check_verifies();
    drafter = make_drafter(options.draft, model, options.model, session.context(), context);
    speculation.emplace(session.alone(), *drafter, options.draft.tokens);
  }
  Generator generator(options, *model, session, speculation ? &*speculation : nullptr, bar, context);
  std::optional<Conversation> chat;
  if (options.chat) chat.emplace(*model);
  bar.wipe();
  if (conversation) return converse(generator, *chat, session);

  if (!options.save_state.empty()) session.check_saves();
  const bool begins = options.load_state.empty();
  if (!begins) session.restore(options.load_state);
  const std::vector<int32_t> prompt = chat ? chat->ask(text) : model->tokenizer().encode(text, begins);
  if (options.samples > 1)
    return print_samples(options, *model, session, drafter.get(), generator.read(prompt), prompt, bar, context);
  const Answer answer = generator.answer(prompt);
  if (!options.save_state.empty()) session.save(options.save_state);
  if (options.json) {
    print_json(json_report(answer, session, generator.speculation()));
    return 0;
  }
  if (!answer.text.ends_with('\n')) fmt::print("\n");
  std::fflush(stdout);
  print_summary(answer, session, generator.speculation());
  return 0;
}

}  // namespace

const Command kRun = {
    "run", "Continue a text or answer a question with a model.",
    "The text streams to standard output; a last line on standard error tells the speed and the memory.\n\n"
    "Examples:\n"
    "  attend run -p \"Once upon a time\"\n"
    "  attend run --chat -p \"Why is the sky blue?\" --temp 0.7\n"
    "  attend run --chat\n"
    "  attend run -f report.txt -p \"In short, \" --draft ngram\n"
    "  attend run -f long.txt -n 0 --save-state long.state\n"
    "  attend run --load-state long.state -p \"Summary:\"\n"
    "  attend run -f long.txt -p \"Summary:\" --policy \"softmax:window=1024,sinks=4\"",
    [](Options& options) -> std::function<int()> {
      auto o = std::make_shared<RunOptions>();
      options.text("-p,--prompt PROMPT", o->prompt, "text to continue, or the question with --chat");
      options.text("-f,--file TEXTFILE", o->text, "text before the prompt; - is standard input");
      options.flag("--chat", o->chat, "ask in the model's chat format; without a prompt, a conversation");
      options.integer("-n N", o->count, 0, int64_t{1} << 30, "most tokens to generate (default: 256)");
      options.integer("--samples N", o->samples, 1, 1 << 16,
                      "answers, with seeds S, S + 1, ..; the prompt is read once (default: 1)");
      options.text("--save-state FILE", o->save_state, "keep keys and values of text and answer for --load-state");
      options.text("--load-state FILE", o->load_state,
                   "go on after the text of --save-state, of the same model and policy (the store may differ)");
      declare_policy(options, o->policy);
      declare_json(options, o->json);
      options.group("Choosing tokens");
      options.real("--temp T", o->sampler.temperature, 0, 1e6, "temperature; 0 takes the most likely (default: 0)");
      options.integer("--top-k K", o->sampler.top_k, 0, 1 << 30, "keep the K most likely; 0: all (default: 40)");
      options.real("--top-p P", o->sampler.top_p, 1e-9, 1,
                   "keep the most likely that reach P together (default: 0.95)");
      options.real("--min-p P", o->sampler.min_p, 0, 1, "keep those at least P times the most likely (default: 0.05)");
      options.real("--repeat-penalty R", o->sampler.repeat_penalty, 1e-6, 1e6,
                   "make the last 64 tokens less likely; 1: off (default: 1)");
      options.integer("--seed S", o->seed, 0, INT64_MAX, "of the random choice (default: 0)");
      options.texts("--stop STR", o->stops, "end before this text appears; may be repeated");
      options.flag("--ignore-eos", o->ignore_end, "go on after an end token");
      declare_draft(options, o->draft);
      declare_model_options(options, o->model);
      return [o, &options] { return run_run(*o, options.given("--prompt")); };
    }};

}  // namespace attend::app
