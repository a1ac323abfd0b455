#pragma once
// What the tests of limits share: random arrays, and references called like the mechanisms.
#include <string>

#include "attend/tensor/operator.h"
#include "exact/call.h"

namespace attend::test {

inline std::vector<float> normals(int64_t count, uint64_t seed, float deviation = 1) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> x(static_cast<size_t>(count));
  for (float& e : x) e = normal(random);
  return x;
}

inline double largest_difference(const std::vector<float>& x, const std::vector<float>& y) {
  double most = x.size() == y.size() ? 0 : INFINITY;
  for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
    const double away = std::abs(static_cast<double>(x[i]) - static_cast<double>(y[i]));
    if (!(away <= most)) most = away;
  }
  return most;
}

// A call whose values are the unit vectors: its output is the matrix of weights.
inline SmallCall weights_call(int64_t heads, int64_t queries, int64_t keys, int64_t width, uint64_t seed = 1) {
  SmallCall call(1, heads, heads, queries, keys, width, keys, seed);
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t j = 0; j < keys; ++j)
      for (int64_t c = 0; c < keys; ++c) call.v[static_cast<size_t>((h * keys + j) * keys + c)] = j == c;
  return call;
}

// out of a reference for a call, with further ports.
inline std::vector<double> reference_out(const Operator& reference, SmallCall& call, Tensors more = {}) {
  std::vector<double> out(call.out.size());
  const Qkv in = call.in();
  more.insert({{"q", in.q}, {"k", in.k}, {"v", in.v}});
  Context context(1);
  reference.forward(more, {{"out", dense_view(out.data(), DType::kF64, {call.b, call.hq, call.tq, call.dv})}},
                    Form::kAny, context);
  return out;
}

class EachIsa : public testing::TestWithParam<Isa> {
 protected:
  Context context() const { return context_for(GetParam(), 2); }
};

#define ATTEND_EACH_ISA(suite)                                                    \
  INSTANTIATE_TEST_SUITE_P(Usable, suite, testing::ValuesIn(test::usable_isas()), \
                           [](const auto& usable) { return std::string(name_of(usable.param)); })

}  // namespace attend::test
