// Sums of weights over queries against plain loops in double, and the bits that they must keep.
#include "attend/exact/weight_sums.h"

#include <cmath>

#include "exact/call.h"
#include "support/expect_error.h"

namespace attend {
namespace {

using test::SmallCall;

std::vector<float*> rows_of(std::vector<float>& sums, int64_t rows) {
  std::vector<float*> places;
  for (int64_t r = 0; r < rows; ++r) places.push_back(sums.data() + r * static_cast<int64_t>(sums.size()) / rows);
  return places;
}

View lse_of(SmallCall& call) {
  return dense_view(call.lse.data(), DType::kF32, {call.b, call.hq, call.tq});
}

// Queries [first, first + count) of an array whose axis `axis` they are.
View queries_of(View view, int axis, int64_t first, int64_t count) {
  view.data = view.as<float>() + first * view.stride[axis];
  view.shape[axis] = count;
  return view;
}

std::vector<float> weight_sums(SmallCall& call, const SoftmaxOptions& options, Context& context) {
  call.run(options, context);
  std::vector<float> sums(static_cast<size_t>(call.b * call.hq * call.tk), 0.0f);
  add_weight_sums(call.in(), options, lse_of(call), rows_of(sums, call.b * call.hq), context);
  return sums;
}

// The definition, for queries that end with the keys.
std::vector<double> expected(const SmallCall& c, const SoftmaxOptions& o) {
  std::vector<double> sums(static_cast<size_t>(c.b * c.hq * c.tk), 0.0);
  for (int64_t b = 0; b < c.b; ++b)
    for (int64_t h = 0; h < c.hq; ++h)
      for (int64_t i = 0; i < c.tq; ++i) {
        const int64_t position = i + c.tk - c.tq;
        std::vector<double> weight(static_cast<size_t>(c.tk), 0.0);
        double total = 0;
        for (int64_t j = 0; j < c.tk; ++j) {
          if (o.causal && j > position) continue;
          if (o.window > 0 && position - j >= o.window && j >= o.sinks) continue;
          double dot = 0;
          for (int64_t e = 0; e < c.d; ++e)
            dot += static_cast<double>(c.q[static_cast<size_t>(((b * c.hq + h) * c.tq + i) * c.d + e)]) *
                   static_cast<double>(
                       c.k[static_cast<size_t>(((b * c.hkv + h / (c.hq / c.hkv)) * c.tk + j) * c.d + e)]);
          weight[static_cast<size_t>(j)] = std::exp(dot / std::sqrt(static_cast<double>(c.d)));
          total += weight[static_cast<size_t>(j)];
        }
        for (int64_t j = 0; j < c.tk && total > 0; ++j)
          sums[static_cast<size_t>((b * c.hq + h) * c.tk + j)] += weight[static_cast<size_t>(j)] / total;
      }
  return sums;
}

TEST(WeightSums, AreThoseOfTheDefinition) {
  for (Isa isa : test::usable_isas())
    for (const SoftmaxOptions& options :
         {SoftmaxOptions{}, SoftmaxOptions{.causal = true}, SoftmaxOptions{.causal = true, .window = 70, .sinks = 3}})
      for (int64_t queries : {int64_t{1}, int64_t{37}, int64_t{700}}) {
        SCOPED_TRACE(testing::Message() << name_of(isa) << " " << queries << " queries, window " << options.window);
        SmallCall call(2, 6, 2, queries, 700, 40, 24);
        Context context = test::context_for(isa, 2);
        const std::vector<float> sums = weight_sums(call, options, context);
        const std::vector<double> wanted = expected(call, options);
        for (size_t j = 0; j < sums.size(); ++j)
          ASSERT_NEAR(static_cast<double>(sums[j]), wanted[j], 1e-4 * wanted[j] + 1e-6) << j;
      }
}

TEST(WeightSums, KeepTheirBitsForAnyThreadsAndGroupsOfQueries) {
  SmallCall call(1, 4, 2, 301, 1100, 32, 16);
  Context one(1), three(3);
  const SoftmaxOptions options{.causal = true};
  const std::vector<float> whole = weight_sums(call, options, one);
  EXPECT_EQ(whole, weight_sums(call, options, three));

  std::vector<float> parts(whole.size(), 0.0f);
  for (int64_t first = 0; first < call.tq;) {
    const int64_t count = std::min<int64_t>(first % 3 == 0 ? 1 : 50, call.tq - first);
    Qkv in = call.in();
    std::vector<int32_t> positions;
    for (int64_t i = first; i < first + count; ++i) positions.push_back(static_cast<int32_t>(i + call.tk - call.tq));
    in.q = queries_of(in.q, 2, first, count);
    in.q_positions = dense_view(positions.data(), DType::kI32, {1, count});
    add_weight_sums(in, options, queries_of(lse_of(call), 2, first, count), rows_of(parts, call.hq), one);
    first += count;
  }
  EXPECT_EQ(whole, parts);
}

TEST(WeightSums, KeysThatNobodySeesGetNone) {
  SmallCall call(1, 1, 1, 5, 600, 16, 16);
  std::fill_n(call.k.begin(), 16 * 500, NAN);
  Context context(1);
  const std::vector<float> sums = weight_sums(call, {.causal = true, .window = 20}, context);
  double total = 0;
  for (size_t j = 0; j < 600; ++j) {
    if (j < 576) {
      EXPECT_EQ(sums[j], 0.0f) << j;
    }
    total += static_cast<double>(sums[j]);
  }
  EXPECT_NEAR(total, 5.0, 1e-5);
}

TEST(WeightSums, RefuseWhatDoesNotFit) {
  SmallCall call(1, 2, 1, 3, 10, 16, 16);
  Context context(1);
  call.run({}, context);
  std::vector<float> sums(20);
  test::expect_error(ErrorKind::kArgument, "[weight_sums] sums = 1, must be 2 places, one a query head", [&] {
    add_weight_sums(call.in(), {}, lse_of(call), rows_of(sums, 1), context);
  });
  test::expect_error(ErrorKind::kArgument, "[weight_sums] lse", [&] {
    add_weight_sums(call.in(), {}, dense_view(call.lse.data(), DType::kF32, {1, 3, 2}), rows_of(sums, 2), context);
  });
}

}  // namespace
}  // namespace attend
