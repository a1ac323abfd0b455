// Values of dropped keys in those of the next: against the rule followed in plain loops in double precision.
#include <algorithm>
#include <cmath>

#include "lm/follow_rule.h"

namespace attend {
namespace {

using test::Kept;
using test::Keys;
using test::load;
using test::open;
using test::Row;
using test::SmallModel;
using test::some_ids;
using test::Weights;

// Uniform in [0, 1): splitmix64 of the sum of what came before and the next of layer, head and position.
double draw(uint64_t seed, int64_t layer, size_t head, int64_t position) {
  uint64_t x = seed;
  for (uint64_t part : {static_cast<uint64_t>(layer), static_cast<uint64_t>(head), static_cast<uint64_t>(position)}) {
    x += part + 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    x ^= x >> 31;
  }
  return static_cast<double>(x / (1ull << 40)) / static_cast<double>(1ull << 24);
}

// One key after the other goes, the oldest first, and leaves a third of its value to each of the next three, or not.
TEST(Merging, LeavesValuesOfKeysThatGoInTheNext) {
  const SmallModel small;
  const auto model = load(small);
  const std::vector<int32_t> ids = some_ids(45);
  const std::string bytes = small.bytes();
  std::vector<std::vector<float>> results;
  for (const auto& [recent, seed] : {std::pair{8, 3}, {8, 4}, {4, 3}}) {
    int merged = 0, lost = 0;
    test::NaiveModel naive(small, bytes);
    naive.evict = [&, recent = recent, seed = seed](int64_t layer, int64_t seen, const Weights& w, const Keys&,
                                                    Kept& kept) {
      if (seen % 8 != 0 && seen != test::kRulePrompt) return;
      for (size_t kv = 0; kv < kept.size(); ++kv) {
        std::vector<int64_t> there;
        for (int64_t j = 0; j < seen; ++j)
          if (kept[kv][static_cast<size_t>(j)]) there.push_back(j);
        auto weight = [&](int64_t j) {  // of the two heads that read a key
          double sum = 0;
          for (size_t h = 2 * kv; h < 2 * kv + 2; ++h)
            for (int64_t i = 0; i < seen; ++i) sum += w[h][static_cast<size_t>(i)][static_cast<size_t>(j)] / 2;
          return sum;
        };
        std::vector<int64_t> ranked = there;
        auto rank = [&](int64_t j) { return j < 2 || j >= seen - recent ? 1e9 : weight(j); };
        std::stable_sort(ranked.begin(), ranked.end(), [&](int64_t a, int64_t b) { return rank(a) > rank(b); });
        for (size_t n = 10; n < ranked.size(); ++n) kept[kv][static_cast<size_t>(ranked[n])] = false;
        for (size_t n = 0; n + 1 < there.size(); ++n) {
          const int64_t j = there[n];
          if (kept[kv][static_cast<size_t>(j)]) continue;
          const std::vector<int64_t> next(there.begin() + static_cast<std::ptrdiff_t>(n) + 1,
                                          there.begin() + static_cast<std::ptrdiff_t>(std::min(there.size(), n + 4)));
          double mean = 0;
          for (int64_t t : next) mean += weight(t) / static_cast<double>(next.size());
          const bool merges = draw(static_cast<uint64_t>(seed), layer, kv, j) < std::min(1.0, weight(j) / mean);
          ++(merges ? merged : lost);
          const Row from = naive.values[kv][static_cast<size_t>(j)];
          for (int64_t t : next)
            for (size_t c = 0; merges && c < from.size(); ++c)
              naive.values[kv][static_cast<size_t>(t)][c] += from[c] / 3;
        }
      }
    };
    const std::vector<Row> wanted = naive.logits(ids);
    EXPECT_GT(merged, 20);
    EXPECT_GT(lost, 5);
    Context context(2);
    Session session =
        open(model, fmt::format("cam:budget=10,stride=8,sinks=2,merge=3,recent={},seed={}", recent, seed));
    results.push_back(test::prompt_then_decode(session, ids, 7, context));
    test::expect_near(results.back(), wanted);
  }
  EXPECT_NE(results[0], results[1]);
  EXPECT_NE(results[0], results[2]);
}

}  // namespace
}  // namespace attend
