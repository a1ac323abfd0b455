// Speculative decoding is lossless: text and logits, bit for bit, and all that the session holds afterwards are those
// of plain decoding, under every policy, whatever a drafter guesses.
#include "attend/lm/speculation.h"

#include <fmt/format.h>

#include <random>

#include "attend/lm/sampler.h"
#include "support/expect_error.h"
#include "support/small_session.h"

namespace attend {
namespace {

using test::all_logits;
using test::expect_error;
using test::load;
using test::open;
using test::SmallModel;
using test::some_ids;

struct Text {
  std::vector<int32_t> tokens;
  std::vector<float> logits;

  void add(std::span<const float> row) { logits.insert(logits.end(), row.begin(), row.end()); }
};

// What the session goes on with, and holds.
void probe(Session& session, Text& text, Context& context) {
  for (int32_t id : {7, 30, 119}) text.add(session.decode(id, context));
  for (float x : all_logits(session, some_ids(9), 4, context)) text.logits.push_back(x);
  for (int head = 0; head < 2; ++head)
    for (int32_t position : session.kept_positions(1, head)) text.logits.push_back(static_cast<float>(position));
}

constexpr int64_t kTokens = 60;

SamplerOptions sampler_options(unsigned seed) {
  return {.temperature = seed % 2 ? 0.0 : 0.4, .repeat_penalty = seed % 3 ? 1.0 : 1.3, .seed = seed};
}

// Generates with `decode`, as a user would.
template <class F>
Text generate(Session& session, const std::vector<int32_t>& prompt, unsigned seed, Context& context, const F& decode) {
  Text text;
  session.prefill(prompt, 16, Outputs::kLast, nullptr, context);
  Sampler sampler(sampler_options(seed));
  std::span<const float> next = session.last_logits();
  for (int64_t i = 0; i < kTokens; ++i) {
    text.add(next);
    text.tokens.push_back(sampler.sample(next));
    sampler.accept(text.tokens.back());
    next = decode(text.tokens.back());
  }
  text.add(next);
  return text;
}

Text plain(Session session, const std::vector<int32_t>& prompt, unsigned seed) {
  Context context(2);
  Text text = generate(session, prompt, seed, context, [&](int32_t id) { return session.decode(id, context); });
  probe(session, text, context);
  return text;
}

Text speculative(Session session, const std::vector<int32_t>& prompt, unsigned seed, Drafter& drafter, int64_t most,
                 int threads, Speculation::Counts* counts = nullptr) {
  Context context(threads);
  Speculation speculation(session, drafter, most);
  speculation.read(prompt);
  Text text = generate(session, prompt, seed, context, [&](int32_t id) {
    const int64_t before = speculation.position();
    const auto row = speculation.decode(id, context);
    EXPECT_EQ(speculation.position(), before + 1);
    return row;
  });
  speculation.settle(context);
  EXPECT_EQ(session.position(), static_cast<int64_t>(prompt.size()) + kTokens);
  if (counts) *counts = speculation.counts();
  probe(session, text, context);
  return text;
}

// Knows the text, and spoils each guess with a likelihood; 1: always wrong.
class Oracle : public Drafter {
 public:
  Oracle(std::vector<int32_t> whole, double spoilt) : whole_(std::move(whole)), spoilt_(spoilt) {}
  void propose(std::span<const int32_t> text, int64_t most, std::vector<int32_t>& draft, Context&) override {
    EXPECT_TRUE(std::equal(text.begin(), text.end(), whole_.begin()));
    for (size_t i = text.size(); i < whole_.size() && most-- > 0; ++i) {
      const bool wrong = static_cast<double>(random_() % 1000) < 1000 * spoilt_;
      draft.push_back(wrong ? (whole_[i] + 1) % 269 : whole_[i]);
    }
  }

 private:
  std::vector<int32_t> whole_;
  double spoilt_;
  std::mt19937 random_{3};
};

std::vector<std::string> policies() {
  std::vector<std::string> all = {"softmax",
                                  "softmax + bf16",
                                  "softmax:window=20,sinks=3",
                                  "streaming:window=20,sinks=3",
                                  "dca:context=40,chunk=32",
                                  "adakv + snapkv:budget=20,observe=6,stride=32",
                                  "pyramid:beta=3 + h2o:budget=20,stride=32",
                                  "softmax:window=50 + h2o:budget=24,stride=24"};
  for (const Entry* entry : registry().entries())
    if (entry->kind == Kind::kRetention)
      for (int stride : {0, 1, 16}) all.push_back(fmt::format("{}:budget=20,stride={}", entry->name, stride));
  return all;
}

TEST(Speculation, IsLosslessUnderEveryPolicyAndDrafter) {
  constexpr const char* kStores[] = {"contiguous", "paged:page=4", "virtual", "offloaded"};
  SmallModel deep;
  deep.layers = 3;
  const auto model = load(deep, ComputeMode::kDefault);
  unsigned seed = 0;
  for (const std::string& policy : policies()) {
    ++seed;
    const char* store = kStores[seed % 4];
    SCOPED_TRACE(fmt::format("{}, {}, seed {}", policy, store, seed));
    const std::vector<int32_t> prompt = some_ids(30 + seed);
    const Text wanted = plain(open(model, policy), prompt, seed);
    std::vector<int32_t> whole = prompt;
    whole.insert(whole.end(), wanted.tokens.begin(), wanted.tokens.end());
    auto check = [&](const char* name, Drafter& drafter, int64_t most) {
      const Text got =
          speculative(open(model, policy + " + " + store), prompt, seed, drafter, most, 1 + static_cast<int>(seed % 3));
      EXPECT_EQ(got.tokens, wanted.tokens) << name;
      EXPECT_EQ(got.logits, wanted.logits) << name;
    };
    for (double spoilt : {0.0, 0.3, 1.0}) {
      Oracle oracle(whole, spoilt);
      check("oracle", oracle, spoilt == 0 ? 15 : 5);
    }
    const auto ngram = make_ngram_drafter({});
    check("ngram", *ngram, 8);
    for (const char* cheap : {"softmax:window=12,sinks=2", "h2o:budget=16,stride=8"}) {
      const auto drafter =
          make_session_drafter(*model, model, model_policy(cheap, model->compute(), registry()), registry());
      check(cheap, *drafter, 4);
    }
  }
}

TEST(Speculation, CountsStepsAndGuesses) {
  const auto model = load(SmallModel{});
  const std::vector<int32_t> prompt = some_ids(20);
  const Text wanted = plain(open(model), prompt, 1);
  std::vector<int32_t> whole = prompt;
  whole.insert(whole.end(), wanted.tokens.begin(), wanted.tokens.end());
  Speculation::Counts right, wrong;
  Oracle knows(whole, 0), errs(whole, 1);
  speculative(open(model), prompt, 1, knows, 5, 2, &right);
  EXPECT_EQ(right.tokens, kTokens);
  EXPECT_EQ(right.steps, kTokens / 6);
  EXPECT_EQ(right.drafted, right.accepted);
  EXPECT_DOUBLE_EQ(right.tokens_a_step(), 6);
  speculative(open(model), prompt, 1, errs, 5, 2, &wrong);
  EXPECT_EQ(wrong.steps, kTokens);
  EXPECT_EQ(wrong.accepted, 0);
  EXPECT_EQ(wrong.drafted, 5 + kTokens - 2) << "one at a time after the first draft, none at the end";
  // The same model under the same policy is always right.
  const auto twin =
      make_session_drafter(*model, model, model_policy("softmax", model->compute(), registry()), registry());
  Speculation::Counts same;
  speculative(open(model), prompt, 1, *twin, 5, 2, &same);
  EXPECT_EQ(same.steps, kTokens / 6);
}

TEST(Speculation, EndsWithTheContext) {
  const auto model = load(SmallModel{});
  const std::vector<int32_t> prompt = some_ids(20);
  Context context(1);
  Session session = open(model, "softmax", 26);
  Oracle oracle(some_ids(60), 0);
  Speculation speculation(session, oracle, 15);
  speculation.read(prompt);
  session.prefill(prompt, 8, Outputs::kLast, nullptr, context);
  const std::vector<int32_t> whole = some_ids(26);
  for (int32_t id : std::span(whole).subspan(20)) speculation.decode(id, context);
  EXPECT_EQ(speculation.position(), 26);
  expect_error(ErrorKind::kArgument, "the context holds 26", [&] { speculation.decode(1, context); });
}

TEST(Verify, KeepsAsManyAsAreAcceptedAndNoMore) {
  const auto model = load(SmallModel{}, ComputeMode::kDefault);
  for (const char* policy : {"softmax", "tova:budget=12,stride=8", "h2o:budget=12,stride=8", "softmax:window=9"})
    for (unsigned seed = 1; seed <= 5; ++seed) {
      SCOPED_TRACE(fmt::format("{}, seed {}", policy, seed));
      std::mt19937 random(seed);
      Context context(2);
      Session tried = open(model, policy), wanted = open(model, policy);
      for (Session* session : {&tried, &wanted}) session->prefill(some_ids(13), 5, Outputs::kNone, nullptr, context);
      for (int round = 0; round < 12; ++round) {
        std::vector<int32_t> ids;
        int64_t last = 0;
        for (uint32_t calls = 1 + random() % 2; calls > 0 && tried.most_verified() > 0; --calls) {
          last = 1 + static_cast<int64_t>(random() % 6) % tried.most_verified();
          for (int64_t i = 0; i < last; ++i) ids.push_back(static_cast<int32_t>(random() % 269));
          tried.verify(std::span(ids).last(static_cast<size_t>(last)), context);
        }
        const int64_t kept = static_cast<int64_t>(random() % (ids.size() + 1));
        tried.accept(kept, context);
        std::vector<float> row;
        for (int64_t i = 0; i < kept; ++i) {
          const auto logits = wanted.decode(ids[static_cast<size_t>(i)], context);
          row.assign(logits.begin(), logits.end());
        }
        EXPECT_EQ(tried.position(), wanted.position());
        const auto got = tried.last_logits();
        if (kept > static_cast<int64_t>(ids.size()) - last)
          EXPECT_EQ(std::vector(got.begin(), got.end()), row);
        else
          EXPECT_TRUE(got.empty());
      }
      Text a, b;
      probe(tried, a, context);
      probe(wanted, b, context);
      EXPECT_EQ(a.logits, b.logits);
    }
}

TEST(Verify, Refuses) {
  const auto model = load(SmallModel{});
  Context context(1);
  Session session = open(model, "h2o:budget=12,stride=16");
  session.prefill(some_ids(20), 8, Outputs::kLast, nullptr, context);
  EXPECT_EQ(session.most_verified(), 12);
  expect_error(ErrorKind::kArgument, "must be at most 12", [&] { session.verify(some_ids(13), context); });
  expect_error(ErrorKind::kArgument, "token id = 269", [&] { session.verify(std::vector<int32_t>{269}, context); });
  expect_error(ErrorKind::kArgument, "at least one", [&] { session.verify({}, context); });
  expect_error(ErrorKind::kArgument, "must be 0..0", [&] { session.accept(1, context); });
  session.accept(0, context);
  session.verify(some_ids(5), context);
  EXPECT_EQ(session.most_verified(), 7);
  expect_error(ErrorKind::kArgument, "5 on trial", [&] { session.decode(1, context); });
  expect_error(ErrorKind::kArgument, "5 on trial", [&] { session.truncate(20); });
  expect_error(ErrorKind::kArgument, "must be 0..5", [&] { session.accept(6, context); });
  session.clear();
  EXPECT_EQ(session.most_verified(), 16);
  Session selective = open(model, "quest");
  expect_error(ErrorKind::kUnsupported, "selector", [&] { selective.verify(some_ids(1), context); });
  const auto ngram = make_ngram_drafter({});
  expect_error(ErrorKind::kUnsupported, "selector", [&] { Speculation(selective, *ngram, 4); });
  expect_error(ErrorKind::kArgument, "must be 1..15", [&] { Speculation(session, *ngram, 16); });
}

TEST(Drafter, NgramsFollowTheNewestLongestMatch) {
  Context context(1);
  auto draft = [&](const std::vector<int32_t>& text, const NgramOptions& options, int64_t most = 8) {
    std::vector<int32_t> guess;
    make_ngram_drafter(options)->propose(text, most, guess, context);
    return guess;
  };
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(draft({1, 2, 3, 4, 5, 9, 2, 3, 6, 1, 2, 3}, {}), (Ids{4, 5, 9, 2, 3, 6, 1, 2}));
  EXPECT_EQ(draft({1, 2, 3, 4, 5, 9, 2, 3, 6, 1, 2, 3}, {.n = 2}), (Ids{6, 1, 2, 3}));
  EXPECT_EQ(draft({1, 2, 3, 4, 5, 9, 2, 3, 6, 1, 2, 3}, {.max = 3}), (Ids{4, 5, 9}));
  EXPECT_EQ(draft({1, 2, 3, 4, 5, 9, 2, 3, 6, 1, 2, 3}, {}, 2), (Ids{4, 5}));
  EXPECT_EQ(draft({8, 7, 3, 5, 3}, {}), (Ids{5, 3})) << "one token, where no longer end was there before";
  EXPECT_EQ(draft({4, 4, 4}, {}), (Ids{4})) << "places may overlap the end";
  EXPECT_EQ(draft({1, 2, 3}, {}), Ids{});
  EXPECT_EQ(draft({1}, {}), Ids{});
  EXPECT_EQ(draft({}, {}), Ids{});
  EXPECT_EQ(ngram_options("ngram:n=5").n, 5);
  EXPECT_EQ(ngram_options("ngram").max, 8);
  expect_error(ErrorKind::kSpec, "ngram", [&] { ngram_options("gram"); });
  expect_error(ErrorKind::kSpec, "n", [&] { ngram_options("ngram:n=0"); });
  expect_error(ErrorKind::kArgument, "1..64", [&] { make_ngram_drafter({.n = 65}); });
}

TEST(Drafter, RefusesAnotherVocabularyAndSelectors) {
  const auto model = load(SmallModel{});
  SmallModel renamed, other;
  renamed.first_token = "<|start|>";
  const Policy policy = model_policy("softmax", ComputeMode::kF32, registry());
  expect_error(ErrorKind::kUnsupported, "selector", [&] {
    make_session_drafter(*model, model, model_policy("quest", ComputeMode::kF32, registry()), registry());
  });
  expect_error(ErrorKind::kSpec, "must have the vocabulary of",
               [&] { make_session_drafter(*model, load(renamed), policy, registry()); });
  other.architecture = "gemma3";
  const auto gemma = load(other);
  EXPECT_NE(make_session_drafter(*model, gemma, policy, registry()), nullptr) << "the same vocabulary";
}

}  // namespace
}  // namespace attend
