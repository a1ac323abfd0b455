// Normalisers, weight hooks and second passes against plain loops in double.
#include <cmath>
#include <functional>

#include "exact/call.h"

namespace attend {
namespace {

constexpr double kHidden = -std::numeric_limits<double>::infinity();

// Scores of a row (kHidden where causality hides) to weights.
using RowRule = std::function<void(std::vector<double>& row, int head, int i)>;

double largest_error(test::SmallCall& call, const RowRule& rule) {
  double worst = 0;
  for (int64_t b = 0; b < call.b; ++b)
    for (int64_t h = 0; h < call.hq; ++h)
      for (int64_t i = 0; i < call.tq; ++i) {
        const int64_t kv = b * call.hkv + h / (call.hq / call.hkv), position = i + call.tk - call.tq;
        std::vector<double> row(static_cast<size_t>(call.tk), kHidden);
        for (int64_t j = 0; j <= position; ++j) {
          double s = 0;
          for (int64_t c = 0; c < call.d; ++c)
            s += double{call.q[static_cast<size_t>(((b * call.hq + h) * call.tq + i) * call.d + c)]} *
                 call.k[static_cast<size_t>((kv * call.tk + j) * call.d + c)];
          row[static_cast<size_t>(j)] = s / std::sqrt(static_cast<double>(call.d));
        }
        rule(row, static_cast<int>(h), static_cast<int>(position));
        for (int64_t c = 0; c < call.dv; ++c) {
          double want = 0;
          for (int64_t j = 0; j <= position; ++j)
            want += row[static_cast<size_t>(j)] * call.v[static_cast<size_t>((kv * call.tk + j) * call.dv + c)];
          const double got = call.out[static_cast<size_t>(((b * call.hq + h) * call.tq + i) * call.dv + c)];
          if (!(std::abs(got - want) <= worst)) worst = std::abs(got - want);
        }
      }
  return worst;
}

void divide_by_sum(std::vector<double>& row) {
  double sum = 0;
  for (double w : row) sum += w;
  for (double& w : row) w = sum == 0 ? 0 : w / sum;
}

void softmax(std::vector<double>& row) {
  for (double& s : row) s = std::exp(s);
  divide_by_sum(row);
}

class Variants : public testing::TestWithParam<Isa> {
 protected:
  // Two passes over several splits, by blocks and (one query) by splits.
  void expect(const Variant& variant, double tolerance, const RowRule& rule) {
    for (auto& call : {test::SmallCall(2, 4, 2, 70, 1100, 16, 24), test::SmallCall(1, 2, 1, 1, 1300, 8, 40)}) {
      test::SmallCall copy = call;
      for (int threads : {1, 3}) {
        Context context = test::context_for(GetParam(), threads);
        softmax_attention(copy.in(), {.causal = true}, {.out = copy.outputs().out}, context, variant);
        EXPECT_LE(largest_error(copy, rule), tolerance);
      }
    }
  }
};

TEST_P(Variants, SignedSoftmax) {
  expect({.normalizer = Normalizer::kSignedSoftmax}, 2e-5, [](std::vector<double>& row, int, int) {
    double sum = 0;
    for (double s : row) sum += s == kHidden ? 0 : std::exp(std::abs(s));
    for (double& s : row) s = s == kHidden ? 0 : std::copysign(std::exp(std::abs(s)) / sum, s);
  });
}

TEST_P(Variants, SumOfAFunction) {
  auto relu = [](float s, int, int, int, int) { return s > 0 ? s : 0.0f; };
  const Hook hook = make_hook(relu);
  expect({.normalizer = Normalizer::kSum, .weight = &hook}, 2e-5, [](std::vector<double>& row, int, int) {
    for (double& s : row) s = std::max(s, 0.0);
    divide_by_sum(row);
  });
}

TEST_P(Variants, NoNormaliser) {
  auto square = [](float s, int, int, int i, int j) { return i - j < 7 ? s * s : 0.25f; };
  const Hook hook = make_hook(square);
  expect({.normalizer = Normalizer::kNone, .weight = &hook}, 2e-3, [](std::vector<double>& row, int, int i) {
    for (size_t j = 0; j < row.size(); ++j) {
      const bool near = i - static_cast<int>(j) < 7;
      row[j] = row[j] == kHidden ? 0 : near ? row[j] * row[j] : 0.25;
    }
  });
}

TEST_P(Variants, MultipliedWeights) {
  auto falling = [](float w, int, int head, int i, int j) {
    return w / (1.0f + static_cast<float>((head + 1) * (i - j)));
  };
  const Hook hook = make_hook(falling);
  expect({.weight = &hook}, 2e-5, [](std::vector<double>& row, int head, int i) {
    softmax(row);
    for (size_t j = 0; j < row.size(); ++j) row[j] /= 1 + (head + 1) * (i - static_cast<double>(j));
  });
}

TEST_P(Variants, FinalWeights) {
  auto power = [](float w, int, int, int, int) { return w * w; };
  const Hook hook = make_hook(power);
  expect({.final_weight = &hook}, 2e-5, [](std::vector<double>& row, int, int) {
    softmax(row);
    for (double& w : row) w *= w;
  });
  expect({.final_weight = &hook, .renormalise = true}, 2e-5, [](std::vector<double>& row, int, int) {
    softmax(row);
    for (double& w : row) w *= w;
    divide_by_sum(row);
  });
}

TEST_P(Variants, FinalWeightsOfASum) {
  auto shifted = [](float s, int, int, int, int) { return s > -1 ? s + 1 : 0.0f; };
  auto power = [](float w, int, int, int, int) { return w * w * w; };
  const Hook weight = make_hook(shifted), final_weight = make_hook(power);
  expect({.normalizer = Normalizer::kSum, .weight = &weight, .final_weight = &final_weight, .renormalise = true}, 2e-5,
         [](std::vector<double>& row, int, int) {
           for (double& s : row) s = std::max(s + 1, 0.0);
           divide_by_sum(row);
           for (double& w : row) w = w * w * w;
           divide_by_sum(row);
         });
}

// Also where no score is left of a row, and where a hidden value is not finite.
TEST_P(Variants, HiddenKeysTakePartInNothing) {
  auto constant = [](float, int, int, int, int) { return 1.0f; };
  const Hook hook = make_hook(constant);
  test::SmallCall call(1, 1, 1, 20, 20, 8, 8);
  for (size_t c = 0; c < 8; ++c) call.v[19 * 8 + c] = call.k[19 * 8 + c] = NAN;
  std::vector<float> bias(20 * 20, 0.0f);
  for (size_t j = 0; j < 20; ++j) bias[5 * 20 + j] = -INFINITY;
  Qkv in = call.in();
  in.bias = dense_view(bias.data(), DType::kF32, {1, 1, 20, 20});
  Context context = test::context_for(GetParam());
  for (const Variant& variant :
       {Variant{.normalizer = Normalizer::kSum, .weight = &hook}, Variant{.final_weight = &hook},
        Variant{.normalizer = Normalizer::kSignedSoftmax, .final_weight = &hook}}) {
    softmax_attention(in, {.causal = true}, {.out = call.outputs().out}, context, variant);
    for (size_t i = 0; i < 20; ++i)
      for (size_t c = 0; c < 8; ++c) {
        const float x = call.out[i * 8 + c];
        if (i == 5) {
          EXPECT_EQ(x, 0.0f);
        }
        EXPECT_EQ(std::isnan(x), i == 19) << i;
      }
  }
}

TEST_P(Variants, OnlyTheLogOfTheDenominator) {
  test::SmallCall call(2, 4, 2, 9, 700, 16, 8);
  Context context = test::context_for(GetParam(), 2);
  call.run({.causal = true}, context);
  const std::vector<float> both = call.lse;
  softmax_attention(call.in(), {.causal = true}, {.lse = call.outputs().lse}, context);
  EXPECT_EQ(both, call.lse);
}

INSTANTIATE_TEST_SUITE_P(Usable, Variants, testing::ValuesIn(test::usable_isas()),
                         [](const auto& usable) { return std::string(name_of(usable.param)); });

}  // namespace
}  // namespace attend
