// Selectors in a model: against each paper's rule followed in plain loops over a forward in double precision, and what
// every entry promises.
#include <map>

#include "lm/follow_rule.h"
#include "lm/selective_reader.h"
#include "support/expect_error.h"

namespace attend {
namespace {

using test::expect_error;
using test::expect_near;
using test::Kept;
using test::Keys;
using test::load;
using test::NaiveModel;
using test::open;
using test::prompt_then_decode;
using test::Row;
using test::SmallModel;
using test::some_ids;
using test::Weights;

constexpr int64_t kPrompt = test::kRulePrompt;

// The `budget` keys that the heads of a group gave most weight in sum for a token.
std::vector<bool> most_weighted(const Weights& weights, size_t kv, int64_t token, int64_t budget) {
  std::vector<std::pair<double, int64_t>> sums;
  for (int64_t j = 0; j <= token; ++j) {
    double sum = 0;
    for (size_t h = 2 * kv; h < 2 * kv + 2; ++h) sum += weights[h][static_cast<size_t>(token)][static_cast<size_t>(j)];
    sums.emplace_back(-sum, j);
  }
  std::sort(sums.begin(), sums.end());
  std::vector<bool> chosen(weights[0].size(), false);
  for (int64_t n = 0; n < std::min<int64_t>(budget, token + 1); ++n)
    chosen[static_cast<size_t>(sums[static_cast<size_t>(n)].second)] = true;
  return chosen;
}

TEST(Selector, RecycledReadsWhatTheLastFullStepLookedAt) {
  const SmallModel small;
  const std::string bytes = small.bytes();
  const std::vector<int32_t> ids = some_ids(45);
  NaiveModel naive(small, bytes);
  std::vector<std::vector<bool>> chosen(2);
  naive.evict = [&](int64_t, int64_t next, const Weights& w, const Keys&, Kept& kept) {
    for (size_t kv = 0; kv < 2; ++kv) {
      const int64_t step = next - kPrompt;  // of the token that comes next
      if (step >= 1 && (step - 1) % 4 == 0) chosen[kv] = most_weighted(w, kv, next - 1, 7);
      kept[kv].assign(kept[kv].size(), true);
      if (step < 1 || step % 4 == 0) continue;
      const int64_t full = kPrompt + step / 4 * 4;
      for (int64_t j = 0; j <= full; ++j) kept[kv][static_cast<size_t>(j)] = chosen[kv][static_cast<size_t>(j)];
    }
  };
  const std::vector<Row> wanted = naive.logits(ids);
  naive.evict = nullptr;
  EXPECT_NE(wanted, naive.logits(ids));
  Context context(2);
  Session session = open(load(small), "recycled:budget=7,stride=4");
  expect_near(prompt_then_decode(session, ids, 16, context), wanted);
}

TEST(Selector, TidalReadsWhatItsChoosingLayersLookedAt) {
  SmallModel small;
  small.layers = 6;
  const std::string bytes = small.bytes();
  const std::vector<int32_t> ids = some_ids(45);
  NaiveModel naive(small, bytes);
  std::map<std::pair<int64_t, size_t>, std::vector<bool>> chosen;  // of a token and kv head
  naive.evict = [&](int64_t layer, int64_t next, const Weights& w, const Keys&, Kept& kept) {
    for (size_t kv = 0; kv < 2; ++kv) {
      if ((layer == 1 || layer == 3) && next - 1 >= kPrompt) {
        std::vector<bool>& own = chosen[{next - 1, kv}] = most_weighted(w, kv, next - 1, 7);
        if (!own[static_cast<size_t>(next) - 1]) {  // the newest key takes the last one's place
          size_t last = static_cast<size_t>(next) - 1;
          while (!own[last]) --last;
          own[last] = false, own[static_cast<size_t>(next) - 1] = true;
        }
      }
      const bool reads_part = (layer == 2 || layer > 3) && next >= kPrompt && next < 45;
      if (reads_part) kept[kv] = chosen[{next, kv}];
    }
  };
  const std::vector<Row> wanted = naive.logits(ids);
  Context context(2);
  Session session = open(load(small), "tidal:budget=7,select=1,correct=3");
  expect_near(prompt_then_decode(session, ids, 16, context), wanted);
}

std::vector<std::string> selectors(int64_t budget) {
  std::vector<std::string> specs;
  for (const Entry* entry : registry().entries())
    if (entry->kind == Kind::kSelector)
      specs.push_back(entry->name == "magicpig" ? fmt::format("magicpig:sinks=2,recent={},bits=4,tables=6", budget / 2)
                      : entry->name == "graph"  ? fmt::format("graph:budget={},degree=6,effort=6", budget)
                                                : fmt::format("{}:budget={}", entry->name, budget));
  EXPECT_GE(specs.size(), 4u);
  return specs;
}

SmallModel deep() {
  SmallModel small;
  small.layers = 5;
  return small;
}

TEST(Selector, WithABudgetBeyondTheTextChangesNoBit) {
  const auto model = load(deep());
  const std::vector<int32_t> ids = some_ids(60);
  Context context(2);
  Session exact = open(model);
  const std::vector<float> wanted = prompt_then_decode(exact, ids, 16, context);
  for (const std::string& policy : selectors(60)) {
    Session session = open(model, policy);
    EXPECT_EQ(prompt_then_decode(session, ids, 16, context), wanted) << policy;
  }
}

// Expects the same logits for several chunks, threads and stores, and gives them.
std::vector<float> any_way(const std::shared_ptr<const LanguageModel>& model, const std::vector<int32_t>& ids,
                           const std::string& policy) {
  std::vector<std::vector<float>> all;
  for (const auto& [chunk, threads, store] :
       {std::tuple{512, 1, "contiguous"}, {7, 2, "paged:page=8"}, {1, 3, "virtual"}, {40, 2, "offloaded"}}) {
    Context context(threads);
    Session session = open(model, fmt::format("{} + {}", policy, store));
    all.push_back(prompt_then_decode(session, ids, chunk, context));
  }
  for (const auto& logits : all) EXPECT_EQ(logits, all[0]);
  return all[0];
}

TEST(Selector, HasTheSameBitsForAnyChunksThreadsAndStores) {
  const auto model = load(deep(), ComputeMode::kDefault);
  const std::vector<int32_t> ids = some_ids(70);
  std::vector<std::string> policies = selectors(16);
  policies.push_back("quest:budget=16,page=4 + knorm:budget=30,stride=16");
  policies.push_back("recycled:budget=10 + snapkv:budget=20");
  for (const std::string& policy : policies) {
    SCOPED_TRACE(policy);
    const std::vector<float> logits = any_way(model, ids, policy);
    Context context(2);
    Session exact = open(model);
    EXPECT_NE(prompt_then_decode(exact, ids, 512, context), logits);
  }
}

TEST(Selector, HasTheSameBitsWhileKeysAge) {
  SmallModel small = deep();
  small.head = 32;
  const auto model = load(small, ComputeMode::kDefault);
  const std::vector<int32_t> ids = some_ids(70);
  std::vector<std::string> policies = selectors(16);
  policies.push_back("quest:budget=16,page=4 + knorm:budget=40,stride=16");
  for (const std::string& policy : policies) {
    SCOPED_TRACE(policy);
    any_way(model, ids, policy + " + kivi:bits=4,residual=6,group=8,stride=8");
  }
}

TEST(Selector, ReadsLessThanItHolds) {
  const auto model = load(deep());
  Context context(2);
  for (const std::string& policy : selectors(20)) {
    SCOPED_TRACE(policy);
    Session session = open(model, policy), exact = open(model);
    session.prefill(some_ids(200), 64, Outputs::kNone, nullptr, context);
    exact.prefill(some_ids(200), 64, Outputs::kNone, nullptr, context);
    EXPECT_GE(session.bytes(), exact.bytes()) << "the index is held, too";
    for (int i = 0; i < 3; ++i) session.decode(i, context);
    EXPECT_LT(session.bytes_read_next(), exact.bytes_read_next());
    session.clear();
    session.prefill(some_ids(200), 64, Outputs::kNone, nullptr, context);
    EXPECT_EQ(session.bytes_read_next(), exact.bytes_read_next()) << "nothing was chosen yet";
  }
}

// What an index is told of, by head.
struct Told : SelectorIndex {
  inline static std::map<int, int64_t> from;
  void update(int, int kv_head, const KeyView&, int64_t first) override { from[kv_head] = first; }
  void select(int, int, const KeyView&, const float*, Selection&) override {}
  void clear() override {}
  int64_t bytes() const override { return 0; }
};
struct Telling : Selector {
  std::unique_ptr<SelectorIndex> open(const SelectorShape&) const override { return std::make_unique<Told>(); }
};

TEST(SelectiveReader, TellsEachHeadOfItsOwnNewKeys) {
  Entry entry{};
  entry.kind = Kind::kSelector;
  entry.name = "telling";
  entry.make = [](const Spec&) -> std::unique_ptr<Component> { return std::make_unique<Telling>(); };
  Registry own;
  own.add(entry);
  const auto model = load(SmallModel{});
  const auto mechanism = registry().make<Operator>(parse_spec("softmax:causal=true"));
  const std::vector<const Operator*> layers(2, mechanism.get());
  SelectiveReader reader(model->graph(), {"telling", {}}, own, layers, true, Isa::kAvx2);
  KeyRun shorter, longer;
  shorter.count = 3, longer.count = 9;
  std::vector<KeyView> keys(2);
  keys[0].runs = {&shorter, 1}, keys[1].runs = {&longer, 1};
  reader.appended(1, keys, 2, 1);
  EXPECT_EQ(Told::from, (std::map<int, int64_t>{{0, 1}, {1, 7}}));
  reader.moved(1, keys, 1);
  EXPECT_EQ(Told::from, (std::map<int, int64_t>{{0, 0}, {1, 0}}));
}

TEST(Selector, RefusesWhatGoesByPosition) {
  const auto model = load(deep());
  for (const char* mechanism : {"softmax:window=9", "dca", "rope"})
    expect_error(ErrorKind::kUnsupported, "plain softmax", [&] { open(model, fmt::format("quest + {}", mechanism)); });
  expect_error(ErrorKind::kUnsupported, "stride=0", [&] { open(model, "quest + h2o"); });
  expect_error(ErrorKind::kUnsupported, "the same keys", [&] { open(model, "tidal + snapkv"); });
}

}  // namespace
}  // namespace attend
