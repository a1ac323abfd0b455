// Retentions in a model: against each paper's rule followed in plain loops over a forward in double precision, and what
// every entry promises.
#include <cmath>
#include <numeric>

#include "lm/follow_rule.h"
#include "support/expect_error.h"

namespace attend {
namespace {

using test::all_logits;
using test::expect_error;
using test::Kept;
using test::Keys;
using test::load;
using test::open;
using test::Row;
using test::Rule;
using test::SmallModel;
using test::some_ids;
using test::Weights;

constexpr int64_t kGroup = 2;  // query heads a kv head in a small model

// Of the kept keys below `seen`: `budget` stay, those in `always` first, then those of the largest score.
void keep_best(std::vector<bool>& kept, int64_t seen, int64_t budget, const std::function<bool(int64_t)>& always,
               const std::function<double(int64_t)>& score) {
  std::vector<int64_t> keys;
  for (int64_t j = 0; j < seen; ++j)
    if (kept[static_cast<size_t>(j)]) keys.push_back(j);
  std::stable_sort(keys.begin(), keys.end(), [&](int64_t a, int64_t b) {
    if (always(a) != always(b)) return always(a);
    return score(a) > score(b);
  });
  for (size_t n = static_cast<size_t>(budget); n < keys.size(); ++n) kept[static_cast<size_t>(keys[n])] = false;
}

// Weight of key j summed over queries [from, seen), the mean over a group.
double weight_of(const Weights& weights, size_t kv, int64_t j, int64_t from, int64_t seen) {
  double sum = 0;
  for (size_t h = kv * kGroup; h < (kv + 1) * kGroup; ++h)
    for (int64_t i = from; i < seen; ++i) sum += weights[h][static_cast<size_t>(i)][static_cast<size_t>(j)] / kGroup;
  return sum;
}

// Whether query i of a head gave key j more than the mean weight of what it saw.
bool attends(const std::vector<Row>& weights, int64_t i, int64_t j) {
  const Row& row = weights[static_cast<size_t>(i)];
  const auto seen = std::count_if(row.begin(), row.end(), [](double w) { return w > 0; });
  return row[static_cast<size_t>(j)] > 1 / static_cast<double>(seen);
}

// f(weights of a query head) for those of a group.
template <class F>
void each_of_group(const Weights& weights, size_t kv, F f) {
  for (size_t h = kv * kGroup; h < (kv + 1) * kGroup; ++h) f(weights[h]);
}

std::vector<Rule> rules() {
  auto every8 = [](int64_t seen, int64_t prompt) { return seen % 8 == 0 || seen == prompt; };
  auto at_end = [](int64_t seen, int64_t prompt) { return seen == prompt; };
  return {
      {"h2o:budget=10,stride=8", every8,
       [](int64_t seen, const Weights& w, const Keys&, Kept& kept) {
         for (size_t kv = 0; kv < kept.size(); ++kv)
           keep_best(
               kept[kv], seen, 10, [&](int64_t j) { return j >= seen - 5; },
               [&](int64_t j) { return weight_of(w, kv, j, 0, seen); });
       }},
      {"tova:budget=10,stride=8", every8,
       [](int64_t seen, const Weights& w, const Keys&, Kept& kept) {
         for (auto& head : kept)
           keep_best(
               head, seen, 10, [&](int64_t j) { return j == seen - 1; },
               [&](int64_t j) {
                 double sum = 0;
                 for (const auto& rows : w) sum += rows[static_cast<size_t>(seen) - 1][static_cast<size_t>(j)];
                 return sum;
               });
       }},
      {"snapkv:budget=12,observe=5,kernel=3", at_end,
       [](int64_t seen, const Weights& w, const Keys&, Kept& kept) {
         for (size_t kv = 0; kv < kept.size(); ++kv)
           keep_best(
               kept[kv], seen, 12, [&](int64_t j) { return j >= seen - 5; },
               [&](int64_t j) {
                 double best = 0;
                 for (int64_t n = std::max<int64_t>(0, j - 1); n <= std::min(seen - 6, j + 1); ++n)
                   best = std::max(best, weight_of(w, kv, n, seen - 5, seen));
                 return best + 1e-12 * static_cast<double>(j);  // the newest first
               });
       }},
      {"chunkkv:budget=13,observe=5,chunk=4", at_end,
       [](int64_t seen, const Weights& w, const Keys&, Kept& kept) {
         for (size_t kv = 0; kv < kept.size(); ++kv)
           keep_best(
               kept[kv], seen, 13, [&](int64_t j) { return j >= seen - 5; },
               [&](int64_t j) {
                 double sum = 0;
                 const int64_t first = j / 4 * 4, end = std::min(seen, first + 4);
                 for (int64_t n = first; n < end; ++n) sum += weight_of(w, kv, n, seen - 5, seen);
                 return sum / static_cast<double>(end - first) + 1e-12 * static_cast<double>(j);
               });
       }},
      {"scissorhands:budget=10,stride=8,history=6,recent=3", every8,
       [](int64_t seen, const Weights& w, const Keys&, Kept& kept) {
         int64_t acted = (seen - 1) / 8 * 8;
         if (seen > test::kRulePrompt) acted = std::max(acted, test::kRulePrompt);
         for (size_t kv = 0; kv < kept.size(); ++kv)
           keep_best(
               kept[kv], seen, 10, [&](int64_t j) { return j >= seen - 3; },
               [&](int64_t j) {
                 int low = 0;
                 each_of_group(w, kv, [&](const auto& rows) {
                   for (int64_t i = std::max({acted, seen - 6, j}); i < seen; ++i) low += !attends(rows, i, j);
                 });
                 return -low + 1e-6 * static_cast<double>(j);  // of equal ones the newest
               });
       }},
      {"lra:budget=10,stride=8,recent=3", every8,
       [](int64_t seen, const Weights& w, const Keys&, Kept& kept) {
         for (size_t kv = 0; kv < kept.size(); ++kv)
           keep_best(
               kept[kv], seen, 10, [&](int64_t j) { return j >= seen - 3; },
               [&](int64_t j) {
                 int64_t last = j;
                 each_of_group(w, kv, [&](const auto& rows) {
                   for (int64_t i = j; i < seen; ++i)
                     if (attends(rows, i, j)) last = std::max(last, i);
                 });
                 return static_cast<double>(last) + 1e-6 * static_cast<double>(j);
               });
       }},
      {"lfa:budget=10,stride=8,sinks=1,recent=3", every8,
       [](int64_t seen, const Weights& w, const Keys&, Kept& kept) {
         for (size_t kv = 0; kv < kept.size(); ++kv)
           keep_best(
               kept[kv], seen, 10, [&](int64_t j) { return j < 1 || j >= seen - 3; },
               [&](int64_t j) {
                 int times = 0;
                 each_of_group(w, kv, [&](const auto& rows) {
                   for (int64_t i = j; i < seen; ++i) times += attends(rows, i, j);
                 });
                 return times + 1e-6 * static_cast<double>(j);
               });
       }},
      {"knorm:budget=10,stride=8,sinks=2,recent=3", every8,
       [](int64_t seen, const Weights&, const Keys& keys, Kept& kept) {
         for (size_t kv = 0; kv < kept.size(); ++kv)
           keep_best(
               kept[kv], seen, 10, [&](int64_t j) { return j < 2 || j >= seen - 3; },
               [&](int64_t j) {
                 const Row& k = keys[kv][static_cast<size_t>(j)];
                 return -std::inner_product(k.begin(), k.end(), k.begin(), 0.0);
               });
       }},
      {"keydiff:budget=10,stride=8,sinks=2,recent=3", every8,
       [](int64_t seen, const Weights&, const Keys& keys, Kept& kept) {
         for (size_t kv = 0; kv < kept.size(); ++kv) {
           auto length = [](const Row& k) { return std::sqrt(std::inner_product(k.begin(), k.end(), k.begin(), 0.0)); };
           Row anchor(keys[kv][0].size());
           for (int64_t j = 0; j < seen; ++j)
             for (size_t c = 0; c < anchor.size() && kept[kv][static_cast<size_t>(j)]; ++c)
               anchor[c] += keys[kv][static_cast<size_t>(j)][c] / length(keys[kv][static_cast<size_t>(j)]);
           keep_best(
               kept[kv], seen, 10, [&](int64_t j) { return j < 2 || j >= seen - 3; },
               [&](int64_t j) {
                 const Row& k = keys[kv][static_cast<size_t>(j)];
                 return -std::inner_product(k.begin(), k.end(), anchor.begin(), 0.0) / length(k);
               });
         }
       }},
  };
}

TEST(Retention, FollowsItsRule) {
  const SmallModel small;
  const auto model = load(small);
  const std::vector<int32_t> ids = some_ids(45);
  std::vector<std::vector<Row>> seen_before;
  for (const Rule& rule : rules()) {
    SCOPED_TRACE(rule.policy);
    const std::vector<Row> logits = test::follow(rule, small, model, ids);
    for (const auto& other : seen_before) EXPECT_NE(other, logits) << "the text tells it from no other rule";
    seen_before.push_back(logits);
  }
}

// Every retention that there is, with a budget and a stride.
std::vector<std::string> retentions(int64_t budget, int64_t stride) {
  std::vector<std::string> specs;
  for (const Entry* entry : registry().entries())
    if (entry->kind == Kind::kRetention)
      specs.push_back(fmt::format("{}:budget={},stride={}", entry->name, budget, stride));
  EXPECT_GE(specs.size(), 6u);
  return specs;
}

TEST(Retention, WithABudgetBeyondTheTextChangesNoBit) {
  const auto model = load(SmallModel{});
  const std::vector<int32_t> ids = some_ids(90);
  Context context(2);
  Session exact = open(model);
  const std::vector<float> wanted = all_logits(exact, ids, 64, context);
  for (const std::string& policy : retentions(90, 16)) {
    Session session = open(model, policy);
    EXPECT_EQ(all_logits(session, ids, 64, context), wanted) << policy;
    EXPECT_EQ(session.bytes_read_next(), exact.bytes_read_next()) << policy;
  }
}

TEST(Retention, HasTheSameBitsForAnyChunksThreadsAndStores) {
  const auto model = load(SmallModel{}, ComputeMode::kDefault);
  const std::vector<int32_t> ids = some_ids(120);
  std::vector<std::string> policies = retentions(20, 16);
  policies.push_back("adakv + snapkv:budget=20,observe=6,stride=32");
  policies.push_back("pyramid:beta=3 + h2o:budget=20,stride=32");
  for (const std::string& policy : policies) {
    SCOPED_TRACE(policy);
    std::vector<std::vector<float>> all;
    for (const auto& [chunk, threads, store] :
         {std::tuple{512, 1, "contiguous"}, {7, 2, "paged:page=8"}, {1, 3, "virtual"}, {50, 2, "offloaded"}}) {
      constexpr size_t kPrompt = 96;
      Context context(threads);
      Session session = open(model, fmt::format("{} + {}", policy, store));
      std::vector<float> logits = all_logits(session, std::span(ids).first(kPrompt), chunk, context);
      for (size_t i = kPrompt; i < ids.size(); ++i) {
        const auto row = session.decode(ids[i], context);
        logits.insert(logits.end(), row.begin(), row.end());
      }
      all.push_back(logits);
    }
    for (const auto& logits : all) EXPECT_EQ(logits, all[0]);
  }
}

// Keys that nobody sees take no part of a budget, whenever they were last looked for: chunks change no bit.
TEST(Retention, WindowsAndBudgetsTogetherHaveTheSameBitsForAnyChunk) {
  const auto model = load(SmallModel{});
  const std::vector<int32_t> ids = some_ids(150);
  std::vector<float> wanted;
  for (int64_t chunk : {1, 5, 24, 150}) {
    Context context(2);
    Session session = open(model, "softmax:window=30 + h2o:budget=24,stride=24,recent=2");
    const std::vector<float> got = all_logits(session, ids, chunk, context);
    if (wanted.empty()) wanted = got;
    EXPECT_EQ(got, wanted) << chunk;
  }
}

// Keys that are coded anew as they age: what stays, and how it is coded, depends on the text alone.
TEST(Retention, HasTheSameBitsWhileKeysAge) {
  SmallModel small;
  small.head = 32;
  const auto model = load(small, ComputeMode::kDefault);
  const std::vector<int32_t> ids = some_ids(120);
  auto run = [&](const std::string& policy, int64_t chunk, int threads) {
    constexpr size_t kPrompt = 96;
    Context context(threads);
    Session session = open(model, policy);
    std::vector<float> logits = all_logits(session, std::span(ids).first(kPrompt), chunk, context);
    for (size_t i = kPrompt; i < ids.size(); ++i) {
      const auto row = session.decode(ids[i], context);
      logits.insert(logits.end(), row.begin(), row.end());
    }
    return logits;
  };
  std::vector<std::string> policies = retentions(30, 16);
  policies.push_back("adakv + snapkv:budget=30,observe=6,stride=32");
  policies.push_back("softmax:window=50,sinks=2");
  for (const std::string& policy : policies) {
    SCOPED_TRACE(policy);
    const std::string aging = policy + " + kivi:bits=2,residual=6,group=16,stride=24 + ";
    const std::vector<float> wanted = run(aging + "contiguous", 512, 1);
    EXPECT_EQ(run(aging + "paged:page=8", 7, 2), wanted);
    EXPECT_EQ(run(aging + "virtual", 1, 3), wanted);
    EXPECT_EQ(run(aging + "offloaded", 50, 2), wanted);
    EXPECT_NE(run(policy, 512, 1), wanted) << "codes change what is read";
  }
}

// Keys and values of 16 f32 in 2 layers of 2 heads; the next query's own are counted, too.
constexpr int64_t kKeyBytes = 16 * 4;

TEST(Retention, HoldsWhatItsBudgetSays) {
  const auto model = load(SmallModel{});
  Context context(2);
  for (int64_t budget : {0, 1, 3, 20})
    for (const std::string& policy : retentions(budget, 16)) {
      SCOPED_TRACE(policy);
      Session session = open(model, policy);
      session.prefill(some_ids(100), 64, Outputs::kNone, nullptr, context);
      EXPECT_EQ(session.bytes_read_next(), 4 * (budget + 1) * kKeyBytes);
      for (int i = 0; i < 12; ++i) session.decode(i, context);  // to 112 tokens, where it acts again
      EXPECT_EQ(session.bytes_read_next(), 4 * (budget + 1) * kKeyBytes);
      EXPECT_LE(session.bytes(), 4 * 96 * (kKeyBytes + 4)) << "bytes go, too";
      session.clear();
      session.prefill(some_ids(100), 64, Outputs::kNone, nullptr, context);
      EXPECT_EQ(session.bytes_read_next(), 4 * (budget + 1) * kKeyBytes);
    }
}

TEST(Retention, LeavesLocalLayersAlone) {
  SmallModel small;
  small.architecture = "gemma3";
  small.layers = 6;
  const auto model = load(small);
  Context context(1);
  Session session = open(model, "h2o:budget=3,stride=16");
  session.prefill(some_ids(100), 64, Outputs::kNone, nullptr, context);
  EXPECT_EQ(session.bytes_read_next(), (5 * 6 + 4) * 2 * kKeyBytes);
}

TEST(Retention, RanksUnderTheRotaryMechanismAsUnderTheModelsOwn) {
  Context context(2);
  for (const char* architecture : {"llama", "gemma3"}) {
    SmallModel small;
    small.architecture = architecture;
    small.head = 32;
    const auto model = load(small);
    for (const char* retention : {"h2o:budget=24,stride=16", "scissorhands:budget=24,stride=16", "snapkv:budget=24",
                                  "h2o:budget=24,stride=16 + q8_0"}) {
      SCOPED_TRACE(fmt::format("{} {}", architecture, retention));
      Session own = open(model, retention), rotary = open(model, fmt::format("rope + {}", retention));
      const std::vector<float> a = all_logits(own, some_ids(90), 37, context),
                               b = all_logits(rotary, some_ids(90), 512, context);
      double worst = 0, largest = 0;
      for (size_t i = 0; i < a.size(); ++i) {
        worst = std::max(worst, std::fabs(static_cast<double>(a[i]) - b[i]));
        largest = std::max(largest, std::fabs(static_cast<double>(a[i])));
      }
      // Sums in another order may take a code of q8_0 to its neighbour, 1/127 of a block's largest number.
      EXPECT_LE(worst, (std::string_view(retention).ends_with("q8_0") ? 5e-3 : 1e-4) * largest);
      for (int layer = 0; layer < static_cast<int>(model->graph().layers.size()); ++layer)
        for (int head = 0; head < model->graph().layers[0].kv_heads; ++head)
          EXPECT_EQ(own.kept_positions(layer, head), rotary.kept_positions(layer, head));
    }
  }
}

TEST(Allocator, SharesOutTheWholeBudget) {
  SmallModel small;
  small.layers = 4;
  const auto model = load(small);
  Context context(2);
  // A budget of 40 of which 8 are fixed: 32 free a head on average.
  for (const char* allocator : {"pyramid:beta=4", "adakv", "adakv:floor=0", "adakv:floor=1"}) {
    SCOPED_TRACE(allocator);
    Session session = open(model, fmt::format("{} + snapkv:budget=40,observe=8", allocator));
    session.prefill(some_ids(200), 64, Outputs::kNone, nullptr, context);
    const int64_t keys = session.bytes_read_next() / kKeyBytes - 8;
    EXPECT_LE(keys, 4 * 2 * 40);
    EXPECT_GE(keys, 4 * 2 * 40 - 8) << "but for rounding";
  }
}

TEST(Policies, ThatCannotGoTogetherSayWhy) {
  const auto model = load(SmallModel{});
  expect_error(ErrorKind::kUnsupported, "entmax does not give", [&] { open(model, "entmax + h2o"); });
  expect_error(ErrorKind::kUnsupported, "a retention that ranks keys", [&] { open(model, "pyramid"); });
  expect_error(ErrorKind::kSpec, "must be odd", [&] { open(model, "snapkv:kernel=4"); });
  expect_error(ErrorKind::kSpec, "at most one of a kind", [&] { open(model, "h2o + snapkv"); });
  EXPECT_EQ(model_policy("SnapKVPress:budget=7", ComputeMode::kF32, registry())[Kind::kRetention]->name, "snapkv");
}

}  // namespace
}  // namespace attend
