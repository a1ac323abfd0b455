// Selectors in a model: against each paper's rule followed in plain loops over a forward in double precision, and what
// every entry promises.
#include <map>
#include <random>
#include <string_view>

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
  policies.push_back("quest:budget=16,page=4 + knorm:budget=30,stride=16 + kerple");
  policies.push_back("quest:budget=16,page=4 + softmax:window=30,sinks=3");
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
  SelectiveReader reader(model->graph(), {"telling", {}}, own, layers, true, true, Isa::kAvx2);
  KeyRun shorter, longer;
  shorter.count = 3, longer.count = 9;
  std::vector<KeyView> keys(2);
  keys[0].runs = {&shorter, 1}, keys[1].runs = {&longer, 1};
  reader.appended(1, keys, 2, 1);
  EXPECT_EQ(Told::from, (std::map<int, int64_t>{{0, 1}, {1, 7}}));
  reader.moved(1, keys, 1);
  EXPECT_EQ(Told::from, (std::map<int, int64_t>{{0, 0}, {1, 0}}));
}

// Slots that are told, whatever the query.
struct Fixed : SelectorIndex {
  inline static std::vector<KeyRange> slots;
  void update(int, int, const KeyView&, int64_t) override {}
  void select(int, int, const KeyView&, const float*, Selection& selection) override { selection.slots = slots; }
  void clear() override {}
  int64_t bytes() const override { return 0; }
};
struct Fixing : Selector {
  std::unique_ptr<SelectorIndex> open(const SelectorShape&) const override { return std::make_unique<Fixed>(); }
};

// Chosen keys weigh what they weigh where they stand in the text, in stores with gaps or without.
TEST(SelectiveReader, KeepsPositionsWhereTheMechanismGoesByThem) {
  Entry entry{};
  entry.kind = Kind::kSelector;
  entry.name = "fixing";
  entry.make = [](const Spec&) -> std::unique_ptr<Component> { return std::make_unique<Fixing>(); };
  Registry own;
  own.add(entry);
  const auto model = load(SmallModel{});
  const AttentionLayer& layer = model->graph().layers.front();
  const int64_t n = 700, heads = layer.heads, kv_heads = layer.kv_heads, d = layer.d;
  Fixed::slots = {{0, 3}, {40, 44}, {300, 301}, {690, n}};
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> k(static_cast<size_t>(kv_heads * n * d)), v(k.size()), q(static_cast<size_t>(heads * d));
  for (auto* x : {&k, &v, &q})
    for (float& y : *x) y = normal(random);
  std::vector<int32_t> apart(static_cast<size_t>(n));
  for (int64_t j = 0; j < n; ++j) apart[static_cast<size_t>(j)] = static_cast<int32_t>(3 * j + (j > 41 ? 50 : 0));
  Context context(1);
  for (const char* text :
       {"kerple:causal=true", "kerple:causal=true,log=true", "softmax1:causal=true", "softmax:causal=true,window=500",
        "softmax:causal=true,window=500,sinks=2,softcap=5", "softmax:causal=true"}) {
    const auto mechanism = registry().make<Operator>(registry().complete(parse_spec(text)));
    const std::vector<const Operator*> layers(model->graph().layers.size(), mechanism.get());
    SelectiveReader reader(model->graph(), {"fixing", {}}, own, layers, false, true, Isa::kAvx2);
    for (const bool gaps : {false, true}) {
      SCOPED_TRACE(testing::Message() << text << (gaps ? " with gaps" : ""));
      const std::span<const int32_t> stored = gaps ? std::span<const int32_t>(apart) : std::span<const int32_t>();
      std::vector<KeyRun> runs(static_cast<size_t>(kv_heads));
      std::vector<KeyView> keys;
      // What is chosen, by hand: rows copied, each with its position.
      std::vector<std::vector<float>> own_k(runs.size()), own_v(runs.size());
      std::vector<int32_t> positions;
      std::vector<KeyRun> own_runs(runs.size());
      std::vector<KeyView> chosen;
      for (size_t h = 0; h < runs.size(); ++h) {
        const float *first_k = k.data() + static_cast<int64_t>(h) * n * d,
                    *first_v = v.data() + static_cast<int64_t>(h) * n * d;
        runs[h] = {.k = first_k, .v = first_v, .k_stride = d, .v_stride = d, .first_slot = 0, .count = n};
        positions.clear();
        for (const KeyRange& range : Fixed::slots)
          for (int64_t j = range.begin; j < range.end; ++j) {
            own_k[h].insert(own_k[h].end(), first_k + j * d, first_k + (j + 1) * d);
            own_v[h].insert(own_v[h].end(), first_v + j * d, first_v + (j + 1) * d);
            positions.push_back(gaps ? apart[static_cast<size_t>(j)] : static_cast<int32_t>(j));
          }
        own_runs[h] = runs[h];
        own_runs[h].k = own_k[h].data(), own_runs[h].v = own_v[h].data();
        own_runs[h].count = static_cast<int64_t>(positions.size());
      }
      for (size_t h = 0; h < runs.size(); ++h) {
        keys.push_back({{&runs[h], 1}, stored});
        chosen.push_back({{&own_runs[h], 1}, positions});
      }
      auto run = [&](std::span<const KeyView> of, View q_position) {
        std::vector<float> out(static_cast<size_t>(heads * d));
        mechanism->forward(
            {{"q", dense_view(q.data(), DType::kF32, {1, heads, 1, d})}, {"k", of}, {"q_positions", q_position}},
            {{"out", dense_view(out.data(), DType::kF32, {1, heads, 1, d})}}, Form::kAny, context);
        return out;
      };
      int32_t last = positions.back();
      const std::vector<float> want = run(chosen, dense_view(&last, DType::kI32, {1, 1}));
      reader.appended(0, keys, n, 1);
      const Tensors* arguments = reader.read(0, keys, q.data(), 1);
      ASSERT_NE(arguments, nullptr);
      const std::vector<float> got =
          run(std::get<std::span<const KeyView>>(arguments->at("k")), std::get<View>(arguments->at("q_positions")));
      if (std::string_view(text) == "softmax:causal=true") {  // the same weights, added up without gaps
        for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-5f);
        EXPECT_TRUE(std::get<std::span<const KeyView>>(arguments->at("k"))[0].position.empty());
      } else {
        EXPECT_EQ(got, want);
      }
    }
  }
}

// A window that sees the whole text changes nothing but the order of sums.
TEST(Selector, ReadsWhatMechanismsByPositionWouldOfItsKeys) {
  const auto model = load(deep());
  const std::vector<int32_t> ids = some_ids(60);
  Context context(2);
  for (const std::string& policy : selectors(16)) {
    SCOPED_TRACE(policy);
    if (policy.starts_with("tidal")) continue;  // refused: a window drops keys
    Session session = open(model, policy), windowed = open(model, policy + " + softmax:window=100000");
    const std::vector<float> want = prompt_then_decode(session, ids, 16, context),
                             got = prompt_then_decode(windowed, ids, 16, context);
    float largest = 0, worst = 0;
    for (size_t i = 0; i < want.size(); ++i)
      largest = std::max(largest, std::fabs(want[i])), worst = std::max(worst, std::fabs(got[i] - want[i]));
    EXPECT_LE(worst, 1e-4f * largest);
  }
  for (const char* mechanism : {"kerple", "softmax:window=30,sinks=4"}) {
    Session exact = open(model, mechanism), whole = open(model, fmt::format("quest:budget=60 + {}", mechanism)),
            part = open(model, fmt::format("quest:budget=16,page=4 + {}", mechanism));
    const std::vector<float> want = prompt_then_decode(exact, ids, 16, context);
    EXPECT_EQ(prompt_then_decode(whole, ids, 16, context), want) << mechanism;
    EXPECT_NE(prompt_then_decode(part, ids, 16, context), want) << mechanism;
  }
}

TEST(Selector, RefusesWhatCannotGoTogether) {
  const auto model = load(deep());
  for (const char* mechanism : {"dca", "rope"})
    expect_error(ErrorKind::kUnsupported, "turns both", [&] { open(model, fmt::format("quest + {}", mechanism)); });
  for (const char* selector : {"recycled", "tidal", "ltri", "graph", "infllm", "magicpig"})
    expect_error(ErrorKind::kUnsupported, "weights of a softmax",
                 [&] { open(model, fmt::format("{} + kerple", selector)); });
  expect_error(ErrorKind::kUnsupported, "stride=0", [&] { open(model, "quest + h2o"); });
  expect_error(ErrorKind::kUnsupported, "the same keys", [&] { open(model, "tidal + snapkv"); });
  expect_error(ErrorKind::kUnsupported, "the same keys", [&] { open(model, "tidal + softmax:window=9"); });
}

}  // namespace
}  // namespace attend
