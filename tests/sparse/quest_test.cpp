// Quest's index against plain loops over the keys.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "attend/simd/isa.h"
#include "sparse/random_keys.h"

namespace attend {
namespace {

using test::kD;
using test::kGroup;
using test::normal;
using test::open_index;
using test::RandomKeys;

// Each page's bound relative to that of the head's best page, of the head that wants it most; the last page's infinite.
std::vector<double> relative_bounds(const std::vector<float>& k, int64_t n, const std::vector<float>& q, int64_t page) {
  const size_t count = static_cast<size_t>((n + page - 1) / page);
  std::vector<double> relative(count, -INFINITY);  // to the head's best page, of the head that wants a page most
  for (int g = 0; g < kGroup; ++g) {
    std::vector<double> own;
    for (int64_t first = 0; first < n; first += page) {
      const int64_t end = std::min(n, first + page);
      double bound = 0, largest = -INFINITY;
      for (int64_t c = 0; c < kD; ++c) {
        double term = -INFINITY, low = INFINITY, high = -INFINITY;
        for (int64_t j = first; j < end; ++j) {
          low = std::min<double>(low, k[static_cast<size_t>(j * kD + c)]);
          high = std::max<double>(high, k[static_cast<size_t>(j * kD + c)]);
        }
        const double x = static_cast<double>(q[static_cast<size_t>(g * kD + c)]);
        term = std::max(x * low, x * high);
        bound += term;
      }
      for (int64_t j = first; j < end; ++j) {
        double dot = 0;
        for (int64_t c = 0; c < kD; ++c)
          dot += static_cast<double>(q[static_cast<size_t>(g * kD + c)]) *
                 static_cast<double>(k[static_cast<size_t>(j * kD + c)]);
        largest = std::max(largest, dot);
      }
      EXPECT_GE(bound, largest - 1e-5) << "no key of a page scores beyond its bound";
      own.push_back(bound);
    }
    const double best = *std::max_element(own.begin(), own.end());
    for (size_t p = 0; p < count; ++p) relative[p] = std::max(relative[p], own[p] - best);
  }
  relative.back() = INFINITY;
  return relative;
}

// The `pages` pages whose bounds allow the largest scores, the last one among them.
std::vector<KeyRange> expected(const std::vector<float>& k, int64_t n, const std::vector<float>& q, int64_t page,
                               int64_t pages) {
  const std::vector<double> relative = relative_bounds(k, n, q, page);
  std::vector<std::pair<double, int64_t>> scored;
  for (size_t p = 0; p < relative.size(); ++p) scored.emplace_back(relative[p], static_cast<int64_t>(p) * page);
  std::sort(scored.rbegin(), scored.rend());
  scored.resize(static_cast<size_t>(pages));
  std::vector<int64_t> firsts;
  for (const auto& [score, first] : scored) firsts.push_back(first);
  std::sort(firsts.begin(), firsts.end());
  std::vector<KeyRange> ranges;
  for (int64_t first : firsts) append_range(ranges, {first, std::min(n, first + page)});
  return ranges;
}

TEST(Quest, ReadsThePagesOfTheLargestBounds) {
  for (const IsaInfo& info : isa_list()) {
    if (!info.usable) continue;
    for (int64_t n : {65, 500, 1000}) {
      SCOPED_TRACE(testing::Message() << name_of(info.isa) << " " << n << " keys");
      RandomKeys keys(n, 5);
      const auto index = open_index("quest:budget=64,page=16,dense=1,bounds=f32", info.isa);
      for (int64_t seen = 0; seen < n; seen += 37) index->update(1, 1, keys.first(std::min(n, seen + 37)), seen);
      for (uint64_t seed = 0; seed < 5; ++seed) {
        const std::vector<float> q = normal(kGroup * kD, 100 + seed);
        Selection selection;
        index->select(1, 1, keys.first(n), q.data(), selection);
        EXPECT_FALSE(selection.everything);
        EXPECT_EQ(selection.slots, expected(keys.rows, n, q, 16, 4));
        EXPECT_GT(selection.index_bytes, 0);
      }
    }
  }
}

// Bounds as bytes move outwards by at most a step, 1/255 of a channel's range, and so do those they are compared with.
TEST(Quest, KeepsItsOrderToWithinAStepOfByteBounds) {
  constexpr int64_t kCount = 3000, kPage = 8;
  RandomKeys keys(kCount, 5);
  std::vector<double> step;
  for (int64_t c = 0; c < kD; ++c) {
    double low = INFINITY, high = -INFINITY;
    for (int64_t j = 0; j < kCount; ++j) {
      low = std::min<double>(low, keys.rows[static_cast<size_t>(j * kD + c)]);
      high = std::max<double>(high, keys.rows[static_cast<size_t>(j * kD + c)]);
    }
    step.push_back((high - low) / 255);
  }
  for (const IsaInfo& info : isa_list()) {
    if (!info.usable) continue;
    SCOPED_TRACE(name_of(info.isa));
    const auto bytes = open_index("quest:budget=256,page=8,dense=0", info.isa);
    const auto numbers = open_index("quest:budget=256,page=8,dense=0,bounds=f32", info.isa);
    for (int64_t seen = 0; seen < kCount; seen += 113) {
      bytes->update(0, 0, keys.first(std::min(kCount, seen + 113)), seen);
      numbers->update(0, 0, keys.first(std::min(kCount, seen + 113)), seen);
    }
    EXPECT_LT(bytes->bytes(), numbers->bytes() * 2 / 3);
    int64_t moved = 0;
    for (uint64_t seed = 0; seed < 10; ++seed) {
      const std::vector<float> q = normal(kGroup * kD, 200 + seed);
      double slack = 0;
      for (int g = 0; g < kGroup; ++g) {
        double sum = 0;
        for (int64_t c = 0; c < kD; ++c)
          sum += std::fabs(static_cast<double>(q[static_cast<size_t>(g * kD + c)])) * step[static_cast<size_t>(c)];
        slack = std::max(slack, sum);
      }
      const std::vector<double> relative = relative_bounds(keys.rows, kCount, q, kPage);
      Selection a, b;
      bytes->select(0, 0, keys.first(kCount), q.data(), a);
      numbers->select(0, 0, keys.first(kCount), q.data(), b);
      EXPECT_EQ(a.count(), 256);
      EXPECT_LT(a.index_bytes, b.index_bytes);
      moved += a.slots != b.slots;
      std::vector<bool> chosen(relative.size());
      for (const KeyRange& range : a.slots)
        for (int64_t j = range.begin; j < range.end; ++j) chosen[static_cast<size_t>(j / kPage)] = true;
      double least = INFINITY, most = -INFINITY;
      for (size_t p = 0; p < chosen.size(); ++p)
        (chosen[p] ? least : most) = chosen[p] ? std::min(least, relative[p]) : std::max(most, relative[p]);
      // Each bound and each best page's bound may move by `slack`.
      EXPECT_GE(least + 2 * slack, most);
    }
    EXPECT_GT(moved, 0) << "else bytes were not used";
  }
}

TEST(Quest, ReadsEverythingWhereThatIsWithinTheBudget) {
  RandomKeys keys(100, 5);
  const std::vector<float> q = normal(kGroup * kD, 1);
  const auto index = open_index("quest:budget=100,dense=1", Isa::kAvx2);
  index->update(0, 0, keys.first(100), 0), index->update(1, 0, keys.first(100), 0);
  for (int layer : {0, 1}) {
    Selection selection;
    index->select(layer, 0, keys.first(100), q.data(), selection);
    EXPECT_TRUE(selection.everything);
  }
  EXPECT_GT(index->bytes(), 0);
  index->clear();
  EXPECT_EQ(index->bytes(), 0);
}

// After keys were dropped the index is that of the ones that stayed.
TEST(Quest, FollowsKeysThatMoved) {
  RandomKeys keys(600, 5), moved(300, 8);
  for (int64_t j = 0; j < 300; ++j) std::copy_n(keys.rows.begin() + 2 * j * kD, kD, moved.rows.begin() + j * kD);
  const auto index = open_index("quest:budget=48,dense=0", Isa::kAvx2),
             fresh = open_index("quest:budget=48,dense=0", Isa::kAvx2);
  index->update(0, 0, keys.first(600), 0);
  index->update(0, 0, moved.first(300), 0);
  fresh->update(0, 0, moved.first(300), 0);
  const std::vector<float> q = normal(kGroup * kD, 9);
  Selection a, b;
  index->select(0, 0, moved.first(300), q.data(), a);
  fresh->select(0, 0, moved.first(300), q.data(), b);
  EXPECT_EQ(a.slots, b.slots);
}

// Within the budget there is nothing to gain.
TEST(Selection, PaysBeyondTheBudgetOrIsNotSaidTo) {
  int said = 0;
  for (const Entry* entry : registry().entries()) {
    if (entry->kind != Kind::kSelector) continue;
    const Spec spec = registry().complete(parse_spec(std::string(entry->name)));
    const int64_t keys = registry().make<Selector>(spec)->pays_from();
    EXPECT_GE(keys, 0) << entry->name;
    if (keys == 0) continue;
    ++said;
    EXPECT_GT(keys, spec.integer("budget")) << entry->name;
  }
  EXPECT_GE(said, 4);
  EXPECT_EQ(registry().make<Selector>(parse_spec("quest:budget=100"))->pays_from(), 800);
}

TEST(Selection, JoinsRanges) {
  std::vector<KeyRange> ranges;
  for (const KeyRange& r : {KeyRange{2, 4}, {4, 5}, {7, 7}, {8, 9}, {8, 12}}) append_range(ranges, r);
  EXPECT_EQ(ranges, (std::vector<KeyRange>{{2, 5}, {8, 12}}));
}

}  // namespace
}  // namespace attend
