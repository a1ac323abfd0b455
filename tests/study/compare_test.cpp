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

TEST_F(Compare, SplitsThreeQuartersAndForcesEvenOneToken) {
  EXPECT_EQ(compare({"softmax"}).prompt, 90);
  const Comparison last = compare({"softmax"}, {.prompt = 119});
  EXPECT_EQ(last.rows[0].nll_at.size(), 1u);
  EXPECT_EQ(last.rows[0].decode_tps, 0);
}

TEST_F(Compare, Refuses) {
  expect_error(ErrorKind::kArgument, "leaves none to force", [&] { compare({"softmax"}, {.prompt = 120}); });
  expect_error(ErrorKind::kArgument, "policies", [&] { compare({}); });
  expect_error(ErrorKind::kArgument, "the context holds 50", [&] { compare({"softmax"}, {.context = 50}); });
  ids_.back() = 269;
  expect_error(ErrorKind::kArgument, "token id", [&] { compare({"softmax"}); });
  ids_.resize(1);
  expect_error(ErrorKind::kArgument, "at least 2", [&] { compare({"softmax"}); });
}

}  // namespace
}  // namespace attend
