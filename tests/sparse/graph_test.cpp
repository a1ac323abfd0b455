// The graph's finds against all products, and what becomes of it as keys come and go.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "attend/simd/isa.h"
#include "attend/sparse/selector.h"
#include "attend/tensor/registry.h"
#include "sparse/random_keys.h"

namespace attend {
namespace {

constexpr int64_t kD = 32, kSinks = 4, kRecent = 32, kFound = 40;
constexpr int kGroup = 2;

// Keys share an offset and lie near one of 64 topics; queries want a topic but lie far from all keys.
struct Text {
  std::vector<float> k, q;  // [n, d], [n, group, d]
  KeyRun run;

  explicit Text(int64_t n) {
    std::mt19937_64 random(23);
    std::normal_distribution<float> normal;
    std::vector<float> topics(64 * kD), offset(kD), turned(kD);
    for (float& x : topics) x = normal(random);
    for (float& x : offset) x = 3 * normal(random);
    for (float& x : turned) x = 5 * normal(random);
    for (int64_t j = 0; j < n; ++j) {
      const float* topic = topics.data() + static_cast<int64_t>(random() % 64) * kD;
      for (int64_t c = 0; c < kD; ++c) k.push_back(offset[static_cast<size_t>(c)] + topic[c] + 0.7f * normal(random));
      for (int g = 0; g < kGroup; ++g) {
        const float* wanted = topics.data() + static_cast<int64_t>(random() % 64) * kD;
        for (int64_t c = 0; c < kD; ++c) q.push_back(2 * wanted[c] + turned[static_cast<size_t>(c)] + normal(random));
      }
    }
  }
  KeyView first(int64_t n) {
    run = {.k = k.data(), .v = k.data(), .k_stride = kD, .v_stride = kD, .first_slot = 0, .count = n};
    KeyView view;
    view.runs = {&run, 1};
    return view;
  }
};

std::unique_ptr<SelectorIndex> open(Isa isa, std::string_view more = "") {
  return registry()
      .make<Selector>(parse_spec("graph:budget=76,sinks=4,recent=32" + std::string(more)))
      ->open({.layers = 1, .kv_heads = 1, .group = kGroup, .d = kD, .isa = isa});
}

void tell(SelectorIndex& index, Text& text, int64_t from, int64_t to) {
  test::tell(index, text.first(to), text.q.data() + from * kGroup * kD, from, to - from, kGroup, kD);
}

Selection select(SelectorIndex& index, Text& text, int64_t n, int64_t query) {
  Selection selection;
  index.select(0, 0, text.first(n), text.q.data() + query * kGroup * kD, selection);
  return selection;
}

// The share of each head's largest products, sinks and newest keys aside, that was chosen.
double recall(const Text& text, const Selection& selection, int64_t n, int64_t query) {
  std::vector<bool> chosen(static_cast<size_t>(n));
  for (const KeyRange& range : selection.slots)
    std::fill(chosen.begin() + range.begin, chosen.begin() + range.end, true);
  int64_t hits = 0;
  for (int g = 0; g < kGroup; ++g) {
    std::vector<std::pair<double, int64_t>> all;
    for (int64_t j = kSinks; j < n - kRecent; ++j) {
      double dot = 0;
      for (int64_t c = 0; c < kD; ++c)
        dot += static_cast<double>(text.k[static_cast<size_t>(j * kD + c)]) *
               static_cast<double>(text.q[static_cast<size_t>((query * kGroup + g) * kD + c)]);
      all.emplace_back(-dot, j);
    }
    std::partial_sort(all.begin(), all.begin() + kFound / kGroup, all.end());
    for (int64_t i = 0; i < kFound / kGroup; ++i)
      hits += chosen[static_cast<size_t>(all[static_cast<size_t>(i)].second)];
  }
  return static_cast<double>(hits) / kFound;
}

constexpr int64_t kKeys = 3000, kPrompt = 2500;

TEST(Graph, FindsTheLargestProductsAndReadsFewKeysForThat) {
  for (const IsaInfo& info : isa_list()) {
    if (!info.usable) continue;
    SCOPED_TRACE(name_of(info.isa));
    Text text(kKeys);
    const auto index = open(info.isa);
    tell(*index, text, 0, kPrompt);
    double mean = 0;
    int64_t bytes = 0;
    for (int64_t n = kPrompt + 1; n <= kKeys; ++n) {
      index->update(0, 0, text.first(n), n - 1);
      const Selection selection = select(*index, text, n, n - 1);
      ASSERT_FALSE(selection.everything);
      EXPECT_LE(selection.count(), 76);
      mean += recall(text, selection, n, n - 1) / (kKeys - kPrompt);
      bytes += selection.index_bytes / (kKeys - kPrompt);
    }
    EXPECT_GT(mean, 0.9);
    EXPECT_LT(bytes, kPrompt * kD * static_cast<int64_t>(sizeof(float)) / 2);
    EXPECT_GT(bytes, 0);
  }
}

// Queries lie elsewhere than keys: a graph that knows none of them leads nowhere near as well, at equal effort.
TEST(Graph, IsBetterForTheQueriesThatItWasMadeAfter) {
  Text text(kKeys);
  double guided = 0, blind = 0;
  for (bool knows : {true, false}) {
    const auto index = open(Isa::kAvx2, ",effort=1,degree=12");
    if (knows) {
      tell(*index, text, 0, kPrompt);
    } else {
      index->update(0, 0, text.first(kPrompt), 0);
    }
    for (int64_t query = kPrompt; query < kPrompt + 200; ++query)
      (knows ? guided : blind) += recall(text, select(*index, text, kPrompt, query), kPrompt, query) / 200;
  }
  EXPECT_GT(guided, blind);
}

TEST(Graph, DependsOnTheTextAlone) {
  Text text(kKeys);
  const auto whole = open(Isa::kAvx2), parts = open(Isa::kAvx2);
  tell(*whole, text, 0, kPrompt);
  for (int64_t at = 0; at < kPrompt; at += 61) tell(*parts, text, at, std::min(kPrompt, at + 61));
  for (int64_t n = kPrompt + 1; n < kPrompt + 50; ++n)
    EXPECT_EQ(select(*whole, text, n, n - 1).slots, select(*parts, text, n, n - 1).slots);
}

// After keys were dropped it finds those that stayed.
TEST(Graph, FollowsKeysThatMoved) {
  Text text(kKeys), moved(kKeys);
  moved.k.clear();
  for (int64_t j = 0; j < kPrompt; j += 2)
    moved.k.insert(moved.k.end(), text.k.begin() + j * kD, text.k.begin() + (j + 1) * kD);
  const auto index = open(Isa::kAvx2);
  tell(*index, text, 0, kPrompt);
  select(*index, text, kPrompt, kPrompt);
  const int64_t n = kPrompt / 2;
  index->update(0, 0, moved.first(n), 0);
  double mean = 0;
  for (int64_t query = kPrompt; query < kPrompt + 50; ++query)
    mean += recall(moved, select(*index, moved, n, query), n, query) / 50;
  EXPECT_GT(mean, 0.9);
  index->clear();
  EXPECT_EQ(index->bytes(), 0);
}

// Equal keys and keys that are no numbers end no search and begin no endless one.
TEST(Graph, TakesAnyKeys) {
  Text text(300);
  std::fill(text.k.begin(), text.k.begin() + 200 * kD, 1.0f);
  std::fill(text.k.begin() + 200 * kD, text.k.begin() + 201 * kD, NAN);
  const auto index = open(Isa::kAvx2);
  tell(*index, text, 0, 300);
  const Selection selection = select(*index, text, 300, 299);
  EXPECT_LE(selection.count(), 76);
  EXPECT_EQ(selection.slots.back().end, 300);
}

}  // namespace
}  // namespace attend
