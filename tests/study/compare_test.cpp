// The protocol on a small model, against the same numbers taken step by step.
#include "attend/study/compare.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/expect_error.h"
#include "support/small_model.h"

namespace attend {
namespace {

using test::expect_error;

class Compare : public testing::Test {
 protected:
  void SetUp() override {
    const test::SmallModel::File file = test::SmallModel{}.file();
    model_ = LanguageModel::load(file.path, ComputeMode::kDefault, context_);
    for (int i = 0; i < 120; ++i) ids_.push_back((i * 97 + 5) % 269);
  }

  Policy policy(std::string_view text) const { return model_policy(text, ComputeMode::kDefault, registry()); }

  Comparison compare(const std::vector<const char*>& texts, const CompareOptions& options = {}) {
    std::vector<Readings> policies;
    for (const char* text : texts) policies.push_back(model_readings(text, ComputeMode::kDefault, registry()));
    return compare_policies(model_, ids_, policies, registry(), options, context_);
  }

  // ln p of every token of the vocabulary after ids[0..n), decoded one by one from `prompt` on.
  std::vector<double> log_probabilities(std::string_view text, size_t prompt, size_t n) {
    Session session(model_, policy(text), registry());
    std::vector<float> logits;
    session.prefill(
        std::span(ids_).first(prompt), 512, Outputs::kLast,
        [&](int64_t, const View& row) { logits.assign(row.as<float>(), row.as<float>() + 269); }, context_);
    for (size_t i = prompt; i < n; ++i) {
      const auto row = session.decode(ids_[i], context_);
      logits.assign(row.begin(), row.end());
    }
    double total = 0;
    for (float x : logits) total += std::exp(static_cast<double>(x));
    std::vector<double> all;
    for (float x : logits) all.push_back(x - std::log(total));
    return all;
  }

  Context context_{2};
  std::shared_ptr<const LanguageModel> model_;
  std::vector<int32_t> ids_;
};

TEST_F(Compare, MeasuresWhatStepsGive) {
  const char* window = "softmax:window=10,sinks=2";
  const Comparison result = compare({"softmax", window, "bf16"}, {.prompt = 100});
  ASSERT_EQ(result.rows.size(), 3u);
  EXPECT_EQ(result.tokens, 120);
  EXPECT_EQ(result.prompt, 100);
  EXPECT_EQ(result.rows[0].kl, 0);
  EXPECT_EQ(result.rows[0].top1, 1);
  EXPECT_EQ(result.rows[2].kl, 0);  // against the exact run of its own codec
  double nll = 0, kl = 0, top1 = 0;
  for (size_t j = 100; j < 120; ++j) {
    const std::vector<double> exact = log_probabilities("softmax", 100, j), cut = log_probabilities(window, 100, j);
    nll -= cut[static_cast<size_t>(ids_[j])] / 20;
    for (size_t c = 0; c < exact.size(); ++c) kl += std::exp(exact[c]) * (exact[c] - cut[c]) / 20;
    top1 += (std::max_element(exact.begin(), exact.end()) - exact.begin() ==
             std::max_element(cut.begin(), cut.end()) - cut.begin()) /
            20.0;
  }
  EXPECT_NEAR(result.rows[1].nll, nll, 1e-5);
  EXPECT_NEAR(result.rows[1].kl, kl, 1e-5);
  EXPECT_NEAR(result.rows[1].top1, top1, 1e-9);
  EXPECT_GT(kl, 1e-3);
  // 2 layers, 2 kv heads, (8 + 8) values of 2 bytes; a token sees 12 keys.
  EXPECT_EQ(result.rows[1].bytes_read, 4 * 12 * 32);
  EXPECT_EQ(result.rows[0].bytes_read, 4 * (101 + 119) / 2.0 * 32);
  EXPECT_EQ(result.rows[0].nll_at.size(), 20u);
  EXPECT_GT(result.rows[0].decode_tps, 0);
  EXPECT_LE(result.rows[1].kv_bytes, result.rows[0].kv_bytes + 4 * 128 * 4);
}

// Quantised rows are held against the codec that a policy without one gets.
TEST_F(Compare, QuantisedKeysAreHeldAgainstF16) {
  expect_error(ErrorKind::kArgument, "q8_0", [&] { compare({"q8_0"}); });  // heads of 8 elements are no blocks
  test::SmallModel small;
  small.head = 32;
  const test::SmallModel::File file = small.file();
  model_ = LanguageModel::load(file.path, ComputeMode::kDefault, context_);
  const Comparison result = compare({"softmax", "q8_0", "q4_0"}, {.prompt = 100});
  EXPECT_EQ(result.rows[0].kl, 0);
  EXPECT_GT(result.rows[1].kl, 0);
  EXPECT_LT(result.rows[1].kl, 1e-3);
  EXPECT_GT(result.rows[2].kl, 10 * result.rows[1].kl);
  EXPECT_LT(result.rows[2].kl, 0.5);
  const double keys = 4 * (101 + 119) / 2.0;  // 2 layers, 2 kv heads
  EXPECT_EQ(result.rows[0].bytes_read, keys * 128);
  EXPECT_EQ(result.rows[1].bytes_read, keys * 68);
  EXPECT_EQ(result.rows[2].bytes_read, keys * 36);
  EXPECT_EQ(result.rows[1].kv_bytes * 32, result.rows[0].kv_bytes * 17);
  EXPECT_EQ(result.rows[2].kv_bytes * 32, result.rows[0].kv_bytes * 9);
}

TEST_F(Compare, GreedyContinuationsLeaveTheExactOne) {
  const char* window = "softmax:window=10,sinks=2";
  const Comparison result = compare({window, "softmax", "bf16"}, {.prompt = 100, .greedy = 24});
  auto continued = [&](std::string_view text) {
    Session session(model_, policy(text), registry());
    session.prefill(std::span(ids_).first(100), 512, Outputs::kLast, nullptr, context_);
    std::vector<int32_t> ids;
    for (std::span<const float> row = session.last_logits(); ids.size() < 24;
         row = session.decode(ids.back(), context_))
      ids.push_back(static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin()));
    return ids;
  };
  const std::vector<int32_t> exact = continued("softmax"), cut = continued(window);
  for (int32_t end : {1, 2}) ASSERT_EQ(std::count(exact.begin(), exact.end(), end), 0) << "an end token";
  EXPECT_EQ(result.rows[1].greedy, exact);
  EXPECT_EQ(result.rows[1].greedy_same, 24);
  EXPECT_FALSE(result.rows[1].greedy_differs);
  EXPECT_EQ(result.rows[0].greedy, cut);
  EXPECT_EQ(result.rows[0].greedy_same, std::mismatch(cut.begin(), cut.end(), exact.begin()).first - cut.begin());
  EXPECT_EQ(result.rows[0].greedy_differs, cut != exact);
  EXPECT_TRUE(result.rows[0].greedy_differs);
  EXPECT_FALSE(result.rows[2].greedy_differs);  // against the exact run of its own codec
  EXPECT_TRUE(compare({"softmax"}, {.prompt = 100}).rows[0].greedy.empty());
}

TEST_F(Compare, TellsWhatIsKeptAndThePeak) {
  const Comparison result =
      compare({"softmax", "softmax:window=10,sinks=2"}, {.prompt = 100, .chunk = 40, .kept = true});
  const KeptMap &all = result.rows[0].kept, &cut = result.rows[1].kept;
  EXPECT_EQ(all.tokens, 100);
  ASSERT_EQ(all.positions.size(), 4u);
  ASSERT_EQ(cut.positions.size(), 4u);
  for (const auto& head : all.positions) EXPECT_EQ(head.size(), 100u);
  const std::vector<int32_t> kept = {0, 1, 91, 92, 93, 94, 95, 96, 97, 98, 99};
  for (const auto& head : cut.positions) EXPECT_EQ(head, kept);
  EXPECT_EQ(cut.shares()[1], 1);
  EXPECT_EQ(cut.shares()[2], 0);
  const KeptMap uneven{.layers = 1, .kv_heads = 2, .tokens = 3, .positions = {{0, 1}, {1}}};
  EXPECT_EQ(uneven.shares(), (std::vector<float>{0.5f, 1, 0}));
  // A step of 40 tokens is there before keys are dropped: 2 layers, 2 kv heads, (8 + 8) values of 2 bytes.
  EXPECT_GE(result.rows[1].peak_bytes, 4 * 51 * 32);
  EXPECT_GE(result.rows[1].peak_bytes, result.rows[1].kv_bytes);
  EXPECT_GE(result.rows[0].peak_bytes, 4 * 119 * 32);
  EXPECT_TRUE(compare({"softmax"}, {.prompt = 100}).rows[0].kept.empty());
}

// The first forced token reads what its selector chose, like any other, not the whole prompt.
TEST_F(Compare, CountsWhatSelectedTokensRead) {
  const char* quest = "quest:budget=32,page=16,dense=0";
  const Comparison few = compare({"softmax", quest}, {.prompt = 118}),
                   more = compare({"softmax", quest}, {.prompt = 100});
  // Bounds of pages fill whole vectors, which is much for heads as small as here.
  EXPECT_LT(few.rows[1].bytes_read, 0.8 * few.rows[0].bytes_read);
  EXPECT_NEAR(few.rows[1].bytes_read, more.rows[1].bytes_read, 0.1 * more.rows[1].bytes_read);
}

TEST_F(Compare, RunsAtMostSixteen) {
  const std::vector<const char*> with_exact(16, "softmax"), without(16, "softmax:window=10");
  EXPECT_EQ(compare(with_exact, {.prompt = 118}).rows.size(), 16u);
  expect_error(ErrorKind::kArgument, "leave room for 1 exact runs among 16", [&] { compare(without); });
  expect_error(ErrorKind::kArgument, "policies = 17", [&] { compare(std::vector<const char*>(17, "softmax")); });
}

TEST_F(Compare, SplitsThreeQuartersAndForcesEvenOneToken) {
  EXPECT_EQ(compare({"softmax"}).prompt, 90);
  const Comparison last = compare({"softmax"}, {.prompt = 119});
  EXPECT_EQ(last.rows[0].nll_at.size(), 1u);
  EXPECT_EQ(last.rows[0].decode_tps, 0);
}

TEST_F(Compare, Refuses) {
  expect_error(ErrorKind::kArgument, "leaves none to force", [&] { compare({"softmax"}, {.prompt = 120}); });
  expect_error(ErrorKind::kArgument, "policies", [&] { compare({}); });
  expect_error(ErrorKind::kArgument, "greedy", [&] { compare({"softmax"}, {.greedy = -1}); });
  expect_error(ErrorKind::kArgument, "the context holds 50", [&] { compare({"softmax"}, {.context = 50}); });
  ids_.back() = 269;
  expect_error(ErrorKind::kArgument, "token id", [&] { compare({"softmax"}); });
  ids_.resize(1);
  expect_error(ErrorKind::kArgument, "at least 2", [&] { compare({"softmax"}); });
}

}  // namespace
}  // namespace attend
