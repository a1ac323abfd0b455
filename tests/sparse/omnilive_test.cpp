// The memory of clips against plain loops over the keys.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <set>

#include "attend/simd/isa.h"
#include "attend/tensor/context.h"
#include "sparse/random_keys.h"

namespace attend {
namespace {

using test::kD;
using test::kGroup;
using test::normal;
using test::open_index;
using test::RandomKeys;

double cosine(const float* q, const std::vector<double>& x) {
  double xy = 0, xx = 0, yy = 0;
  for (int64_t c = 0; c < kD; ++c) {
    const double a = static_cast<double>(q[c]), b = x[static_cast<size_t>(c)];
    xy += a * b, xx += a * a, yy += b * b;
  }
  return xy / std::sqrt(xx * yy);
}

struct Reads {
  int64_t budget, clip, keep, sinks, recent, shortlist;
};

// The largest cosine of a head's question and the mean of the keys [begin, end).
double likeness(const std::vector<float>& k, const float* q, int64_t begin, int64_t end) {
  std::vector<double> mean(kD, 0);
  for (int64_t j = begin; j < end; ++j)
    for (int64_t c = 0; c < kD; ++c)
      mean[static_cast<size_t>(c)] += static_cast<double>(k[static_cast<size_t>(j * kD + c)]);
  double best = -INFINITY;
  for (int g = 0; g < kGroup; ++g) best = std::max(best, cosine(q + g * kD, mean));
  return best;
}

std::vector<KeyRange> expected(const std::vector<float>& k, int64_t n, const float* q, const Reads& r) {
  std::vector<std::pair<double, int64_t>> clips;
  for (int64_t first = 0; first + r.clip <= n; first += r.clip)
    clips.emplace_back(-likeness(k, q, first, first + r.clip), first);
  std::sort(clips.begin(), clips.end());
  const int64_t fit = (r.budget - r.sinks - r.recent) / r.clip;
  for (size_t n_th = 0; n_th < clips.size(); ++n_th) {
    auto& [score, first] = clips[n_th];
    score = INFINITY;
    if (r.shortlist > 0 && static_cast<int64_t>(n_th) >= fit * r.shortlist) continue;
    for (int64_t part = 0; part < r.keep; ++part)
      score = std::min(score, -likeness(k, q, first + part * r.clip / r.keep, first + (part + 1) * r.clip / r.keep));
  }
  std::sort(clips.begin(), clips.end(),
            [](const auto& a, const auto& b) { return a.first != b.first ? a.first < b.first : a.second > b.second; });
  std::set<int64_t> read;
  for (int64_t j = 0; j < n; ++j)
    if (j < r.sinks || j >= n - r.recent) read.insert(j);
  for (const auto& [score, first] : clips) {
    std::set<int64_t> more;
    for (int64_t j = first; j < first + r.clip; ++j)
      if (!read.count(j)) more.insert(j);
    if (static_cast<int64_t>(read.size() + more.size()) > r.budget) break;
    read.merge(more);
  }
  std::vector<KeyRange> ranges;
  for (int64_t j : read) append_range(ranges, {j, j + 1});
  return ranges;
}

TEST(OmniLive, ReadsTheClipsMostLikeTheQuestion) {
  for (const IsaInfo& info : isa_list()) {
    if (!info.usable) continue;
    for (const auto& [keep, shortlist] : {std::pair{1, 1}, {3, 2}, {3, 0}})
      for (int64_t n : {65, 500, 999}) {
        SCOPED_TRACE(testing::Message() << name_of(info.isa) << " " << n << " keys, seed 5, keep " << keep
                                        << ", shortlist " << shortlist);
        RandomKeys keys(n, 5);
        const std::string spec =
            fmt::format("omnilive:budget=64,clip=8,sinks=3,recent=17,dense=1,keep={},shortlist={}", keep, shortlist);
        const auto index = open_index(spec.c_str(), info.isa);
        for (int64_t seen = 0; seen < n; seen += 37) index->update(1, 1, keys.first(std::min(n, seen + 37)), seen);
        for (uint64_t seed = 0; seed < 5; ++seed) {
          const std::vector<float> q = normal(kGroup * kD, 100 + seed);
          Selection selection;
          index->select(1, 1, keys.first(n), q.data(), selection);
          EXPECT_FALSE(selection.everything);
          EXPECT_EQ(selection.slots, expected(keys.rows, n, q.data(), {64, 8, keep, 3, 17, shortlist}));
          EXPECT_LE(selection.count(), 64);
          EXPECT_GT(selection.index_bytes, 0);
        }
      }
  }
}

// A clip as long as the token itself: what is read are the keys of largest cosine.
TEST(OmniLive, WithClipsOfOneTokenRanksKeys) {
  RandomKeys keys(300, 6);
  const auto index = open_index("omnilive:budget=40,clip=1,keep=1,sinks=0,recent=1,dense=0", active_isa(Context(1)));
  index->update(0, 0, keys.first(300), 0);
  const std::vector<float> q = normal(kGroup * kD, 3);
  Selection selection;
  index->select(0, 0, keys.first(300), q.data(), selection);
  EXPECT_EQ(selection.count(), 40);
  EXPECT_EQ(selection.slots, expected(keys.rows, 300, q.data(), {40, 1, 1, 0, 1, 0}));
}

TEST(OmniLive, FollowsKeysThatMovedOrWent) {
  const char* spec = "omnilive:budget=48,clip=8,recent=16,dense=0";
  const Isa isa = active_isa(Context(1));
  RandomKeys keys(600, 7), moved(300, 8);
  for (int64_t j = 0; j < 300; ++j) std::copy_n(keys.rows.begin() + 2 * j * kD, kD, moved.rows.begin() + j * kD);
  const auto index = open_index(spec, isa), fresh = open_index(spec, isa);
  index->update(0, 0, keys.first(600), 0);
  index->update(0, 0, moved.first(300), 0);
  ASSERT_TRUE(index->can_cut(0, 0, 203));
  index->cut(0, 0, 203);
  for (int64_t j = 203; j < 300; ++j)
    for (int64_t c = 0; c < kD; ++c) moved.rows[static_cast<size_t>(j * kD + c)] *= -1;
  index->update(0, 0, moved.first(290), 203);
  fresh->update(0, 0, moved.first(290), 0);
  const std::vector<float> q = normal(kGroup * kD, 9);
  Selection a, b;
  index->select(0, 0, moved.first(290), q.data(), a);
  fresh->select(0, 0, moved.first(290), q.data(), b);
  EXPECT_EQ(a.slots, b.slots);
  index->clear();
  EXPECT_EQ(index->bytes(), 0);
}

}  // namespace
}  // namespace attend
