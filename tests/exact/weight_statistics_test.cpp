// Statistics of weights over queries against plain loops in double, and the bits that they must keep.
#include "attend/exact/weight_statistics.h"
#include "attend/tensor/registry.h"
#include "attend/tensor/spec.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "exact/call.h"
#include "support/expect_error.h"

namespace attend {
namespace {

using test::SmallCall;

View lse_of(SmallCall& call) {
  return dense_view(call.lse.data(), DType::kF32, {call.b, call.hq, call.tq});
}

// Queries [first, first + count) of an array whose axis `axis` they are.
View queries_of(View view, int axis, int64_t first, int64_t count) {
  view.data = view.as<float>() + first * view.stride[axis];
  view.shape[axis] = count;
  return view;
}

constexpr float kAttended = 1.5f;

// All statistics of a call, for each query head one after another.
struct Gathered {
  std::vector<float> sum, largest;
  std::vector<int32_t> times, newest;
  std::vector<KeyStatistics> heads;

  Gathered(int64_t rows, int64_t keys)
      : sum(static_cast<size_t>(rows * keys), 0.0f),
        largest(sum.size(), 0.0f),
        times(sum.size(), 0),
        newest(sum.size(), -1) {
    for (int64_t r = 0; r < rows; ++r)
      heads.push_back(
          {sum.data() + r * keys, largest.data() + r * keys, times.data() + r * keys, newest.data() + r * keys});
  }
  WeightPlaces places() const { return {heads, kAttended}; }
  bool operator==(const Gathered& other) const {
    return sum == other.sum && largest == other.largest && times == other.times && newest == other.newest;
  }
};

Gathered statistics(SmallCall& call, const SoftmaxOptions& options, Context& context) {
  call.run(options, context);
  Gathered gathered(call.b * call.hq, call.tk);
  add_weights(call.in(), options, lse_of(call), gathered.places(), context);
  return gathered;
}

// The weights by definition, [b, hq, tq, tk], for queries that end with the keys; -1 where a key is hidden.
std::vector<double> weights_of(const SmallCall& c, const SoftmaxOptions& o) {
  std::vector<double> weights;
  for (int64_t b = 0; b < c.b; ++b)
    for (int64_t h = 0; h < c.hq; ++h)
      for (int64_t i = 0; i < c.tq; ++i) {
        const int64_t position = i + c.tk - c.tq;
        std::vector<double> row(static_cast<size_t>(c.tk), -1.0);
        double total = 0;
        for (int64_t j = 0; j < c.tk; ++j) {
          if (o.causal && j > position) continue;
          if (o.window > 0 && position - j >= o.window && j >= o.sinks) continue;
          double dot = 0;
          for (int64_t e = 0; e < c.d; ++e)
            dot +=
                static_cast<double>(c.q[static_cast<size_t>(((b * c.hq + h) * c.tq + i) * c.d + e)]) *
                static_cast<double>(c.k[static_cast<size_t>(((b * c.hkv + h / (c.hq / c.hkv)) * c.tk + j) * c.d + e)]);
          row[static_cast<size_t>(j)] = std::exp(dot / std::sqrt(static_cast<double>(c.d)));
          total += row[static_cast<size_t>(j)];
        }
        for (double w : row) weights.push_back(w < 0 ? w : w / total);
      }
  return weights;
}

TEST(WeightStatistics, AreThoseOfTheDefinition) {
  for (Isa isa : test::usable_isas())
    for (const SoftmaxOptions& options :
         {SoftmaxOptions{}, SoftmaxOptions{.causal = true}, SoftmaxOptions{.causal = true, .window = 70, .sinks = 3}})
      for (int64_t queries : {int64_t{1}, int64_t{37}, int64_t{700}}) {
        SCOPED_TRACE(testing::Message() << name_of(isa) << " " << queries << " queries, window " << options.window);
        SmallCall call(2, 6, 2, queries, 700, 40, 24);
        Context context = test::context_for(isa, 2);
        const Gathered got = statistics(call, options, context);
        const std::vector<double> weights = weights_of(call, options);
        std::vector<double> mean;  // of what a query sees, times kAttended
        for (auto w = weights.begin(); w != weights.end(); w += call.tk)
          mean.push_back(static_cast<double>(kAttended) /
                         static_cast<double>(std::count_if(w, w + call.tk, [](double x) { return x >= 0; })));
        for (int64_t row = 0; row < call.b * call.hq; ++row)
          for (int64_t j = 0; j < call.tk; ++j) {
            double sum = 0, largest = 0;
            // Counts of weights at the threshold may fall either way: how many surely are above, how many may be.
            int surely = 0, perhaps = 0, newest = -1, newest_perhaps = -1;
            for (int64_t i = 0; i < queries; ++i) {
              const double* w = weights.data() + (row * queries + i) * call.tk;
              if (w[j] < 0) continue;
              const double least = mean[static_cast<size_t>(row * queries + i)];
              const int position = static_cast<int>(i + call.tk - queries);
              sum += w[j];
              largest = std::max(largest, w[j]);
              if (w[j] > least * (1 + 1e-4)) ++surely, newest = position;
              if (w[j] > least * (1 - 1e-4)) ++perhaps, newest_perhaps = position;
            }
            const size_t at = static_cast<size_t>(row * call.tk + j);
            ASSERT_NEAR(static_cast<double>(got.sum[at]), sum, 1e-4 * sum + 1e-6) << j;
            ASSERT_NEAR(static_cast<double>(got.largest[at]), largest, 1e-4 * largest + 1e-6) << j;
            ASSERT_GE(got.times[at], surely) << j;
            ASSERT_LE(got.times[at], perhaps) << j;
            ASSERT_GE(got.newest[at], newest) << j;
            ASSERT_LE(got.newest[at], newest_perhaps) << j;
          }
      }
}

// Keys of which only some are kept, as a store gives them.
struct KeptKeys {
  std::vector<int32_t> positions;
  std::vector<float> k, v;
  std::vector<KeyRun> runs;
  std::vector<KeyView> views;

  explicit KeptKeys(const SmallCall& c) {
    for (int32_t j = 0; j < c.tk; ++j)
      if (j % 7 < 3 || j > c.tk - 40) positions.push_back(j);
    const int64_t count = static_cast<int64_t>(positions.size());
    for (int64_t h = 0; h < c.hkv; ++h)
      for (int32_t j : positions) {
        const float *key = c.k.data() + (h * c.tk + j) * c.d, *value = c.v.data() + (h * c.tk + j) * c.dv;
        k.insert(k.end(), key, key + c.d);
        v.insert(v.end(), value, value + c.dv);
      }
    for (int64_t h = 0; h < c.hkv; ++h)
      runs.push_back({k.data() + h * count * c.d, v.data() + h * count * c.dv, c.d, c.dv, 0, count});
    for (const KeyRun& run : runs) views.push_back({.runs = {&run, 1}, .position = positions});
  }
};

TEST(WeightStatistics, HaveTheSameBitsWhereKeysAreReadOnce) {
  for (Isa isa : test::usable_isas())
    for (int64_t queries : {1, 5, 40})
      for (int threads : {1, 3}) {
        SCOPED_TRACE(testing::Message() << name_of(isa) << " " << queries << " queries, " << threads << " threads");
        SmallCall call(1, 6, 2, queries, 1300, 40, 24);
        const KeptKeys kept(call);
        const int64_t count = static_cast<int64_t>(kept.positions.size());
        std::vector<int32_t> positions(static_cast<size_t>(queries));
        for (int64_t i = 0; i < queries; ++i)
          positions[static_cast<size_t>(i)] = static_cast<int32_t>(call.tk - queries + i);
        const Qkv in{.q = call.in().q,
                     .keys = kept.views,
                     .dv = call.dv,
                     .q_positions = dense_view(positions.data(), DType::kI32, {1, queries})};
        const SoftmaxOptions options{.causal = true, .window = 900, .sinks = 2, .softcap = 9};
        Context context = test::context_for(isa, threads);
        Gathered twice(call.hq, count), once(call.hq, count);
        softmax_attention(in, options, call.outputs(), context);
        add_weights(in, options, lse_of(call), twice.places(), context);
        const std::vector<float> out = call.out, lse = call.lse;
        attend_and_add_weights(in, options, call.outputs(), once.places(), context);
        EXPECT_EQ(out, call.out);
        EXPECT_EQ(lse, call.lse);
        EXPECT_TRUE(once == twice);
        EXPECT_NEAR(std::accumulate(once.sum.begin(), once.sum.end(), 0.0), static_cast<double>(call.hq * queries),
                    1e-3);
      }
}

TEST(WeightStatistics, KeepTheirBitsForAnyThreadsAndGroupsOfQueries) {
  SmallCall call(1, 4, 2, 301, 1100, 32, 16);
  Context one(1), three(3);
  const SoftmaxOptions options{.causal = true};
  const Gathered whole = statistics(call, options, one);
  EXPECT_TRUE(whole == statistics(call, options, three));

  Gathered parts(call.hq, call.tk);
  for (int64_t first = 0; first < call.tq;) {
    const int64_t count = std::min<int64_t>(first % 3 == 0 ? 1 : 50, call.tq - first);
    Qkv in = call.in();
    std::vector<int32_t> positions;
    for (int64_t i = first; i < first + count; ++i) positions.push_back(static_cast<int32_t>(i + call.tk - call.tq));
    in.q = queries_of(in.q, 2, first, count);
    in.q_positions = dense_view(positions.data(), DType::kI32, {1, count});
    add_weights(in, options, queries_of(lse_of(call), 2, first, count), parts.places(), one);
    first += count;
  }
  EXPECT_TRUE(whole == parts);
}

TEST(WeightStatistics, KeysThatNobodySeesGetNone) {
  SmallCall call(1, 1, 1, 5, 600, 16, 16);
  std::fill_n(call.k.begin(), 16 * 500, NAN);
  Context context(1);
  const std::vector<float> sums = statistics(call, {.causal = true, .window = 20}, context).sum;
  double total = 0;
  for (size_t j = 0; j < 600; ++j) {
    if (j < 576) {
      EXPECT_EQ(sums[j], 0.0f) << j;
    }
    total += static_cast<double>(sums[j]);
  }
  EXPECT_NEAR(total, 5.0, 1e-5);
}

// With a value of its own for each key, outputs are the weights: whatever says that it gives weights gives these.
TEST(WeightStatistics, AreThoseOfEveryMechanismThatGivesThem) {
  constexpr int64_t kHeads = 4, kKvHeads = 2, kQueries = 50, kKeys = 60, kD = 32;
  std::vector<std::string> specs = {"streaming:causal=true,window=12,sinks=3", "dca:context=24,chunk=9",
                                    "rope:causal=true,window=12,sinks=3,positions=cache"};
  for (const Entry* entry : registry().entries())
    if (entry->kind == Kind::kMechanism && std::all_of(entry->in.begin(), entry->in.end(), [](const Port& port) {
          return !port.required || port.name == "q" || port.name == "k" || port.name == "v";
        }))
      specs.emplace_back(entry->name);
  std::mt19937 random(8);
  std::normal_distribution<float> normal;
  std::vector<float> q(kHeads * kQueries * kD), k(kKvHeads * kKeys * kD), v(kKvHeads * kKeys * kKeys),
      out(kHeads * kQueries * kKeys), lse(kHeads * kQueries);
  for (float& x : q) x = normal(random);
  for (float& x : k) x = normal(random);
  for (int64_t h = 0; h < kKvHeads; ++h)
    for (int64_t j = 0; j < kKeys; ++j) v[static_cast<size_t>((h * kKeys + j) * kKeys + j)] = 1;
  const Tensors in = {{"q", dense_view(q.data(), DType::kF32, {1, kHeads, kQueries, kD})},
                      {"k", dense_view(k.data(), DType::kF32, {1, kKvHeads, kKeys, kD})},
                      {"v", dense_view(v.data(), DType::kF32, {1, kKvHeads, kKeys, kKeys})}};
  const Tensors results = {{"out", dense_view(out.data(), DType::kF32, {1, kHeads, kQueries, kKeys})},
                           {"lse", dense_view(lse.data(), DType::kF32, {1, kHeads, kQueries})}};
  int checked = 0;
  for (const std::string& spec : specs) {
    SCOPED_TRACE(spec);
    const auto mechanism = registry().make<Operator>(parse_specs(spec)[0]);
    if (!mechanism->gives_weights()) continue;
    Context context(2);
    std::vector<std::vector<float>> sums(kHeads, std::vector<float>(kKeys));
    std::vector<KeyStatistics> places;
    for (auto& head : sums) places.push_back({.sum = head.data()});
    mechanism->forward_and_add_weights(in, results, {places}, context);
    for (size_t h = 0; h < kHeads; ++h)
      for (size_t j = 0; j < kKeys; ++j) {
        double wanted = 0;
        for (size_t i = 0; i < kQueries; ++i) wanted += static_cast<double>(out[(h * kQueries + i) * kKeys + j]);
        ASSERT_NEAR(sums[h][j], wanted, 1e-4) << "head " << h << " key " << j;
      }
    ++checked;
  }
  EXPECT_GE(checked, 6);
}

TEST(WeightStatistics, RefuseWhatDoesNotFit) {
  SmallCall call(1, 2, 1, 3, 10, 16, 16);
  Context context(1);
  call.run({}, context);
  const Gathered one(1, 10), two(2, 10);
  auto add = [&](const View& lse, const WeightPlaces& to) { add_weights(call.in(), {}, lse, to, context); };
  test::expect_error(ErrorKind::kArgument, "[add_weights] places = 1, must be 2 places, one a query head",
                     [&] { add(lse_of(call), one.places()); });
  test::expect_error(ErrorKind::kArgument, "[add_weights] lse", [&] {
    add(dense_view(call.lse.data(), DType::kF32, {1, 3, 2}), two.places());
  });
  test::expect_error(ErrorKind::kArgument, "must be at least 0", [&] { add(lse_of(call), {two.heads, -1}); });
  const KeyStatistics uneven[] = {two.heads[0], {.sum = two.heads[1].sum}};
  test::expect_error(ErrorKind::kArgument, "the same of all heads", [&] { add(lse_of(call), {uneven}); });
  test::expect_error(ErrorKind::kArgument, "[add_weights] lse", [&] {
    attend_and_add_weights(call.in(), {}, {.out = call.outputs().out}, two.places(), context);
  });
}

}  // namespace
}  // namespace attend
