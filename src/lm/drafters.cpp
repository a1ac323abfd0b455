#include "attend/lm/drafter.h"

#include <fmt/format.h>

#include <algorithm>

#include "attend/tensor/error.h"

namespace attend {
namespace {

class NgramDrafter : public Drafter {
 public:
  explicit NgramDrafter(const NgramOptions& options) : o_(options) {}

  void propose(std::span<const int32_t> text, int64_t most, std::vector<int32_t>& draft, Context&) override {
    const int64_t size = static_cast<int64_t>(text.size());
    for (int64_t n = std::min(o_.n, size - 1); n > 0; --n) {
      const auto last = text.end() - n;
      // The newest place before the text's end: places may overlap it, where a text repeats itself.
      for (auto place = last; place-- != text.begin();) {
        if (*place != *last || !std::equal(place, place + n, last)) continue;
        const auto next = place + n;
        const int64_t count = std::min({most, o_.max, static_cast<int64_t>(text.end() - next)});
        draft.insert(draft.end(), next, next + count);
        return;
      }
    }
  }

 private:
  NgramOptions o_;
};

class SessionDrafter : public Drafter {
 public:
  SessionDrafter(std::shared_ptr<const LanguageModel> model, const Policy& policy, const Registry& registry,
                 int64_t context)
      : session_(std::move(model), policy, registry, context) {
    session_.check_verifies();
  }

  void propose(std::span<const int32_t> text, int64_t most, std::vector<int32_t>& draft, Context& context) override {
    forget_other(text, context);
    // Of the last draft, what the text went on with stays.
    const size_t settled = read_.size();
    size_t kept = 0;
    while (kept < tried_.size() && settled + kept < text.size() && tried_[kept] == text[settled + kept]) ++kept;
    session_.accept(static_cast<int64_t>(kept), context);
    tried_.clear();
    read_.assign(text.begin(), text.begin() + static_cast<int64_t>(settled + kept));
    if (static_cast<int64_t>(text.size()) > session_.context()) return;
    read_rest(text.subspan(read_.size()), context);
    std::span<const float> logits = session_.last_logits();
    while (!logits.empty()) {
      draft.push_back(static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
      if (static_cast<int64_t>(draft.size()) >= most || session_.most_verified() < 1) break;
      const int32_t id = draft.back();
      session_.verify({&id, 1}, context);
      tried_.push_back(id);
      logits = session_.last_logits();
    }
  }

 private:
  static constexpr size_t kPrompt = 64;  // tokens from which on they are read as a prompt

  // What was read of another text goes: all of it, where the policy can't take it back.
  void forget_other(std::span<const int32_t> text, Context& context) {
    const int64_t common = std::ranges::mismatch(read_, text).in1 - read_.begin();
    if (common == static_cast<int64_t>(read_.size())) return;
    session_.accept(0, context);
    tried_.clear();
    read_.resize(static_cast<size_t>(common));
    try {
      session_.truncate(common);
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::kUnsupported) throw;
      session_.clear();
      read_.clear();
    }
  }

  void read_rest(std::span<const int32_t> rest, Context& context) {
    const bool prompt = session_.position() == 0 || rest.size() >= kPrompt;
    if (prompt && !rest.empty()) session_.prefill(rest, 512, Outputs::kLast, nullptr, context);
    for (size_t done = 0; !prompt && done < rest.size();) {
      const size_t n = std::min(rest.size() - done, static_cast<size_t>(session_.most_verified()));
      session_.verify(rest.subspan(done, n), context);
      session_.accept(static_cast<int64_t>(n), context);
      done += n;
    }
    read_.insert(read_.end(), rest.begin(), rest.end());
  }

  Session session_;
  std::vector<int32_t> read_, tried_;  // tried_: on trial, after read_
};

void check_vocabulary(const LanguageModel& target, const LanguageModel& draft) {
  const Tokenizer &a = target.tokenizer(), &b = draft.tokenizer();
  auto refuse = [&](const std::string& what) {
    throw Error(ErrorKind::kSpec, "draft", "model", draft.graph().name,
                fmt::format("must have the vocabulary of {}: {}", target.graph().name, what));
  };
  if (target.graph().vocabulary != draft.graph().vocabulary)
    refuse(fmt::format("{} tokens, not {}", draft.graph().vocabulary, target.graph().vocabulary));
  if (a.size() != b.size()) refuse(fmt::format("{} tokens, not {}", b.size(), a.size()));
  for (int32_t id = 0; id < a.size(); ++id)
    if (a.piece(id, true) != b.piece(id, true) || a.is_end(id) != b.is_end(id)) refuse(fmt::format("token {}", id));
}

constexpr Option kNgramOptions[] = {
    {"n", "tokens", "the longest end of the text that is looked up", "3", OptionType::kInteger, 1, 64},
    {"max", "tokens", "of a draft", "8", OptionType::kInteger, 1, 1024}};

}  // namespace

NgramOptions ngram_options(std::string_view spec) {
  Entry entry{};  // of a registry of drafters alone
  entry.name = "ngram";
  entry.options = kNgramOptions;
  Registry drafters;
  drafters.add(entry);
  const Spec complete = drafters.complete(parse_spec(spec));
  return {.n = complete.integer("n"), .max = complete.integer("max")};
}

std::unique_ptr<Drafter> make_ngram_drafter(const NgramOptions& options) {
  for (const auto& [name, value, most] : {std::tuple{"n", options.n, 64}, {"max", options.max, 1024}})
    if (value < 1 || value > most)
      throw Error(ErrorKind::kArgument, "ngram", name, std::to_string(value), fmt::format("must be 1..{}", most));
  return std::make_unique<NgramDrafter>(options);
}

std::unique_ptr<Drafter> make_session_drafter(const LanguageModel& target, std::shared_ptr<const LanguageModel> model,
                                              const Policy& policy, const Registry& registry, int64_t context) {
  if (model.get() != &target) check_vocabulary(target, *model);
  return std::make_unique<SessionDrafter>(std::move(model), policy, registry, context);
}

}  // namespace attend
