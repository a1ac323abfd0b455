#include "attend/lm/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

#include "attend/tensor/error.h"

namespace attend {
namespace {

const std::vector<float> kLogits = {1.0f, 3.0f, 2.0f, 3.0f, -1.0f};

SamplerOptions drawing() {
  return {.temperature = 1, .top_k = 0, .top_p = 1, .min_p = 0, .repeat_penalty = 1, .repeat_window = 64, .seed = 7};
}

std::map<int32_t, double> shares(const SamplerOptions& options, int draws = 20000) {
  Sampler sampler(options);
  std::map<int32_t, double> share;
  for (int i = 0; i < draws; ++i) share[sampler.sample(kLogits)] += 1.0 / draws;
  return share;
}

TEST(Sampler, GreedyTakesTheLowestOfEquals) {
  EXPECT_EQ(Sampler(SamplerOptions{}).sample(kLogits), 1);
}

TEST(Sampler, PenaltyLowersRecentTokens) {
  SamplerOptions options;
  options.repeat_penalty = 2;
  options.repeat_window = 2;
  Sampler sampler(options);
  sampler.accept(1);
  EXPECT_EQ(sampler.sample(kLogits), 3);
  sampler.accept(3);
  EXPECT_EQ(sampler.sample(kLogits), 2);
  sampler.accept(3);  // 1 falls out of the window
  EXPECT_EQ(sampler.sample(kLogits), 1);
  Sampler negative(options);
  negative.accept(0);
  EXPECT_EQ(negative.sample(std::vector<float>{-1.0f, -1.5f}), 1);
}

TEST(Sampler, DrawsBySoftmax) {
  for (double temperature : {0.5, 1.0, 2.0}) {
    SamplerOptions options = drawing();
    options.temperature = temperature;
    double total = 0;
    for (float l : kLogits) total += std::exp(l / temperature);
    const auto share = shares(options);
    for (size_t i = 0; i < kLogits.size(); ++i) {
      const double p = std::exp(kLogits[i] / temperature) / total;
      const auto found = share.find(static_cast<int32_t>(i));
      EXPECT_NEAR(found == share.end() ? 0 : found->second, p, 5 * std::sqrt(p * (1 - p) / 20000)) << i;
    }
  }
}

TEST(Sampler, Cuts) {
  SamplerOptions options = drawing();
  options.top_k = 3;
  EXPECT_EQ(shares(options).size(), 3u);
  options = drawing();
  options.top_p = 0.7;  // 1 and 3 have 0.39 each
  EXPECT_EQ(shares(options).size(), 2u);
  options.top_p = 0.3;
  EXPECT_EQ(shares(options).size(), 1u);
  options = drawing();
  options.min_p = 0.3;  // 2 has exp(-1) = 0.37 of the largest, 0 has 0.14
  EXPECT_EQ(shares(options).size(), 3u);
}

TEST(Sampler, SeedGivesOneText) {
  const std::vector<float> flat(1000, 0.0f);
  SamplerOptions options = drawing();
  Sampler a(options), b(options);
  options.seed = 8;
  Sampler c(options);
  int different = 0;
  for (int i = 0; i < 50; ++i) {
    const int32_t id = a.sample(flat);
    EXPECT_EQ(id, b.sample(flat));
    different += id != c.sample(flat);
  }
  EXPECT_GT(different, 40);
}

TEST(Sampler, SkipsWhatIsNoNumber) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(Sampler(drawing()).sample(std::vector<float>{nan, 1.0f}), 1);
  EXPECT_EQ(Sampler(drawing()).sample(std::vector<float>{0.0f, inf}), 1);
  EXPECT_THROW(Sampler(drawing()).sample(std::vector<float>{nan}), Error);
  EXPECT_THROW(Sampler(SamplerOptions{.temperature = -1}), Error);
  EXPECT_THROW(Sampler(SamplerOptions{.top_p = 0}), Error);
}

std::string stream(std::vector<std::string> stops, const std::vector<std::string>& pieces, bool* stopped = nullptr) {
  StopStrings stop(std::move(stops));
  std::string all;
  for (const std::string& piece : pieces) all += stop.push(piece);
  if (stopped) *stopped = stop.stopped();
  return all + stop.finish();
}

TEST(StopStrings, CutAcrossPieces) {
  bool stopped = false;
  EXPECT_EQ(stream({"END"}, {"a", "bE", "N", "Dc", "d"}, &stopped), "ab");
  EXPECT_TRUE(stopped);
  EXPECT_EQ(stream({"END"}, {"a", "bE", "N", "Ec", "EN"}, &stopped), "abENEcEN");
  EXPECT_FALSE(stopped);
  EXPECT_EQ(stream({"aab"}, {"a", "a", "a", "b"}), "a");
  EXPECT_EQ(stream({"xyz", "y"}, {"wx", "yz"}), "w");
  EXPECT_EQ(stream({}, {"all", " of it"}), "all of it");
  EXPECT_EQ(stream({""}, {"all"}), "all");
}

TEST(StopStrings, HoldsBackOnlyWhatMayStop) {
  StopStrings stop({"\n\n"});
  EXPECT_EQ(stop.push("line\n"), "line");
  EXPECT_EQ(stop.push("next"), "\nnext");
}

}  // namespace
}  // namespace attend
