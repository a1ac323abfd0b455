// Profiles of heads, against the weights of a forward in double precision.
#include "attend/study/fit_fastgen.h"

#include <cmath>

#include "support/expect_error.h"
#include "support/naive_model.h"
#include "support/small_session.h"

namespace attend {
namespace {

using test::expect_error;
using test::load;
using test::SmallModel;
using test::some_ids;
using test::Weights;

constexpr int64_t kTokens = 60;

std::vector<int32_t> ids_with_marks() {
  std::vector<int32_t> ids = some_ids(kTokens);
  ids[0] = 1, ids[7] = 3 + '.', ids[12] = 3 + ',', ids[20] = 2;
  return ids;
}

// The level of a head from its weights, and how near to the threshold any level came.
int level_of(const Weights& w, size_t kv, const std::vector<int32_t>& ids, const FastGenOptions& options,
             double& nearest) {
  const size_t n = ids.size();
  auto weight = [&](size_t i, size_t j) { return (w[2 * kv][i][j] + w[2 * kv + 1][i][j]) / 2; };
  std::vector<std::pair<double, size_t>> sums;
  for (size_t j = 0; j < n; ++j) {
    double sum = 0;
    for (size_t i = 0; i < n; ++i) sum += weight(i, j);
    sums.emplace_back(sum, j);
  }
  std::sort(sums.rbegin(), sums.rend());
  std::vector<bool> kept(n, false);
  for (int level = 0; level < 4; ++level) {
    for (size_t j = 0; j < n; ++j) {
      if (level == 0 && ids[j] < 3) kept[j] = true;
      if (level == 1 && (ids[j] == 3 + '.' || ids[j] == 3 + ',')) kept[j] = true;
    }
    if (level == 2)
      for (size_t r = 0; r < static_cast<size_t>(std::llround(options.frequent * static_cast<double>(n))); ++r)
        kept[sums[r].second] = true;
    const size_t window =
        level == 3 ? static_cast<size_t>(std::llround(options.local * static_cast<double>(n))) : size_t{0};
    double mean = 0;
    for (size_t i = 0; i < n; ++i)
      for (size_t j = 0; j <= i; ++j)
        if (kept[j] || i - j < window) mean += weight(i, j) / static_cast<double>(n);
    nearest = std::min(nearest, std::fabs(mean - options.recovery));
    if (mean >= options.recovery) return level;
  }
  return 4;
}

TEST(FitFastGen, FindsTheLevelsThatTheWeightsSay) {
  const SmallModel small;
  const auto model = load(small);
  std::vector<int32_t> ids = ids_with_marks();
  for (int32_t& id : ids)  // no other punctuation
    if (id > 30 && id < 131 && id != 3 + '.' && id != 3 + ',') id = 200;
  const std::string bytes = small.bytes();
  test::NaiveModel naive(small, bytes);
  std::vector<Weights> layers;
  naive.evict = [&](int64_t, int64_t seen, const Weights& w, const auto&, auto&) {
    if (seen == kTokens) layers.push_back(w);
  };
  naive.logits(ids);
  ASSERT_EQ(layers.size(), 2u);
  Context context(2);
  std::vector<int> found(5, 0);
  for (double recovery : {0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99})
    for (double local : {0.1, 0.5}) {
      const FastGenOptions options{.recovery = recovery, .local = local, .frequent = 0.3};
      const HeadGates gates = fit_fastgen(model, ids, options, context);
      for (int layer = 0; layer < 2; ++layer)
        for (int kv = 0; kv < 2; ++kv) {
          double nearest = 1;
          const int level =
              level_of(layers[static_cast<size_t>(layer)], static_cast<size_t>(kv), ids, options, nearest);
          ASSERT_GT(nearest, 1e-5) << "choose another threshold";
          EXPECT_EQ(gates.gate(layer, kv), level / 4.0) << recovery << " " << local;
          ++found[static_cast<size_t>(level)];
        }
    }
  for (size_t level : {0u, 2u, 3u, 4u}) EXPECT_GT(found[level], 0) << level;
}

TEST(FitFastGen, ReachesItsLimits) {
  const auto model = load(SmallModel{});
  Context context(1);
  const std::vector<int32_t> ids = ids_with_marks();
  EXPECT_EQ(fit_fastgen(model, ids, {.recovery = 0}, context).gates, std::vector<double>(4, 0));
  EXPECT_EQ(fit_fastgen(model, ids, {.recovery = 0.9999, .local = 0, .frequent = 0}, context).gates,
            std::vector<double>(4, 1));
  EXPECT_EQ(fit_fastgen(model, ids, {.recovery = 0.9999, .local = 0, .frequent = 1}, context).gates,
            std::vector<double>(4, 0.5));
  EXPECT_EQ(fit_fastgen(model, ids, {.recovery = 0.9999, .local = 1, .frequent = 0}, context).gates,
            std::vector<double>(4, 0.75));
  Context three(3);
  EXPECT_EQ(fit_fastgen(model, ids, {.recovery = 0.7}, three).gates,
            fit_fastgen(model, ids, {.recovery = 0.7}, context).gates);
}

TEST(FitFastGen, LeavesLocalLayersOut) {
  SmallModel small;
  small.architecture = "gemma3";
  small.layers = 6;
  Context context(1);
  const HeadGates gates = fit_fastgen(load(small), ids_with_marks(), {}, context);
  for (int layer = 0; layer < 6; ++layer) EXPECT_EQ(gates.gate(layer, 1) == HeadGates::kNone, layer != 5);
}

TEST(FitFastGen, RefusesWhatDoesNotFit) {
  const auto model = load(SmallModel{});
  Context context(1);
  expect_error(ErrorKind::kArgument, "recovery", [&] { fit_fastgen(model, some_ids(9), {.recovery = 2}, context); });
  expect_error(ErrorKind::kArgument, "tokens", [&] { fit_fastgen(model, {}, {}, context); });
  expect_error(ErrorKind::kArgument, "tokens", [&] { fit_fastgen(model, some_ids(401), {}, context); });
  expect_error(ErrorKind::kArgument, "token id", [&] { fit_fastgen(model, std::vector<int32_t>{-1}, {}, context); });
}

}  // namespace
}  // namespace attend
