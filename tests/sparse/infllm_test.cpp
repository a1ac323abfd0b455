// InfLLM's index against its definition in plain loops: every score as a sum of products, every block from the keys.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "attend/simd/isa.h"
#include "attend/sparse/selector.h"
#include "attend/tensor/registry.h"
#include "sparse/random_keys.h"

namespace attend {
namespace {

constexpr int64_t kD = 24, kKeys = 700, kSinks = 8, kWindow = 64, kBlock = 16, kBudget = 167;
constexpr int kGroup = 3, kRepresentatives = 3;

struct Text {
  std::vector<float> k, q;  // [keys, d], [keys, group, d]
  KeyRun run;

  Text() {
    std::mt19937_64 random(17);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < kKeys * kD; ++i) k.push_back(normal(random));
    for (int64_t i = 0; i < kKeys * kGroup * kD; ++i) q.push_back(normal(random) + (i % 5 == 0 ? 0.5f : 0.0f));
  }
  KeyView first(int64_t n) {
    run = {.k = k.data(), .v = k.data(), .k_stride = kD, .v_stride = kD, .first_slot = 0, .count = n};
    KeyView view;
    view.runs = {&run, 1};
    return view;
  }
  double dot(int64_t query, int g, int64_t key) const {
    double sum = 0;
    for (int64_t c = 0; c < kD; ++c)
      sum += static_cast<double>(q[static_cast<size_t>((query * kGroup + g) * kD + c)]) *
             static_cast<double>(k[static_cast<size_t>(key * kD + c)]);
    return sum;
  }
};

std::unique_ptr<SelectorIndex> open(Isa isa = Isa::kAvx2) {
  return registry()
      .make<Selector>(parse_spec("infllm:budget=167,sinks=8,recent=64,block=16,representatives=3"))
      ->open({.layers = 1, .kv_heads = 1, .group = kGroup, .d = kD, .isa = isa});
}

void tell(SelectorIndex& index, Text& text, int64_t from, int64_t to) {
  test::tell(index, text.first(to), text.q.data() + from * kGroup * kD, from, to - from, kGroup, kD);
}

// What the query of key n - 1 reads of n keys, when the n - 1 before it are known.
std::vector<KeyRange> expected(const Text& text, int64_t n) {
  const int64_t known = n - 1, blocks = (known - kWindow - kSinks) / kBlock;
  std::vector<std::pair<double, int64_t>> relevance;
  for (int64_t b = 0; b < blocks; ++b) {
    double sum = 0;
    for (int g = 0; g < kGroup; ++g) {
      std::vector<std::pair<double, int64_t>> scores;
      for (int64_t m = kSinks + b * kBlock; m < kSinks + (b + 1) * kBlock; ++m) {
        double score = 0;
        for (int64_t i = m + 1; i <= m + kWindow; ++i) score += text.dot(i, g, m);
        scores.emplace_back(-score, m);
      }
      std::sort(scores.begin(), scores.end());
      for (int r = 0; r < kRepresentatives; ++r) sum += text.dot(n - 1, g, scores[static_cast<size_t>(r)].second);
    }
    relevance.emplace_back(-sum, b);
  }
  std::sort(relevance.begin(), relevance.end());
  std::vector<int64_t> chosen;
  const int64_t tail = n - (kSinks + blocks * kBlock);
  for (int64_t i = 0; i < (kBudget - kSinks - tail) / kBlock; ++i)
    chosen.push_back(relevance[static_cast<size_t>(i)].second);
  std::sort(chosen.begin(), chosen.end());
  std::vector<KeyRange> ranges;
  append_range(ranges, {0, kSinks});
  for (int64_t b : chosen) append_range(ranges, {kSinks + b * kBlock, kSinks + (b + 1) * kBlock});
  append_range(ranges, {n - tail, n});
  return ranges;
}

TEST(InfLlm, ReadsTheBlocksWhoseRepresentativesTheQueryWants) {
  for (const IsaInfo& info : isa_list()) {
    if (!info.usable) continue;
    SCOPED_TRACE(name_of(info.isa));
    Text text;
    const auto index = open(info.isa);
    int64_t known = 0;
    for (int64_t n : {200, 201, 215, 216, 217, 400, 555, 700}) {
      while (known < n - 1) {
        const int64_t to = std::min(n - 1, known + 37);
        tell(*index, text, known, to);
        known = to;
      }
      index->update(0, 0, text.first(n), n - 1);
      Selection selection;
      index->select(0, 0, text.first(n), text.q.data() + (n - 1) * kGroup * kD, selection);
      EXPECT_EQ(selection.slots, expected(text, n)) << n;
      EXPECT_LE(selection.count(), kBudget);
      EXPECT_GT(selection.index_bytes, 0);
    }
  }
}

// Keys that were dropped are no representatives, and their blocks are what is left of them.
TEST(InfLlm, FollowsKeysThatWent) {
  Text text;
  const auto index = open();
  tell(*index, text, 0, 400);
  // Every third key of the middle goes; queries go on.
  std::vector<int32_t> position;
  std::vector<float> rows;
  for (int64_t j = 0; j < 600; ++j) {
    if (j > 100 && j < 390 && j % 3 == 0) continue;
    position.push_back(static_cast<int32_t>(j));
    rows.insert(rows.end(), text.k.begin() + j * kD, text.k.begin() + (j + 1) * kD);
  }
  auto first = [&](int64_t positions, KeyRun& run) {
    const int64_t n = std::lower_bound(position.begin(), position.end(), positions) - position.begin();
    run = {.k = rows.data(), .v = rows.data(), .k_stride = kD, .v_stride = kD, .first_slot = 0, .count = n};
    KeyView view;
    view.runs = {&run, 1};
    view.position = {position.data(), static_cast<size_t>(n)};
    return view;
  };
  KeyRun run;
  index->update(0, 0, first(400, run), 0);
  const std::vector<float> lse(200 * kGroup);
  index->queried(0, 0, first(600, run),
                 {.q = text.q.data() + 400 * kGroup * kD,
                  .lse = lse.data(),
                  .rows = 200,
                  .row_stride = kGroup * kD,
                  .lse_stride = 200,
                  .scale = 1});
  Selection selection;
  index->select(0, 0, first(600, run), text.q.data() + 600 * kGroup * kD, selection);
  EXPECT_FALSE(selection.everything);
  EXPECT_LE(selection.count(), kBudget);
  EXPECT_EQ(selection.slots.front().begin, 0);
  EXPECT_EQ(selection.slots.back().end, static_cast<int64_t>(position.size()));
  // Ranges begin and end where blocks do.
  for (const KeyRange& range : selection.slots) {
    if (range.begin == 0) continue;
    const int64_t before = position[static_cast<size_t>(range.begin) - 1],
                  at = position[static_cast<size_t>(range.begin)];
    EXPECT_NE((before - kSinks) / kBlock, (at - kSinks) / kBlock);
  }
}

}  // namespace
}  // namespace attend
