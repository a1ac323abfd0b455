// Expected attention in a model against its definition in plain loops.
#include <numeric>

#include "lm/follow_rule.h"
#include "support/expect_error.h"

namespace attend {
namespace {

using test::Kept;
using test::Keys;
using test::NaiveModel;
using test::Row;
using test::SmallModel;
using test::Weights;

constexpr int64_t kBudget = 10, kStride = 8, kSinks = 2, kRecent = 1, kAhead = 20, kGroup = 2;
constexpr double kEpsilon = 0.01;

double dot(const Row& x, const Row& y) {
  return std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
}

// Element pairs of a small model of this kind.
size_t first_of(bool halves, size_t pair) {
  return halves ? pair : 2 * pair;
}
size_t second_of(bool halves, size_t pair, size_t d) {
  return halves ? pair + d / 2 : 2 * pair + 1;
}

// The mean of the rotations to positions [seen, seen + kAhead), as a matrix.
std::vector<Row> mean_rotation(int64_t seen, size_t d, bool halves) {
  std::vector<Row> turn(d, Row(d, 0.0));
  for (size_t p = 0; p < d / 2; ++p)
    for (int64_t f = 0; f < kAhead; ++f) {
      const double angle =
          static_cast<double>(seen + f) * std::pow(10000.0, -2.0 * static_cast<double>(p) / static_cast<double>(d));
      const size_t a = first_of(halves, p), b = second_of(halves, p, d);
      turn[a][a] += std::cos(angle) / kAhead, turn[a][b] -= std::sin(angle) / kAhead;
      turn[b][a] += std::sin(angle) / kAhead, turn[b][b] += std::cos(angle) / kAhead;
    }
  return turn;
}

// E(exp(q.k / sqrt(d))) for normal q of the mean and covariance of the first `seen` queries, turned.
double expected_weight(const std::vector<Row>& queries, int64_t seen, const std::vector<Row>& turn, const Row& key) {
  const size_t d = key.size();
  // (T q).k = q.(T^t k)
  Row back(d, 0.0);
  for (size_t a = 0; a < d; ++a)
    for (size_t b = 0; b < d; ++b) back[b] += turn[a][b] * key[a];
  double mean = 0, square = 0;
  const double count = static_cast<double>(seen - kSinks);
  for (int64_t i = kSinks; i < seen; ++i) {
    const double s = dot(queries[static_cast<size_t>(i)], back);
    mean += s / count, square += s * s / count;
  }
  return std::exp(mean / std::sqrt(static_cast<double>(d)) + (square - mean * mean) / static_cast<double>(d) / 2);
}

void follow(const SmallModel& small) {
  const std::string bytes = small.bytes();
  const bool halves = small.architecture == "gemma3";
  NaiveModel naive(small, bytes);
  naive.evict = [&](int64_t layer, int64_t seen, const Weights&, const Keys& keys, Kept& kept) {
    if (halves && layer % 6 != 5) return;
    if (seen % kStride != 0 && seen != test::kRulePrompt) return;
    for (size_t kv = 0; kv < kept.size(); ++kv) {
      const std::vector<Row> turn = mean_rotation(seen, keys[kv][0].size(), halves);
      std::vector<int64_t> held;
      for (int64_t j = 0; j < seen; ++j)
        if (kept[kv][static_cast<size_t>(j)]) held.push_back(j);
      std::vector<double> score(static_cast<size_t>(seen), kEpsilon);
      for (size_t h = kv * kGroup; h < (kv + 1) * kGroup; ++h) {
        std::vector<double> weight(score.size(), 0.0);
        for (int64_t j : held)
          if (j >= kSinks)
            weight[static_cast<size_t>(j)] =
                expected_weight(naive.queries[h], seen, turn, keys[kv][static_cast<size_t>(j)]);
        const double total = std::accumulate(weight.begin(), weight.end(), 0.0);
        for (size_t j = 0; j < score.size(); ++j) score[j] += weight[j] / total / kGroup;
      }
      for (int64_t j : held) {
        const Row& value = naive.values[kv][static_cast<size_t>(j)];
        score[static_cast<size_t>(j)] *= std::sqrt(dot(value, value));
      }
      auto always = [&](int64_t j) { return j < kSinks || j >= seen - kRecent; };
      std::sort(held.begin(), held.end(), [&](int64_t a, int64_t b) {
        if (always(a) != always(b)) return always(a);
        return score[static_cast<size_t>(a)] > score[static_cast<size_t>(b)];
      });
      for (size_t n = kBudget; n < held.size(); ++n) kept[kv][static_cast<size_t>(held[n])] = false;
    }
  };
  const std::vector<int32_t> ids = test::some_ids(45);
  const std::vector<Row> wanted = naive.logits(ids);
  const auto model = test::load(small);
  Context context(2);
  Session session =
      test::open(model, fmt::format("expected-attention:budget={},stride={},sinks={},recent={},ahead={},epsilon={}",
                                    kBudget, kStride, kSinks, kRecent, kAhead, kEpsilon));
  test::expect_near(test::prompt_then_decode(session, ids, 7, context), wanted);
}

TEST(ExpectedAttention, FollowsItsRule) {
  follow(SmallModel{});
}

TEST(ExpectedAttention, FollowsItsRuleWhereHeadsAreNormedAndHalvesTurn) {
  SmallModel small;
  small.architecture = "gemma3";
  small.layers = 6;
  follow(small);
}

TEST(ExpectedAttention, RefusesMechanismsThatTurnQueriesThemselves) {
  const auto model = test::load(SmallModel{});
  test::expect_error(ErrorKind::kUnsupported, "which streaming replaces",
                     [&] { test::open(model, "streaming + expected-attention"); });
}

}  // namespace
}  // namespace attend
