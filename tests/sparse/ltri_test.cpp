// Spans and what is read of them, against the definition in plain loops over whole maps of weights.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>
#include <set>

#include "attend/simd/isa.h"
#include "attend/sparse/selector.h"
#include "attend/tensor/context.h"
#include "attend/tensor/registry.h"

namespace attend {
namespace {

constexpr int64_t kD = 24, kBlock = 16, kSpan = 8, kBudget = 60, kRecent = 20, kSinks = 3;
constexpr int kGroup = 2;
constexpr float kScale = 0.4f;
constexpr const char* kSpec = "ltri:budget=60,sinks=3,recent=20,block=16,span=8,dense=1";

// Keys and queries whose tokens belong to topics: each has a direction of its own.
struct Text {
  int64_t n;
  std::vector<float> k, q, directions;  // q [token, group, d]
  std::vector<int> topic;

  Text(int64_t tokens, uint64_t seed) : n(tokens) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    int current = -1;
    for (int64_t j = 0, left = 0; j < n; ++j, --left) {
      if (left == 0) {
        ++current, left = 2 + static_cast<int64_t>(random() % 7);
        for (int64_t c = 0; c < kD; ++c) directions.push_back(normal(random));
      }
      topic.push_back(current);
      for (int64_t c = 0; c < kD; ++c) k.push_back(along(current, c) + 0.3f * normal(random));
      for (int64_t g = 0; g < kGroup; ++g)
        for (int64_t c = 0; c < kD; ++c) q.push_back(along(current, c) + 0.3f * normal(random));
    }
  }
  float along(int t, int64_t c) const { return directions[static_cast<size_t>(t * kD + c)]; }
  double score(const float* query, int64_t j) const {
    double dot = 0;
    for (int64_t c = 0; c < kD; ++c)
      dot += static_cast<double>(query[c]) * static_cast<double>(k[static_cast<size_t>(j * kD + c)]);
    return dot;
  }
  const float* query(int64_t i, int g) const { return q.data() + (i * kGroup + g) * kD; }
  // Of token i's head g over all keys before it: ln of the sum of exp.
  double lse(int64_t i, int g) const {
    double sum = 0;
    for (int64_t j = 0; j <= i; ++j) sum += std::exp(static_cast<double>(kScale) * score(query(i, g), j));
    return std::log(sum);
  }
  double weight(int64_t i, int64_t j) const {  // summed over the group
    double sum = 0;
    for (int g = 0; g < kGroup; ++g) sum += std::exp(static_cast<double>(kScale) * score(query(i, g), j) - lse(i, g));
    return sum;
  }
};

// [begin, end) of the spans of a text: every triangle's sum anew.
std::vector<KeyRange> spans_of(const Text& text, double threshold) {
  std::vector<KeyRange> spans;
  for (int64_t first = 0; first + kBlock <= text.n; first += kBlock) {
    std::vector<std::vector<double>> w(kBlock, std::vector<double>(kBlock, 0));
    double mean = 0, places = 0;
    for (int64_t i = 0; i < kBlock; ++i)
      for (int64_t j = std::max<int64_t>(0, i - kSpan + 1); j <= i; ++j) {
        w[static_cast<size_t>(i)][static_cast<size_t>(j)] = text.weight(first + i, first + j);
        mean += w[static_cast<size_t>(i)][static_cast<size_t>(j)], ++places;
      }
    mean /= places;
    struct Sum {
      double sum;
      int64_t begin, end;
    };
    std::vector<Sum> sums;
    for (int64_t x = 0; x < kBlock; ++x)
      for (int64_t y = x + 2; y <= std::min(kBlock, x + kSpan); ++y) {
        double sum = 0;
        for (int64_t i = x; i < y; ++i)
          for (int64_t j = x; j <= i; ++j) sum += w[static_cast<size_t>(i)][static_cast<size_t>(j)] - threshold * mean;
        if (sum > 0) sums.push_back({sum, x, y});
      }
    std::sort(sums.begin(), sums.end(), [](const Sum& a, const Sum& b) { return a.sum > b.sum; });
    std::vector<int> owner(kBlock, -1);
    int found = 0;
    for (const Sum& s : sums) {
      bool free = true;
      for (int64_t j = s.begin; j < s.end; ++j) free &= owner[static_cast<size_t>(j)] < 0;
      for (int64_t j = s.begin; free && j < s.end; ++j) owner[static_cast<size_t>(j)] = found;
      found += free;
    }
    for (int64_t j = 0, begin = 0; j < kBlock; ++j)
      if (j + 1 == kBlock || owner[static_cast<size_t>(j)] != owner[static_cast<size_t>(j + 1)] ||
          j + 1 - begin == kSpan) {
        spans.push_back({first + begin, first + j + 1});
        begin = j + 1;
      }
  }
  return spans;
}

// What the last token reads where the tokens of `kept` are there.
std::vector<KeyRange> expected(const Text& text, const std::vector<KeyRange>& spans, const std::vector<int64_t>& kept,
                               const float* q, int64_t vectors) {
  const int64_t n = static_cast<int64_t>(kept.size());
  std::vector<std::pair<double, KeyRange>> scored;
  for (const KeyRange& span : spans) {
    std::vector<std::pair<double, int64_t>> weighed;  // by the span's own tokens, the heaviest first
    for (int64_t j = span.begin; j < span.end; ++j) {
      double sum = 0;
      for (int64_t i = j; i < span.end; ++i) sum += text.weight(i, j);
      weighed.emplace_back(-sum, j);
    }
    std::sort(weighed.begin(), weighed.end());
    weighed.resize(std::min(weighed.size(), static_cast<size_t>(vectors)));
    KeyRange slots{n, 0};
    double best = -INFINITY;
    std::vector<double> mean(kGroup, 0);
    for (int64_t slot = 0; slot < n; ++slot) {
      const int64_t j = kept[static_cast<size_t>(slot)];
      if (j < span.begin || j >= span.end) continue;
      slots = {std::min(slots.begin, slot), slot + 1};
      for (int g = 0; g < kGroup; ++g) {
        mean[static_cast<size_t>(g)] += text.score(q + g * kD, j);
        for (const auto& [sum, picked] : weighed)
          if (picked == j) best = std::max(best, text.score(q + g * kD, j));
      }
    }
    if (slots.begin >= slots.end) continue;
    if (vectors == 0) best = *std::max_element(mean.begin(), mean.end()) / static_cast<double>(slots.end - slots.begin);
    slots = {std::max(slots.begin, kSinks), std::min(slots.end, n - kRecent)};
    if (slots.begin < slots.end) scored.push_back({best, slots});
  }
  std::sort(scored.begin(), scored.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  std::set<int64_t> read;
  for (int64_t j = 0; j < n; ++j)
    if (j < kSinks || j >= n - kRecent) read.insert(j);
  for (const auto& [score, slots] : scored) {
    if (static_cast<int64_t>(read.size()) + slots.end - slots.begin > kBudget) break;
    for (int64_t j = slots.begin; j < slots.end; ++j) read.insert(j);
  }
  std::vector<KeyRange> ranges;
  for (int64_t j : read) append_range(ranges, {j, j + 1});
  return ranges;
}

struct Fed {
  std::unique_ptr<SelectorIndex> index;
  KeyRun run;
  std::vector<float> rows;
  std::vector<int32_t> positions;

  Fed(const char* spec, Isa isa)
      : index(registry()
                  .make<Selector>(parse_spec(spec))
                  ->open({.layers = 2, .kv_heads = 2, .group = kGroup, .d = kD, .isa = isa})) {}
  KeyView view(const float* k, int64_t n) {
    run = {.k = k, .v = k, .k_stride = kD, .v_stride = kD, .first_slot = 0, .count = n};
    KeyView keys;
    keys.runs = {&run, 1};
    return keys;
  }
  void feed(const Text& text, int64_t from, int64_t end, int64_t chunk) {
    for (; from < end; from += chunk) {
      const int64_t count = std::min(chunk, end - from);
      const KeyView keys = view(text.k.data(), from + count);
      index->update(1, 1, keys, from);
      std::vector<float> lse(static_cast<size_t>(kGroup * count));
      for (int g = 0; g < kGroup; ++g)
        for (int64_t r = 0; r < count; ++r)
          lse[static_cast<size_t>(g * count + r)] = static_cast<float>(text.lse(from + r, g));
      index->queried(1, 1, keys,
                     {.q = text.query(from, 0),
                      .lse = lse.data(),
                      .rows = count,
                      .row_stride = kGroup * kD,
                      .lse_stride = count,
                      .scale = kScale});
    }
  }
  // The keys of these tokens alone stay.
  KeyView drop(const Text& text, const std::vector<int64_t>& kept) {
    rows.clear(), positions.clear();
    for (int64_t j : kept) {
      rows.insert(rows.end(), text.k.begin() + j * kD, text.k.begin() + (j + 1) * kD);
      positions.push_back(static_cast<int32_t>(j));
    }
    KeyView keys = view(rows.data(), static_cast<int64_t>(kept.size()));
    keys.position = positions;
    return keys;
  }
};

std::vector<int64_t> first_tokens(int64_t n) {
  std::vector<int64_t> tokens(static_cast<size_t>(n));
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

TEST(Ltri, ReadsTheSpansThatTrianglesMark) {
  for (const IsaInfo& info : isa_list()) {
    if (!info.usable) continue;
    for (const auto& [n, seed] : {std::pair<int64_t, uint64_t>{96, 1}, {203, 2}, {250, 3}})
      for (const auto& [options, threshold, vectors] :
           {std::tuple{"", 1.0, 0}, {",threshold=0.5", 0.5, 0}, {",threshold=3,vectors=2", 3.0, 2}}) {
        SCOPED_TRACE(testing::Message() << name_of(info.isa) << " " << n << " tokens, seed " << seed << options);
        const Text text(n, seed);
        const std::vector<KeyRange> spans = spans_of(text, threshold);
        for (int64_t chunk : {n, int64_t{7}, int64_t{1}}) {
          Fed fed((kSpec + std::string(options)).c_str(), info.isa);
          fed.feed(text, 0, n, chunk);
          for (int64_t asked : {n - 1, n / 2, int64_t{9}}) {
            Selection selection;
            fed.index->select(1, 1, fed.view(text.k.data(), n), text.query(asked, 0), selection);
            EXPECT_FALSE(selection.everything);
            EXPECT_EQ(selection.slots, expected(text, spans, first_tokens(n), text.query(asked, 0), vectors));
            EXPECT_LE(selection.count(), kBudget);
            EXPECT_GT(selection.index_bytes, 0);
          }
        }
      }
  }
}

// Weights within a topic are far larger than between topics: a query finds its topic again, whole.
TEST(Ltri, FindsATopicAgain) {
  const Text text(250, 5);
  Fed fed(kSpec, active_isa(Context(1)));
  fed.feed(text, 0, text.n, 50);
  int64_t found = 0, asked = 0;
  for (int64_t i = kSinks; i < text.n - kRecent; ++i) {
    Selection selection;
    fed.index->select(1, 1, fed.view(text.k.data(), text.n), text.query(i, 0), selection);
    for (int64_t j = 0; j < text.n; ++j) {
      if (text.topic[static_cast<size_t>(j)] != text.topic[static_cast<size_t>(i)]) continue;
      ++asked;
      for (const KeyRange& range : selection.slots) found += range.begin <= j && j < range.end;
    }
  }
  EXPECT_GT(found, asked * 97 / 100);
}

TEST(Ltri, KeepsItsSpansWhereKeysAreDropped) {
  const Text text(203, 8);
  const std::vector<KeyRange> spans = spans_of(text, 1);
  for (const auto& [options, vectors] : {std::pair{"", 0}, {",vectors=3", 3}}) {
    Fed fed((kSpec + std::string(options)).c_str(), active_isa(Context(1)));
    fed.feed(text, 0, text.n, 31);
    std::vector<int64_t> kept;
    for (int64_t j = 0; j < text.n; ++j)
      if (j % 3 != 1 && (j < 40 || j > 70)) kept.push_back(j);
    const KeyView keys = fed.drop(text, kept);
    fed.index->update(1, 1, keys, 0);
    Selection selection;
    fed.index->select(1, 1, keys, text.query(150, 0), selection);
    EXPECT_EQ(selection.slots, expected(text, spans, kept, text.query(150, 0), vectors));
  }
}

// What was read since the last block and taken back leaves no trace.
TEST(Ltri, ForgetsWhatWasCut) {
  const Text text(260, 4);
  Text other = text;
  for (size_t i = static_cast<size_t>(210 * kD); i < other.k.size(); ++i) other.k[i] = -other.k[i];
  const Isa isa = active_isa(Context(1));
  Fed fed(kSpec, isa), fresh(kSpec, isa);
  fed.feed(other, 0, 220, 16);
  EXPECT_FALSE(fed.index->can_cut(1, 1, 207));
  ASSERT_TRUE(fed.index->can_cut(1, 1, 210));
  fed.index->cut(1, 1, 210);
  fed.feed(text, 210, text.n, 9), fresh.feed(text, 0, text.n, 16);
  for (int64_t asked : {20, 190, 230}) {
    Selection a, b;
    fed.index->select(1, 1, fed.view(text.k.data(), text.n), text.query(asked, 0), a);
    fresh.index->select(1, 1, fresh.view(text.k.data(), text.n), text.query(asked, 0), b);
    EXPECT_EQ(a.slots, b.slots);
    EXPECT_EQ(a.index_bytes, b.index_bytes);
  }
}

TEST(Ltri, ReadsEverythingWhereThatIsWithinTheBudget) {
  const Text text(60, 6);
  Fed fed(kSpec, active_isa(Context(1)));
  fed.feed(text, 0, text.n, 60);
  EXPECT_GT(fed.index->bytes(), 0);
  EXPECT_FALSE(fed.index->wants_queries(0));
  for (int layer : {0, 1}) {
    Selection selection;
    fed.index->select(layer, 1, fed.view(text.k.data(), text.n), text.query(5, 0), selection);
    EXPECT_TRUE(selection.everything);
  }
}

}  // namespace
}  // namespace attend
