// Plans in a model.
#include <cctype>

#include "attend/kv/head_gates.h"
#include "lm/follow_rule.h"
#include "support/expect_error.h"
#include "support/gate_file.h"

namespace attend {
namespace {

using test::all_logits;
using test::expect_error;
using test::follow;
using test::GateFile;
using test::Kept;
using test::Keys;
using test::load;
using test::open;
using test::Row;
using test::SmallModel;
using test::some_ids;
using test::Weights;

constexpr int64_t kKeyBytes = 16 * 4;  // of a key and value in f32

// Two layers of two heads: (0, 1) and (1, 0) have the largest gates.
class Duo : public testing::Test {
 protected:
  const SmallModel small_{};
  const std::shared_ptr<const LanguageModel> model_ = load(small_);
  const HeadGates gates_{
      .model = model_->graph().name, .layers = 2, .kv_heads = 2, .gates = {0.25, 0.5, 1, 0.125}, .made_by = ""};
  const GateFile file_{gates_};
};

// Sinks and recent tokens stay.
void stream(std::vector<bool>& kept, int64_t seen, int64_t sinks, int64_t recent) {
  for (int64_t j = sinks; j < seen - recent; ++j) kept[static_cast<size_t>(j)] = false;
}

TEST_F(Duo, KeepsSinksAndRecentTokensInStreamingHeads) {
  int layer = 0;
  follow({.policy = file_.policy("sinks=2,recent=5,stride=8"),
          .acts = [](int64_t seen, int64_t prompt) { return seen % 8 == 0 || seen == prompt; },
          .evict =
              [&](int64_t seen, const Weights&, const Keys&, Kept& kept) {
                stream(kept[layer == 0 ? 0 : 1], seen, 2, 5);
                if (seen == 40) layer = 1;  // layers come one after the other
              }},
         small_, model_, some_ids(45));
}

// What the retention observes ends where the retention acts, wherever a plan acts between.
TEST_F(Duo, LeavesRetrievalHeadsToTheRetention) {
  int layer = 0;
  follow({.policy = file_.policy("sinks=2,recent=5,stride=8") + " + snapkv:budget=12,observe=9,kernel=1",
          .acts = [](int64_t seen, int64_t prompt) { return seen % 8 == 0 || seen == prompt; },
          .evict =
              [&](int64_t seen, const Weights& w, const Keys&, Kept& kept) {
                const size_t streaming = layer == 0 ? 0 : 1, whole = 1 - streaming;
                stream(kept[streaming], seen, 2, 5);
                if (seen == 40) layer = 1;
                if (seen != test::kRulePrompt) return;
                std::vector<std::pair<double, int64_t>> votes;
                for (int64_t j = 0; j < seen - 9; ++j) {
                  double sum = 0;
                  for (size_t h = 2 * whole; h < 2 * whole + 2; ++h)
                    for (int64_t i = seen - 9; i < seen; ++i)
                      sum += w[h][static_cast<size_t>(i)][static_cast<size_t>(j)];
                  votes.emplace_back(sum, j);
                }
                std::sort(votes.rbegin(), votes.rend());
                for (size_t n = 3; n < votes.size(); ++n) kept[whole][static_cast<size_t>(votes[n].second)] = false;
              }},
         small_, model_, some_ids(45));
}

TEST_F(Duo, HoldsTheShareThatItSays) {
  Context context(2);
  auto keys_held = [&](std::string_view options) {
    Session session = open(model_, file_.policy(options));
    session.prefill(some_ids(100), 33, Outputs::kNone, nullptr, context);
    return session.bytes_read_next() / kKeyBytes - 4;
  };
  EXPECT_EQ(keys_held("sinks=4,recent=16,stride=16,share=0"), 4 * 20);
  EXPECT_EQ(keys_held("sinks=4,recent=16,stride=16,share=0.5"), 2 * 20 + 2 * 100);
  EXPECT_EQ(keys_held("sinks=4,recent=16,stride=16,share=0.75"), 20 + 3 * 100);
  EXPECT_EQ(keys_held("sinks=4,recent=16,stride=16,threshold=0.2"), 20 + 3 * 100);
  EXPECT_EQ(keys_held("sinks=0,recent=0,share=0"), 0);
  EXPECT_EQ(keys_held("sinks=200,recent=300,share=0"), 400);
}

TEST_F(Duo, ChangesNoBitWhereAllHeadsKeepTheirContextOrTheTextIsShort) {
  Context context(2);
  const std::vector<int32_t> ids = some_ids(90);
  Session exact = open(model_);
  const std::vector<float> wanted = all_logits(exact, ids, 64, context);
  for (const char* options : {"share=1,sinks=1,recent=1,stride=16", "share=0,sinks=30,recent=60,stride=16"}) {
    Session session = open(model_, file_.policy(options));
    EXPECT_EQ(all_logits(session, ids, 64, context), wanted) << options;
  }
}

TEST_F(Duo, HasTheSameBitsForAnyChunksAndThreads) {
  const std::vector<int32_t> ids = some_ids(120);
  std::vector<float> first;
  for (const auto& [chunk, threads] : {std::pair{512, 1}, {7, 2}, {1, 3}}) {
    Context context(threads);
    Session session = open(model_, file_.policy("sinks=2,recent=9,stride=16") + " + h2o:budget=20,stride=24");
    std::vector<float> logits = all_logits(session, ids, chunk, context);
    if (first.empty()) first = logits;
    EXPECT_EQ(logits, first) << chunk;
  }
}

TEST_F(Duo, IsRefusedForAnotherModel) {
  for (auto change :
       {+[](HeadGates& g) { g.model = "another"; }, +[](HeadGates& g) { g.layers = 1, g.gates.resize(2); },
        +[](HeadGates& g) { g.layers = 1, g.kv_heads = 4; }}) {
    HeadGates other = gates_;
    change(other);
    const GateFile file(other);
    expect_error(ErrorKind::kSpec, "but the model is", [&] { open(model_, file.policy("share=0.5")); });
  }
  expect_error(ErrorKind::kSpec, "must name a file", [&] { open(model_, "duo"); });
  expect_error(ErrorKind::kFile, "can't be opened", [&] { open(model_, "duo:plan=\"/no/such/file\""); });
}

// Levels of the heads of two layers: punctuation, frequent; local, all.
class FastGen : public testing::Test {
 protected:
  const SmallModel small_{};
  const std::shared_ptr<const LanguageModel> model_ = load(small_);
  const HeadGates gates_{
      .model = model_->graph().name, .layers = 2, .kv_heads = 2, .gates = {0.25, 0.5, 0.75, 1}, .made_by = ""};
  const GateFile file_{gates_};
};

// The small vocabulary: three control tokens, then bytes.
bool is_special(int32_t id) {
  return id < 3;
}
bool is_punctuation(int32_t id) {
  const int byte = id - 3;
  return byte < 127 && std::ispunct(static_cast<unsigned char>(byte)) != 0 && byte >= 33;
}

TEST_F(FastGen, KeepsTheKindsOfItsLevel) {
  std::vector<int32_t> ids = some_ids(45);
  ids[0] = 1, ids[7] = 3 + '.', ids[12] = 3 + ',', ids[20] = 2;
  int layer = 0;
  follow({.policy = file_.policy("local=0.25,frequent=0.2,stride=8", "fastgen"),
          .acts = [](int64_t seen, int64_t prompt) { return seen % 8 == 0 || seen == prompt; },
          .evict =
              [&](int64_t seen, const Weights& w, const Keys&, Kept& kept) {
                for (size_t kv = 0; kv < 2; ++kv) {
                  const int level = layer * 2 + static_cast<int>(kv) + 1;
                  if (level == 4) continue;
                  std::vector<std::pair<double, int64_t>> sums;
                  for (int64_t j = 0; j < seen; ++j) {
                    double sum = 0;
                    for (size_t h = 2 * kv; h < 2 * kv + 2; ++h)
                      for (int64_t i = 0; i < seen; ++i) sum += w[h][static_cast<size_t>(i)][static_cast<size_t>(j)];
                    if (kept[kv][static_cast<size_t>(j)]) sums.emplace_back(sum, j);
                  }
                  std::sort(sums.rbegin(), sums.rend());
                  std::vector<bool> stays(kept[kv].size(), false);
                  for (int64_t j = 0; j < seen; ++j)
                    stays[static_cast<size_t>(j)] = is_special(ids[static_cast<size_t>(j)]) ||
                                                    is_punctuation(ids[static_cast<size_t>(j)]) ||
                                                    (level == 3 && j >= seen - std::llround(0.25 * seen));
                  for (size_t n = 0;
                       level >= 2 && n < std::min(sums.size(), static_cast<size_t>(std::llround(0.2 * seen))); ++n)
                    stays[static_cast<size_t>(sums[n].second)] = true;
                  for (int64_t j = 0; j < seen; ++j)
                    if (!stays[static_cast<size_t>(j)]) kept[kv][static_cast<size_t>(j)] = false;
                }
                if (seen == 40) layer = 1;
              }},
         small_, model_, ids);
}

TEST_F(FastGen, HasTheSameBitsForAnyChunksAndThreads) {
  const std::vector<int32_t> ids = some_ids(120);
  std::vector<float> first;
  for (const auto& [chunk, threads] : {std::pair{512, 1}, {7, 2}, {1, 3}}) {
    Context context(threads);
    Session session = open(model_, file_.policy("stride=16", "fastgen") + " + h2o:budget=20,stride=24");
    std::vector<float> logits = all_logits(session, ids, chunk, context);
    if (first.empty()) first = logits;
    EXPECT_EQ(logits, first) << chunk;
    session.clear();
    EXPECT_EQ(all_logits(session, ids, chunk, context), first) << "after clear()";
  }
}

TEST_F(FastGen, RefusesWhatCannotGoTogether) {
  expect_error(ErrorKind::kUnsupported, "snapkv looks at the newest alone",
               [&] { open(model_, file_.policy("stride=0", "fastgen") + " + snapkv"); });
  expect_error(ErrorKind::kUnsupported, "entmax does not give",
               [&] { open(model_, file_.policy("stride=0", "fastgen") + " + entmax"); });
  expect_error(ErrorKind::kUnsupported, "where fastgen needs the weights of all",
               [&] { open(model_, file_.policy("stride=8", "fastgen") + " + quest"); });
  HeadGates other = gates_;
  other.gates[1] = 0.3;
  const GateFile file(other);
  expect_error(ErrorKind::kSpec, "multiples of 1/4", [&] { open(model_, file.policy("stride=0", "fastgen")); });
  expect_error(ErrorKind::kSpec, "must name a file", [&] { open(model_, "fastgen"); });
}

}  // namespace
}  // namespace attend
