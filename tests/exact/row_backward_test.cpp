// Backward passes by rows where they must give what softmax attention's gives, and what they refuse.
#include <sys/resource.h>

#include <cmath>

#include "attend/exact/coca.h"
#include "attend/exact/cope.h"
#include "attend/exact/dcmha.h"
#include "attend/exact/entmax.h"
#include "attend/exact/hsa.h"
#include "attend/exact/lla.h"
#include "attend/exact/mla.h"
#include "attend/exact/probabilistic.h"
#include "attend/exact/relative.h"
#include "attend/exact/relu.h"
#include "attend/exact/reversed.h"
#include "attend/exact/sinkhorn.h"
#include "attend/exact/urpe.h"
#include "attend/reference/hsa.h"
#include "attend/tensor/error.h"
#include "exact/call.h"

namespace attend {
namespace {

std::vector<float> random_floats(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> x(static_cast<size_t>(count));
  for (float& e : x) e = normal(random);
  return x;
}

// Gradients of q, k and v, NaN before they are written.
struct Gradients {
  std::vector<float> q, k, v;

  explicit Gradients(const test::SmallCall& call)
      : q(call.q.size(), NAN), k(call.k.size(), NAN), v(call.v.size(), NAN) {}
  View view(std::vector<float>& x, const View& like) { return dense_view(x.data(), DType::kF32, 4, like.shape); }
};

class RowBackward : public testing::TestWithParam<Isa> {
 protected:
  test::SmallCall call_{2, 4, 2, 70, 600, 16, 24};
  std::vector<float> d_out_ = random_floats(2 * 4 * 70 * 24, 7), d_lse_ = random_floats(2 * 4 * 70, 8);
  Context context_ = test::context_for(GetParam(), 2);

  AttnOutGrad loss() {
    return {dense_view(d_out_.data(), DType::kF32, {2, 4, 70, 24}), dense_view(d_lse_.data(), DType::kF32, {2, 4, 70})};
  }

  Gradients plain(bool causal) {
    softmax_attention(call_.in(), {.causal = causal}, call_.outputs(), context_);
    Gradients g(call_);
    const Qkv in = call_.in();
    softmax_attention_backward(in, {.causal = causal}, call_.outputs(), loss(),
                               {g.view(g.q, in.q), g.view(g.k, in.k), g.view(g.v, in.v)}, context_);
    return g;
  }

  // Both sum up to 600 terms of magnitude around 1 in f32, in different orders.
  static void expect_near(const Gradients& a, const Gradients& b) {
    for (const auto& [x, y] : {std::pair{&a.q, &b.q}, {&a.k, &b.k}, {&a.v, &b.v}}) {
      double most = 0;
      for (const float e : *y) most = std::max(most, std::abs(static_cast<double>(e)));
      for (size_t i = 0; i < x->size(); ++i) ASSERT_NEAR((*x)[i], (*y)[i], 600 * 0x1p-24 * most) << i;
    }
  }
};

TEST_P(RowBackward, RelativeWithATableOfZerosIsSoftmaxs) {
  for (const bool causal : {false, true}) {
    const Gradients want = plain(causal);
    Gradients got(call_);
    const Qkv in = call_.in();
    std::vector<float> zeros(31 * 24, 0.0f);
    relative_attention_backward(in,
                                {.keys = dense_view(zeros.data(), DType::kF32, {1, 31, 16}),
                                 .values = dense_view(zeros.data(), DType::kF32, {1, 31, 24})},
                                {.causal = causal}, loss(),
                                {.q = got.view(got.q, in.q), .k = got.view(got.k, in.k), .v = got.view(got.v, in.v)},
                                context_);
    expect_near(got, want);
  }
}

TEST_P(RowBackward, UrpeWithMultipliersOfOneIsSoftmaxs) {
  for (const bool causal : {false, true}) {
    const Gradients want = plain(causal);
    Gradients got(call_);
    const Qkv in = call_.in();
    std::vector<float> ones(31, 1.0f);
    urpe_attention_backward(in, dense_view(ones.data(), DType::kF32, {1, 31}), {}, {.causal = causal}, loss(),
                            {.q = got.view(got.q, in.q), .k = got.view(got.k, in.k), .v = got.view(got.v, in.v)},
                            context_);
    expect_near(got, want);
  }
}

// A shared table's gradient is the sum of those of equal tables, one a head.
TEST_P(RowBackward, ASharedTableGathersWhatHeadsWouldGet) {
  const Qkv in = call_.in();
  const std::vector<float> one = random_floats(31 * 16, 3);
  std::vector<float> four, shared = one;
  for (int h = 0; h < 4; ++h) four.insert(four.end(), one.begin(), one.end());
  std::vector<float> d_shared(one.size(), NAN), d_four(four.size(), NAN);
  auto run = [&](std::vector<float>& table, std::vector<float>& gradient, int64_t heads) {
    relative_attention_backward(in, {.keys = dense_view(table.data(), DType::kF32, {heads, 31, 16})}, {.causal = true},
                                loss(), {.relative_keys = dense_view(gradient.data(), DType::kF32, {heads, 31, 16})},
                                context_);
  };
  run(shared, d_shared, 1), run(four, d_four, 4);
  for (size_t i = 0; i < one.size(); ++i) {
    double sum = 0;
    for (size_t h = 0; h < 4; ++h) sum += static_cast<double>(d_four[h * one.size() + i]);
    ASSERT_EQ(d_shared[i], static_cast<float>(sum)) << i;
  }
}

// Axes of 1 gather what a bias of its own for every score would get; whatever the number of threads.
TEST_P(RowBackward, AxesOfOneOfABiasGatherWhatTheyRepeat) {
  const View out = loss().out;
  auto gradient = [&](const std::vector<float>& bias, const Shape& shape, int threads) {
    std::vector<float> x = bias, d(bias.size(), NAN);
    Qkv in = call_.in();
    in.bias = dense_view(x.data(), DType::kF32, 4, shape);
    Context context = test::context_for(GetParam(), threads);
    relu_attention_backward(in, {.causal = true}, out, {.bias = dense_view(d.data(), DType::kF32, 4, shape)}, context);
    return d;
  };
  const Shape full{2, 4, 70, 600};
  const std::vector<float> zeros(2 * 4 * 70 * 600, 0.0f), each = gradient(zeros, full, 2);
  for (const Shape& shape : {Shape{2, 4, 1, 600}, {1, 4, 70, 600}, {2, 1, 70, 1}, {1, 1, 1, 600}, {1, 1, 1, 1}}) {
    const std::vector<float> few(static_cast<size_t>(shape[0] * shape[1] * shape[2] * shape[3]), 0.0f),
        got = gradient(few, shape, 1);
    EXPECT_EQ(got, gradient(few, shape, 3));
    std::vector<double> want(few.size(), 0), magnitude(few.size(), 0);
    for (int64_t n = 0; n < static_cast<int64_t>(each.size()); ++n) {
      const int64_t index[] = {n / (4 * 70 * 600), n / (70 * 600) % 4, n / 600 % 70, n % 600};
      int64_t at = 0;
      for (int axis = 0; axis < 4; ++axis) at = at * shape[axis] + (shape[axis] == 1 ? 0 : index[axis]);
      want[static_cast<size_t>(at)] += static_cast<double>(each[static_cast<size_t>(n)]);
      magnitude[static_cast<size_t>(at)] += std::abs(static_cast<double>(each[static_cast<size_t>(n)]));
    }
    for (size_t i = 0; i < want.size(); ++i)
      ASSERT_NEAR(got[i], want[i], static_cast<double>(each.size() / want.size()) * 0x1p-24 * magnitude[i]) << i;
  }
}

// Values are unit vectors, so that out are the weights.
TEST_P(RowBackward, SparsemaxGivesKeysWithoutAWeightNothing) {
  constexpr int64_t kKeys = 12, kD = 4;
  std::vector<float> q = random_floats(kD, 1), k = random_floats(kKeys * kD, 2), v(kKeys * kKeys, 0.0f), out(kKeys),
                     d_out = random_floats(kKeys, 3), dk(k.size(), NAN), dv(v.size(), NAN);
  for (size_t j = 0; j < kKeys; ++j) v[j * kKeys + j] = 1;
  const Qkv in{.q = dense_view(q.data(), DType::kF32, {1, 1, 1, kD}),
               .k = dense_view(k.data(), DType::kF32, {1, 1, kKeys, kD}),
               .v = dense_view(v.data(), DType::kF32, {1, 1, kKeys, kKeys})};
  const EntmaxOptions options{.alpha = 2};
  const View one_row = dense_view(out.data(), DType::kF32, {1, 1, 1, kKeys});
  entmax_attention(in, options, one_row, context_);
  View loss = one_row;
  loss.data = d_out.data();
  entmax_attention_backward(
      in, options, loss,
      {.k = dense_view(dk.data(), DType::kF32, 4, in.k.shape), .v = dense_view(dv.data(), DType::kF32, 4, in.v.shape)},
      context_);
  int without = 0;
  for (size_t j = 0; j < kKeys; ++j) {
    without += out[j] == 0;
    for (size_t c = 0; c < kD; ++c) EXPECT_EQ(dk[j * kD + c] == 0, out[j] == 0) << j;
    for (size_t c = 0; c < kKeys; ++c) EXPECT_EQ(dv[j * kKeys + c], out[j] * d_out[c]) << j;
  }
  EXPECT_GT(without, 0);
  EXPECT_LT(without, kKeys - 1);
}

// All positions then add the same to the scores of a row.
TEST_P(RowBackward, CopeWithEqualEmbeddingsIsSoftmaxs) {
  const Qkv in = call_.in();
  softmax_attention(in, {.causal = true}, call_.outputs(), context_);
  Gradients want(call_), got(call_);
  softmax_attention_backward(in, {.causal = true}, call_.outputs(), {.out = loss().out},
                             {want.view(want.q, in.q), want.view(want.k, in.k), want.view(want.v, in.v)}, context_);
  std::vector<float> embeddings;
  const std::vector<float> one = random_floats(16, 6);
  for (int e = 0; e < 20; ++e) embeddings.insert(embeddings.end(), one.begin(), one.end());
  cope_attention_backward(
      in, dense_view(embeddings.data(), DType::kF32, {20, 16}), {}, {.out = loss().out},
      {.q = got.view(got.q, in.q), .k = got.view(got.k, in.k), .v = got.view(got.v, in.v), .embeddings = {}}, context_);
  expect_near(got, want);
}

TEST_P(RowBackward, DcmhaWithFactorsOfZeroIsSoftmaxs) {
  const Qkv in = call_.in();
  softmax_attention(in, {.causal = true}, call_.outputs(), context_);
  Gradients want(call_), got(call_);
  softmax_attention_backward(in, {.causal = true}, call_.outputs(), {.out = loss().out},
                             {want.view(want.q, in.q), want.view(want.k, in.k), want.view(want.v, in.v)}, context_);
  std::vector<float> zeros(2 * 600 * 2 * 4, 0.0f);
  auto of = [&](int rank, const Shape& shape) { return dense_view(zeros.data(), DType::kF32, rank, shape); };
  const Shape queries = {2, 70, 2, 4}, keys = {2, 600, 2, 4};
  const Compose none{.q1 = of(4, queries),
                     .q2 = of(4, queries),
                     .qd = of(3, {2, 70, 4}),
                     .k1 = of(4, keys),
                     .k2 = of(4, keys),
                     .kd = of(3, {2, 600, 4})};
  dcmha_attention_backward({in, none, none}, {.causal = true}, loss().out,
                           {got.view(got.q, in.q), got.view(got.k, in.k), got.view(got.v, in.v), {}, {}}, context_);
  expect_near(got, want);
}

TEST_P(RowBackward, SinkhornOfOneStepIsSoftmaxs) {
  softmax_attention(call_.in(), {}, call_.outputs(), context_);
  const Qkv in = call_.in();
  Gradients want(call_), got(call_);
  softmax_attention_backward(in, {}, call_.outputs(), {.out = loss().out},
                             {want.view(want.q, in.q), want.view(want.k, in.k), want.view(want.v, in.v)}, context_);
  sinkhorn_attention_backward(in, {.iterations = 1}, loss().out,
                              {got.view(got.q, in.q), got.view(got.k, in.k), got.view(got.v, in.v)}, context_);
  expect_near(got, want);
}

// Unbalanced, with a node of one child: against the definition. The flat tree: against softmax attention.
TEST_P(RowBackward, AnyTreeHasTheGradientsOfItsDefinition) {
  constexpr int64_t kTokens = 7;
  const std::vector<int32_t> flat(kTokens, kTokens);
  std::vector<int32_t> some = {7, 7, 8, 9, 9, 9, 11, 10, 10, 11, 11, -1}, all = flat;
  all.push_back(-1);
  test::SmallCall call(2, 4, 2, kTokens, kTokens, 16, 24);
  const Qkv in = call.in();
  const View d_out = dense_view(d_out_.data(), DType::kF32, {2, 4, kTokens, 24});
  for (std::vector<int32_t>* parents : {&some, &all}) {
    Gradients want(call), got(call);
    hsa_attention_backward(in, *parents, 0, d_out,
                           {got.view(got.q, in.q), got.view(got.k, in.k), got.view(got.v, in.v)}, context_);
    if (parents == &all) {
      softmax_attention(in, {}, call.outputs(), context_);
      softmax_attention_backward(in, {}, call.outputs(), {.out = d_out},
                                 {want.view(want.q, in.q), want.view(want.k, in.k), want.view(want.v, in.v)}, context_);
    } else {
      std::vector<double> wide[3];
      Tensors to;
      for (const auto& [n, name, view] : {std::tuple{0, "q", in.q}, {1, "k", in.k}, {2, "v", in.v}}) {
        wide[n].resize(static_cast<size_t>(view.count()));
        to[name] = dense_view(wide[n].data(), DType::kF64, 4, view.shape);
      }
      const Tensors arguments = {
          {"q", in.q}, {"k", in.k}, {"v", in.v}, {"parents", dense_view(some.data(), DType::kI32, {12})}};
      make_hsa_reference({})->backward(arguments, {}, {{"out", d_out}}, to, context_);
      for (const auto& [from, into] : {std::pair{&wide[0], &want.q}, {&wide[1], &want.k}, {&wide[2], &want.v}})
        for (size_t i = 0; i < from->size(); ++i) (*into)[i] = static_cast<float>((*from)[i]);
    }
    expect_near(got, want);
  }
}

TEST_P(RowBackward, PlanesWithoutASlopeAreSoftmaxs) {
  softmax_attention(call_.in(), {.causal = true}, call_.outputs(), context_);
  const Qkv in = call_.in();
  Gradients want(call_), got(call_);
  softmax_attention_backward(in, {.causal = true}, call_.outputs(), {.out = loss().out},
                             {want.view(want.q, in.q), want.view(want.k, in.k), want.view(want.v, in.v)}, context_);
  lla_attention_backward(in, {.causal = true, .ridge = 1e25}, loss().out,
                         {got.view(got.q, in.q), got.view(got.k, in.k), got.view(got.v, in.v)}, context_);
  expect_near(got, want);
}

TEST_P(RowBackward, CertainTokensGiveSoftmaxsGradientsAndImpossibleOnesNone) {
  constexpr int64_t kTokens = 70, kGone = 33;
  test::SmallCall call(2, 4, 2, kTokens, kTokens, 16, 24);
  const Qkv in = call.in();
  softmax_attention(in, {}, call.outputs(), context_);
  Gradients want(call), got(call);
  const AttnOutGrad of_out{.out = loss().out};
  softmax_attention_backward(in, {}, call.outputs(), of_out,
                             {want.view(want.q, in.q), want.view(want.k, in.k), want.view(want.v, in.v)}, context_);
  std::vector<float> exist(2 * kTokens, 1.0f), d_exist(exist.size(), NAN);
  const View probabilities = dense_view(exist.data(), DType::kF32, {2, kTokens});
  auto backward = [&] {
    probabilistic_attention_backward(in, probabilities, {}, of_out.out,
                                     {got.view(got.q, in.q), got.view(got.k, in.k), got.view(got.v, in.v),
                                      dense_view(d_exist.data(), DType::kF32, {2, kTokens})},
                                     context_);
  };
  backward();
  expect_near(got, want);
  exist[kTokens + kGone] = 0;
  backward();
  EXPECT_EQ(d_exist[kTokens + kGone], 0);
  for (const auto& [x, width, heads] : {std::tuple{&got.q, 16, 4}, {&got.k, 16, 2}, {&got.v, 24, 2}})
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t c = 0; c < width; ++c)
        EXPECT_EQ((*x)[static_cast<size_t>((((heads + h) * kTokens) + kGone) * width + c)], 0) << h << " " << c;
  for (const float x : d_exist) EXPECT_TRUE(std::isfinite(x));
}

TEST_P(RowBackward, NeedsNoMatrixOfAllPairs) {
  constexpr int64_t kLength = 6000;  // a matrix: 144 MB
  test::SmallCall call(1, 1, 1, kLength, kLength, 8, 8);
  std::vector<float> table = random_floats(63 * 8, 4), d_out = random_floats(kLength * 8, 5);
  Gradients got(call);
  const Qkv in = call.in();
  rusage before{}, after{};
  getrusage(RUSAGE_SELF, &before);
  relative_attention_backward(in, {.keys = dense_view(table.data(), DType::kF32, {1, 63, 8})}, {.causal = true},
                              {.out = dense_view(d_out.data(), DType::kF32, {1, 1, kLength, 8})},
                              {.q = got.view(got.q, in.q), .k = got.view(got.k, in.k), .v = got.view(got.v, in.v)},
                              context_);
  getrusage(RUSAGE_SELF, &after);
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 64 * 1024);
}

TEST_P(RowBackward, RefusesWhatItCannotDo) {
  const Qkv in = call_.in();
  std::vector<float> table = random_floats(31 * 16, 3), own(table.size());
  const RelativeTables tables{.keys = dense_view(table.data(), DType::kF32, {1, 31, 16})};
  auto refused = [&](const RelativeGrad& grad, const AttnOutGrad& d_out) {
    try {
      relative_attention_backward(in, tables, {}, d_out, grad, context_);
    } catch (const Error& e) {
      return e.kind() == ErrorKind::kArgument;
    }
    return false;
  };
  EXPECT_TRUE(refused({.q = in.q}, loss()));
  EXPECT_TRUE(refused({.relative_keys = tables.keys}, loss()));
  EXPECT_TRUE(refused({.content_bias = dense_view(own.data(), DType::kF32, {4, 16})}, loss()));
  EXPECT_TRUE(refused({.relative_keys = dense_view(own.data(), DType::kF32, {1, 31, 16})}, {}));
  EXPECT_FALSE(refused({.relative_keys = dense_view(own.data(), DType::kF32, {1, 31, 16})}, loss()));
  EXPECT_THROW(relu_attention_backward(in, {}, {}, {}, context_), Error);
  EXPECT_THROW(entmax_attention_backward(in, {}, {}, {}, context_), Error);
  EXPECT_THROW(entmax_attention_backward(in, {.alpha = 1}, loss().out, {}, context_), Error);
  EXPECT_THROW(reversed_attention_backward(in, {}, {}, {}, {}, {}, context_), Error);
  EXPECT_THROW(reversed_attention_backward(in, {}, {}, {}, loss().out, {.k = in.k}, context_), Error);
  EXPECT_THROW(reversed_attention_backward(in, {}, {}, {}, loss().out,
                                           {.message = dense_view(own.data(), DType::kF32, {2, 600})}, context_),
               Error);
  EXPECT_THROW(coca_attention_backward(in, {}, call_.outputs(), {}, {}, context_), Error);
  EXPECT_THROW(coca_attention_backward(in, {}, {}, loss(), {}, context_), Error);
  EXPECT_THROW(coca_attention_backward(in, {}, call_.outputs(), loss(), {.q = in.q}, context_), Error);
}

TEST_P(RowBackward, LatentAttentionsRefusesWhatItCannotDo) {
  std::vector<float> cache = random_floats(2 * 600 * 20, 1), up_k = random_floats(4 * 12 * 16, 2),
                     up_v = random_floats(4 * 24 * 16, 3), own(cache.size());
  const MlaIn in{.q = call_.in().q,
                 .cache = dense_view(cache.data(), DType::kF32, {2, 1, 600, 20}),
                 .w_uk = dense_view(up_k.data(), DType::kF32, {4, 12, 16}),
                 .w_uv = dense_view(up_v.data(), DType::kF32, {4, 24, 16})};
  const MlaOptions options{.rope = 4};
  const View d_cache = dense_view(own.data(), DType::kF32, {2, 1, 600, 20});
  EXPECT_NO_THROW(mla_attention_backward(in, options, loss(), {.cache = d_cache}, context_));
  EXPECT_THROW(mla_attention_backward(in, options, {}, {.cache = d_cache}, context_), Error);
  EXPECT_THROW(mla_attention_backward(in, options, loss(), {.cache = in.cache}, context_), Error);
  EXPECT_THROW(mla_attention_backward(in, options, loss(), {.q = d_cache}, context_), Error);
  EXPECT_THROW(mla_attention_backward(in, {.rope = 5}, loss(), {.cache = d_cache}, context_), Error);
}

INSTANTIATE_TEST_SUITE_P(Usable, RowBackward, testing::ValuesIn(test::usable_isas()),
                         [](const auto& usable) { return std::string(name_of(usable.param)); });

}  // namespace
}  // namespace attend
