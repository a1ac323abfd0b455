// The sampled sums of MagicPIG against whole ones: their mean over seeds, and attention that is flat.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "attend/simd/isa.h"
#include "attend/sparse/selector.h"
#include "attend/tensor/context.h"
#include "attend/tensor/registry.h"

namespace attend {
namespace {

constexpr int64_t kD = 16, kKeys = 400;

struct Keys {
  std::vector<float> k, v;  // values: a number a key
  KeyRun run;

  explicit Keys(float spread) {
    std::mt19937_64 random(3);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < kKeys * kD; ++i) k.push_back(spread * normal(random));
    for (int64_t j = 0; j < kKeys; ++j) v.push_back(normal(random) + 1);
    run = {.k = k.data(), .v = v.data(), .k_stride = kD, .v_stride = 1, .first_slot = 0, .count = kKeys};
  }
  KeyView view() const {
    KeyView keys;
    keys.runs = {&run, 1};
    return keys;
  }
  double weight(const std::vector<float>& q, int64_t j) const {
    double dot = 0;
    for (int64_t c = 0; c < kD; ++c)
      dot += static_cast<double>(q[static_cast<size_t>(c)]) * static_cast<double>(k[static_cast<size_t>(j * kD + c)]);
    return std::exp(dot / 4);
  }
};

struct Sums {
  double weights = 0, values = 0;
  int64_t read = 0;
  double attention() const { return values / weights; }
};

Sums sample(const Keys& keys, const std::vector<float>& q, int seed, std::string_view options) {
  const auto selector =
      registry().make<Selector>(parse_spec(fmt::format("magicpig:sinks=4,recent=32,seed={},{}", seed, options)));
  const auto index = selector->open({.layers = 4, .kv_heads = 1, .group = 1, .d = kD, .isa = active_isa(Context(1))});
  Selection selection;
  index->select(1, 0, keys.view(), q.data(), selection);
  EXPECT_FALSE(selection.everything);
  EXPECT_EQ(selection.log_weights.size(), static_cast<size_t>(selection.count()));
  Sums sums;
  for (const KeyRange& range : selection.slots)
    for (int64_t j = range.begin; j < range.end; ++j) {
      const double w =
          keys.weight(q, j) * std::exp(static_cast<double>(selection.log_weights[static_cast<size_t>(sums.read)]));
      sums.weights += w;
      sums.values += w * static_cast<double>(keys.v[static_cast<size_t>(j)]);
      ++sums.read;
    }
  EXPECT_EQ(selection.slots.front().begin, 0);
  EXPECT_EQ(selection.slots.back().end, kKeys);
  return sums;
}

std::vector<float> query(float length) {
  std::mt19937_64 random(11);
  std::normal_distribution<float> normal;
  std::vector<float> q;
  for (int64_t c = 0; c < kD; ++c) q.push_back(length * normal(random));
  return q;
}

Sums whole(const Keys& keys, const std::vector<float>& q) {
  Sums sums;
  for (int64_t j = 0; j < kKeys; ++j) {
    sums.weights += keys.weight(q, j);
    sums.values += keys.weight(q, j) * static_cast<double>(keys.v[static_cast<size_t>(j)]);
  }
  return sums;
}

// Seeds 0 .. 399 are the sample: nothing else in the test is random. Five standard errors of their mean.
TEST(MagicPig, MeansOverSeedsAreTheWholeSums) {
  const Keys keys(0.7f);
  const std::vector<float> q = query(1);
  const Sums exact = whole(keys, q);
  constexpr int kSeeds = 400;
  std::vector<double> weights, values;
  int64_t read = 0;
  for (int seed = 0; seed < kSeeds; ++seed) {
    const Sums sums = sample(keys, q, seed, "bits=4,tables=10");
    weights.push_back(sums.weights), values.push_back(sums.values);
    read += sums.read;
  }
  EXPECT_LT(read / kSeeds, kKeys * 2 / 3) << "a part is read";
  for (const auto& [drawn, wanted] : {std::pair{weights, exact.weights}, {values, exact.values}}) {
    const double mean = std::accumulate(drawn.begin(), drawn.end(), 0.0) / kSeeds;
    double square = 0;
    for (double x : drawn) square += (x - mean) * (x - mean);
    const double error = std::sqrt(square / kSeeds / (kSeeds - 1));
    EXPECT_NEAR(mean, wanted, 5 * error);
    EXPECT_LT(error, 0.02 * wanted) << "the test would see a bias of this size";
  }
}

// Where weights are almost equal and values go against them, the largest weights tell little about the rest.
TEST(MagicPig, IsNearerThanTheLargestWeightsWhereAttentionIsFlat) {
  Keys keys(0.3f);
  const std::vector<float> q = query(1);
  std::vector<int64_t> order(kKeys);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return keys.weight(q, a) > keys.weight(q, b); });
  for (size_t n = 0; n < order.size(); ++n) keys.v[static_cast<size_t>(order[n])] += n < order.size() / 2 ? 1 : -1;
  const double exact = whole(keys, q).attention();
  double sampled = 0, largest = 0;
  constexpr int kSeeds = 20;
  for (int seed = 0; seed < kSeeds; ++seed) {
    const Sums sums = sample(keys, q, seed, "bits=6,tables=40");
    sampled += std::fabs(sums.attention() - exact) / kSeeds;
    Sums top;
    for (size_t n = 0; n < static_cast<size_t>(sums.read); ++n) {
      top.weights += keys.weight(q, order[n]);
      top.values += keys.weight(q, order[n]) * static_cast<double>(keys.v[static_cast<size_t>(order[n])]);
    }
    largest += std::fabs(top.attention() - exact) / kSeeds;
  }
  EXPECT_LT(sampled, largest / 2);
}

}  // namespace
}  // namespace attend
