// Several readings of one text: their merged distributions are what the sessions, one by one, give.
#include "attend/lm/ensemble.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/expect_error.h"
#include "support/small_session.h"

namespace attend {
namespace {

using test::expect_error;
using test::load;
using test::SmallModel;

constexpr size_t kVocabulary = 269;

class EnsembleTest : public testing::Test {
 protected:
  void SetUp() override { model_ = load(SmallModel{}); }

  Ensemble open(std::string_view readings, int64_t context = 0) const {
    return Ensemble(model_, model_readings(readings, model_->compute(), registry()), registry(), context);
  }

  template <class S>
  std::vector<float> logits(S&& session, int64_t chunk, size_t prompt, int threads = 2) const {
    std::vector<float> all;
    Context context(threads);
    int64_t next = 0;
    session.prefill(
        std::span(ids_).first(prompt), chunk, Outputs::kAll,
        [&](int64_t first, const View& rows) {
          EXPECT_EQ(first, next);
          next += rows.shape[0];
          EXPECT_LE(rows.shape[0], kOutputRows);
          all.insert(all.end(), rows.as<float>(), rows.as<float>() + rows.count());
        },
        context);
    EXPECT_EQ(next, static_cast<int64_t>(prompt));
    for (size_t i = prompt; i < ids_.size(); ++i) {
      const auto row = session.decode(ids_[i], context);
      EXPECT_EQ(row.data(), session.last_logits().data());
      all.insert(all.end(), row.begin(), row.end());
    }
    return all;
  }

  std::vector<int32_t> ids_ = test::some_ids(90);
  std::shared_ptr<const LanguageModel> model_;
};

TEST_F(EnsembleTest, OneReadingIsASession) {
  const char* policy = "softmax:window=20,sinks=3";
  EXPECT_EQ(logits(open(policy), 16, 70), logits(test::open(model_, policy), 16, 70));
}

TEST_F(EnsembleTest, MergesByConfidence) {
  const char* bases[] = {"rope:base=500", "rope:base=20000 + f16", "snapkv:budget=30,observe=8"};
  const std::vector<float> merged =
      logits(open("rope:base=500 | rope:base=20000 + f16 | snapkv:budget=30,observe=8"), 24, 60);
  std::vector<std::vector<float>> alone;
  for (const char* base : bases) alone.push_back(logits(test::open(model_, base), 24, 60));
  double moved = 0;
  for (size_t row = 0; row < ids_.size(); ++row) {
    std::vector<double> sum(kVocabulary, 0);
    double confidence = 0;
    for (const std::vector<float>& one : alone) {
      const float* x = one.data() + row * kVocabulary;
      double total = 0, most = 0;
      for (size_t v = 0; v < kVocabulary; ++v) total += std::exp(static_cast<double>(x[v]));
      for (size_t v = 0; v < kVocabulary; ++v) most = std::max(most, std::exp(static_cast<double>(x[v])) / total);
      for (size_t v = 0; v < kVocabulary; ++v) sum[v] += most * std::exp(static_cast<double>(x[v])) / total;
      confidence += most;
      moved = std::max(moved, std::abs(std::exp(static_cast<double>(x[0])) / total - sum[0] / confidence));
    }
    for (size_t v = 0; v < kVocabulary; ++v)
      ASSERT_NEAR(merged[row * kVocabulary + v], std::log(sum[v] / confidence), 1e-5) << row;
  }
  EXPECT_GT(moved, 1e-4) << "the readings differ";
}

TEST_F(EnsembleTest, ChunksAndThreadsChangeNoBit) {
  const char* readings = "rope:base=500 | dca:context=40,chunk=32 | h2o:budget=30,stride=16";
  const std::vector<float> whole = logits(open(readings), 90, 60, 1);
  for (int64_t chunk : {1, 7, 33}) EXPECT_EQ(whole, logits(open(readings), chunk, 60, 3)) << chunk;
  Ensemble again = open(readings);
  logits(again, 8, 90);
  EXPECT_GT(again.bytes(), 0);
  EXPECT_GT(again.bytes_read_next(), 0);
  again.clear();
  EXPECT_TRUE(again.last_logits().empty());
  EXPECT_EQ(again.position(), 0);
  EXPECT_EQ(whole, logits(again, 11, 60));
}

TEST_F(EnsembleTest, Refuses) {
  expect_error(ErrorKind::kSpec, "at most 8", [&] { open("f16|f16|f16|f16|f16|f16|f16|f16|f16"); });
  expect_error(ErrorKind::kSpec, "sofmax", [&] { open("rope | sofmax"); });
  expect_error(ErrorKind::kArgument, "400 tokens", [&] { open("rope | softmax", 500); });
  EXPECT_EQ(open("rope | dca", 500).context(), 500);
}

}  // namespace
}  // namespace attend
