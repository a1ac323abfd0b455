#include "attend/exact/rope.h"

#include <cmath>
#include <numbers>

#include "attend/tensor/npy.h"
#include "attend/tensor/registry.h"
#include "exact/call.h"

namespace attend {
namespace {

double theta(double base, double pair, double dims) {
  return std::pow(base, -2 * pair / dims);
}

// Closed forms of the papers, at the pairs where they are simple.
TEST(RopeTables, LinearAndNtk) {
  const RopeTable plain = rope_table({}, 64, 100);
  ASSERT_EQ(plain.frequency.size(), 32u);
  EXPECT_DOUBLE_EQ(plain.frequency[0], 1);
  EXPECT_NEAR(plain.frequency[16], 0.01, 1e-15);
  const RopeTable linear = rope_table({.scaling = RopeScaling::kLinear, .factor = 4}, 64, 100);
  for (size_t i = 0; i < 32; ++i) EXPECT_DOUBLE_EQ(linear.frequency[i], plain.frequency[i] / 4);
  // NTK-aware: the fastest pair stays, the slowest is interpolated by the factor.
  const RopeTable ntk = rope_table({.scaling = RopeScaling::kNtk, .factor = 8}, 64, 100);
  EXPECT_DOUBLE_EQ(ntk.frequency[0], 1);
  EXPECT_NEAR(ntk.frequency[31] * 8 / plain.frequency[31], 1, 1e-12);
}

TEST(RopeTables, DynamicNtkGrowsWithTheText) {
  const RopeOptions options{.scaling = RopeScaling::kDynamicNtk, .factor = 2, .original = 512};
  const RopeTable plain = rope_table({}, 64, 100), within = rope_table(options, 64, 512),
                  beyond = rope_table(options, 64, 1024);
  EXPECT_EQ(plain.frequency, within.frequency);
  EXPECT_DOUBLE_EQ(beyond.frequency[0], 1);
  EXPECT_NEAR(beyond.frequency[31] * 3 / plain.frequency[31], 1, 1e-12);  // 2 * 1024 / 512 - 1
}

// LLaMA's numbers: of 64 pairs those up to 20 turn more than 32 times in 4096 tokens, those from 46 less than once.
TEST(RopeTables, YarnRampsBetweenTwoPairs) {
  const RopeTable yarn = rope_table({.scaling = RopeScaling::kYarn, .factor = 16, .original = 4096}, 128, 1);
  for (size_t i = 0; i <= 20; ++i) EXPECT_DOUBLE_EQ(yarn.frequency[i], theta(10000, static_cast<double>(i), 128));
  for (size_t i = 46; i < 64; ++i)
    EXPECT_NEAR(yarn.frequency[i] * 16 / theta(10000, static_cast<double>(i), 128), 1, 1e-12);
  EXPECT_NEAR(yarn.frequency[33] / theta(10000, 33, 128), 0.5 + 0.5 / 16, 1e-12);
  EXPECT_NEAR(yarn.magnitude, 1 + 0.1 * std::log(16), 1e-15);
  const RopeTable none =
      rope_table({.scaling = RopeScaling::kYarn, .factor = 16, .original = 4096, .extrapolation = 0}, 128, 1);
  for (size_t i = 0; i < 64; ++i)
    EXPECT_NEAR(none.frequency[i] * 16 / theta(10000, static_cast<double>(i), 128), 1, 1e-12);
  EXPECT_EQ(none.magnitude, 1);
}

// Llama 3.1: base 500000, factor 8, 8192 tokens, wavelengths below 2048 kept and above 8192 interpolated.
TEST(RopeTables, Llama3GoesByWavelength) {
  const RopeTable table =
      rope_table({.base = 500000, .scaling = RopeScaling::kLlama3, .factor = 8, .original = 8192}, 128, 1);
  int kept = 0, interpolated = 0;
  for (size_t i = 0; i < 64; ++i) {
    const double f = theta(500000, static_cast<double>(i), 128), wavelength = 2 * std::numbers::pi / f;
    if (wavelength < 2048) {
      EXPECT_DOUBLE_EQ(table.frequency[i], f);
      ++kept;
    } else if (wavelength > 8192) {
      EXPECT_NEAR(table.frequency[i] * 8 / f, 1, 1e-12);
      ++interpolated;
    } else {
      const double smooth = (8192 / wavelength - 1) / 3;
      EXPECT_NEAR(table.frequency[i], (1 - smooth) * f / 8 + smooth * f, 1e-15);
    }
  }
  EXPECT_EQ(kept, 29);
  EXPECT_EQ(interpolated, 29);
}

TEST(RopeTables, LongRopeTakesItsDivisorsByLength) {
  std::vector<float> brief(16, 1.5f), lengthy(16, 6.0f);
  const RopeFactors factors{dense_view(brief.data(), DType::kF32, {16}), dense_view(lengthy.data(), DType::kF32, {16})};
  const RopeOptions options{.scaling = RopeScaling::kLongRope, .factor = 32, .original = 4096};
  const RopeTable within = rope_table(options, 32, 4096, factors), beyond = rope_table(options, 32, 4097, factors);
  EXPECT_NEAR(within.frequency[5], theta(10000, 5, 32) / 1.5, 1e-15);
  EXPECT_NEAR(beyond.frequency[5], theta(10000, 5, 32) / 6, 1e-15);
  EXPECT_NEAR(beyond.magnitude, std::sqrt(1 + std::log(32.0) / std::log(4096.0)), 1e-15);
  // GGUF's rope_freqs: divisors without a scaling.
  EXPECT_NEAR(rope_table({}, 32, 1, {factors.short_factors}).frequency[5], theta(10000, 5, 32) / 1.5, 1e-15);
}

class Rope : public testing::TestWithParam<Isa> {};

std::vector<float> rotated(test::SmallCall& call, const RopeOptions& options, std::vector<int32_t> positions,
                           Context& context) {
  std::vector<float> y(call.q.size());
  rope_rotate(call.in().q, dense_view(positions.data(), DType::kI32, {1, call.tq}),
              RopeAngles(rope_table(options, call.d, 1)), options.interleaved,
              dense_view(y.data(), DType::kF32, {1, call.hq, call.tq, call.d}), context);
  return y;
}

TEST_P(Rope, TurnsEachPairByItsAngle) {
  test::SmallCall call(1, 2, 1, 5, 5, 20, 8);
  Context context = test::context_for(GetParam());
  const std::vector<int32_t> positions = {0, 1, 63, 64, 100001};
  for (const bool interleaved : {false, true}) {
    const RopeOptions options{.dims = 12, .interleaved = interleaved};
    const std::vector<float> y = rotated(call, options, positions, context);
    for (size_t row = 0; row < 10; ++row) {
      const float *x = call.q.data() + row * 20, *z = y.data() + row * 20;
      for (size_t i = 0; i < 6; ++i) {
        const double angle = positions[row % 5] * theta(10000, static_cast<double>(i), 12);
        const size_t a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + 6;
        EXPECT_NEAR(z[a], x[a] * std::cos(angle) - x[b] * std::sin(angle), 2e-6);
        EXPECT_NEAR(z[b], x[a] * std::sin(angle) + x[b] * std::cos(angle), 2e-6);
      }
      for (size_t c = 12; c < 20; ++c) EXPECT_EQ(z[c], x[c]);
    }
  }
}

TEST_P(Rope, ScoresDependOnDistanceAlone) {
  test::SmallCall call(1, 1, 1, 2, 2, 64, 8);
  Context context = test::context_for(GetParam());
  auto score = [&](int32_t i, int32_t j) {
    const std::vector<float> y = rotated(call, {}, {i, j}, context);
    double sum = 0;
    for (size_t c = 0; c < 64; ++c) sum += static_cast<double>(y[c]) * y[64 + c];
    return sum;
  };
  for (int32_t shift : {1, 64, 1000, 123456}) EXPECT_NEAR(score(300, 7), score(300 + shift, 7 + shift), 1e-3);
  EXPECT_GT(std::abs(score(300, 7) - score(301, 7)), 1e-2);
}

// Every scaling, as the command line names it, against the definition.
TEST_P(Rope, EveryScalingMeetsItsDefinition) {
  test::SmallCall call(1, 2, 1, 30, 200, 64, 16);
  std::vector<float> factors(32);
  for (size_t i = 0; i < 32; ++i) factors[i] = 1 + 0.1f * static_cast<float>(i);
  const Qkv qkv = call.in();
  const View divisors = dense_view(factors.data(), DType::kF32, {32});
  for (const char* scaling : {"none", "linear", "ntk", "dynamic", "yarn", "llama3", "longrope"})
    for (const char* original : {"64", "400"}) {
      Spec spec{"rope", {{"causal", "true"}, {"scaling", scaling}, {"factor", "4"}, {"original", original}}};
      const Entry& entry = registry().at("rope");
      const Tensors in = {
          {"q", qkv.q}, {"k", qkv.k}, {"v", qkv.v}, {"short_factors", divisors}, {"long_factors", divisors}};
      Context context = test::context_for(GetParam());
      const Tensors out = {{"out", call.outputs().out}, {"lse", call.outputs().lse}};
      registry().make<Operator>(spec)->forward(in, out, Form::kAny, context);
      const Spec complete = registry().complete(spec);
      Array expected = make_array(DType::kF64, 4, call.outputs().out.shape),
            lse = make_array(DType::kF64, 3, call.outputs().lse.shape);
      entry.reference(complete)->forward(in, {{"out", expected.view}, {"lse", lse.view}}, Form::kAny, context);
      const double limit = entry.bound(complete, in, "out");
      EXPECT_LT(limit, 0.01);
      for (int64_t i = 0; i < expected.view.count(); ++i)
        ASSERT_NEAR(call.out[static_cast<size_t>(i)], value_at(expected.view, i), limit) << scaling << " " << original;
    }
}

TEST(RopeOptionText, IsOneOfItsChoices) {
  for (const char* wrong : {"", "linea", "none|linear", "Yarn"}) {
    Spec spec{"rope", {{"scaling", wrong}}};
    EXPECT_THROW(registry().complete(spec), Error) << wrong;
  }
  EXPECT_EQ(registry().complete(Spec{"rope", {{"scaling", "yarn"}}}).text("scaling"), "yarn");
}

// Attention buckets: copies of one text with a base each, as one batch, equal the readings one by one.
TEST_P(Rope, ReadsWithSeveralBasesAtOnce) {
  float values[] = {10000, 17500, 25000};
  test::SmallCall call(3, 2, 1, 20, 50, 16, 16);
  for (std::vector<float>* x : {&call.q, &call.k, &call.v})
    for (size_t copy = 1; copy < 3; ++copy)
      std::copy_n(x->begin(), x->size() / 3, x->begin() + static_cast<int64_t>(copy * x->size() / 3));
  Context context = test::context_for(GetParam(), 2);
  rope_attention(call.in(), dense_view(values, DType::kF32, {3}), {}, {.causal = true}, call.outputs(), context);
  const std::vector<float> together = call.out;
  for (size_t b = 0; b < 3; ++b) {
    Qkv one = call.in();
    one.q.shape[0] = one.k.shape[0] = one.v.shape[0] = 1;
    std::vector<float> alone(together.size() / 3);
    rope_attention(one, {}, {}, {.causal = true, .rope = {.base = values[b]}},
                   {dense_view(alone.data(), DType::kF32, {1, 2, 20, 16})}, context);
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + static_cast<int64_t>(b * alone.size())));
  }
}

TEST(MergeBuckets, WeighsDistributionsByTheirConfidence) {
  // Distributions (0.8, 0.1, 0.1) and (0.2, 0.4, 0.4), confidences 0.8 and 0.4.
  std::vector<float> logits = {std::log(8.0f), 0, 0, 0, std::log(2.0f), std::log(2.0f)}, out(3);
  merge_buckets(dense_view(logits.data(), DType::kF32, {2, 3}), dense_view(out.data(), DType::kF32, {3}));
  EXPECT_NEAR(out[0], (0.8 * 0.8 + 0.4 * 0.2) / 1.2, 1e-6);
  EXPECT_NEAR(out[1], (0.8 * 0.1 + 0.4 * 0.4) / 1.2, 1e-6);
  EXPECT_NEAR(out[0] + out[1] + out[2], 1, 1e-6);
  merge_buckets(dense_view(logits.data(), DType::kF32, {1, 3}), dense_view(out.data(), DType::kF32, {3}));
  EXPECT_NEAR(out[0], 0.8, 1e-6);
  EXPECT_THROW(merge_buckets(dense_view(logits.data(), DType::kF32, {2, 3}), dense_view(out.data(), DType::kF32, {2})),
               Error);
}

// What positions in a cache mean: from the token that makes the first key leave on, each query sees what it would see
// as the last one of a text that holds the sinks and the window alone.
TEST_P(Rope, InCachePositionsAreThoseOfATextWithoutWhatWasDropped) {
  constexpr int64_t kWindow = 12, kSinks = 3, kKept = kWindow + kSinks, kLength = 200;
  test::SmallCall call(1, 4, 2, kLength, kLength, 24, 16);
  Context context = test::context_for(GetParam(), 2);
  RopeAttentionOptions options{
      .causal = true, .window = kWindow, .sinks = kSinks, .positions = RopePositions::kCache, .rope = {.dims = 16}};
  rope_attention(call.in(), {}, {}, options, call.outputs(), context);
  const RopeAttentionOptions plain{.causal = true, .rope = options.rope};
  float in_text = 0;
  for (int64_t i = 0; i < kLength; ++i) {
    std::vector<int64_t> kept;
    for (int64_t j = 0; j <= i; ++j)
      if (j < kSinks || i - j < kWindow) kept.push_back(j);
    test::SmallCall few(1, 4, 2, 1, static_cast<int64_t>(kept.size()), 24, 16);
    for (int64_t h = 0; h < 4; ++h) std::copy_n(call.in().q.at<float>({0, h, i}), 24, few.in().q.at<float>({0, h, 0}));
    for (int64_t h = 0; h < 2; ++h)
      for (size_t n = 0; n < kept.size(); ++n) {
        const int64_t to = static_cast<int64_t>(n);
        std::copy_n(call.in().k.at<float>({0, h, kept[n]}), 24, few.in().k.at<float>({0, h, to}));
        std::copy_n(call.in().v.at<float>({0, h, kept[n]}), 16, few.in().v.at<float>({0, h, to}));
      }
    rope_attention(few.in(), {}, {}, plain, few.outputs(), context);
    for (int64_t h = 0; h < 4; ++h)
      for (int64_t c = 0; c < 16; ++c)
        ASSERT_NEAR(*call.outputs().out.at<float>({0, h, i, c}), *few.outputs().out.at<float>({0, h, 0, c}), 2e-5)
            << "query " << i;
  }
  const std::vector<float> cached = call.out;
  options.positions = RopePositions::kText;
  rope_attention(call.in(), {}, {}, options, call.outputs(), context);
  for (int64_t h = 0; h < 4; ++h)
    for (int64_t i = 0; i < kLength; ++i)
      for (int64_t c = 0; c < 16; ++c) {
        const size_t at = static_cast<size_t>((h * kLength + i) * 16 + c);
        if (i < kKept) {
          ASSERT_NEAR(cached[at], call.out[at], 2e-5) << "nothing was dropped at " << i;
        } else {
          in_text = std::max(in_text, std::abs(cached[at] - call.out[at]));
        }
      }
  EXPECT_GT(in_text, 1e-2f) << "the two kinds of positions differ where something was dropped";
}

// What a retention left, at scattered slots that differ from head to head: a text by itself.
TEST_P(Rope, InCachePositionsOfScatteredKeysAreThoseOfATextOfTheseAlone) {
  constexpr int64_t kLength = 150, kQueries = 5;
  test::SmallCall call(1, 4, 2, kQueries, kLength, 24, 16);
  Context context = test::context_for(GetParam(), 2);
  const RopeAttentionOptions options{.causal = true, .positions = RopePositions::kCache, .rope = {.dims = 16}},
      plain{.causal = true, .rope = options.rope};
  std::vector<std::vector<int32_t>> kept(2);
  std::vector<std::vector<float>> k(2), v(2);
  std::vector<KeyRun> runs;
  for (size_t h = 0; h < 2; ++h) {
    for (int32_t j = 0; j < kLength; ++j) {
      if (j < kLength - kQueries && (j * 7 + static_cast<int32_t>(h) * 3) % (3 + static_cast<int32_t>(h)) != 0)
        continue;
      kept[h].push_back(j);
      const float *key = call.in().k.at<float>({0, static_cast<int64_t>(h), j}),
                  *value = call.in().v.at<float>({0, static_cast<int64_t>(h), j});
      k[h].insert(k[h].end(), key, key + 24), v[h].insert(v[h].end(), value, value + 16);
    }
    // Two runs, as of pages.
    const int64_t count = static_cast<int64_t>(kept[h].size());
    runs.push_back({.k = k[h].data(), .v = v[h].data(), .k_stride = 24, .v_stride = 16, .count = 20});
    runs.push_back({.k = k[h].data() + 20 * 24,
                    .v = v[h].data() + 20 * 16,
                    .k_stride = 24,
                    .v_stride = 16,
                    .first_slot = 20,
                    .count = count - 20});
  }
  const std::vector<KeyView> views = {{std::span(runs).first(2), kept[0]}, {std::span(runs).last(2), kept[1]}};
  Qkv in = call.in();
  in.k = in.v = {};
  in.dv = 16;
  in.keys = views;
  rope_attention(in, {}, {}, options, call.outputs(), context);
  // By weights, too.
  std::vector<std::vector<float>> sums;
  std::vector<KeyStatistics> places;
  for (size_t h = 0; h < 4; ++h) sums.emplace_back(kept[h / 2].size(), 0.0f);
  for (auto& head : sums) places.push_back({.sum = head.data()});
  rope_add_weights(in, {}, {}, options, call.outputs().lse, {places}, context);
  for (size_t h = 0; h < 2; ++h) {
    const int64_t count = static_cast<int64_t>(kept[h].size());
    test::SmallCall few(1, 2, 1, kQueries, count, 24, 16);
    std::copy(k[h].begin(), k[h].end(), few.in().k.at<float>({0, 0, 0}));
    std::copy(v[h].begin(), v[h].end(), few.in().v.at<float>({0, 0, 0}));
    for (int64_t g = 0; g < 2; ++g)
      for (int64_t i = 0; i < kQueries; ++i)
        std::copy_n(call.in().q.at<float>({0, static_cast<int64_t>(h) * 2 + g, i}), 24,
                    few.in().q.at<float>({0, g, i}));
    rope_attention(few.in(), {}, {}, plain, few.outputs(), context);
    std::vector<std::vector<float>> wanted(2, std::vector<float>(static_cast<size_t>(count), 0.0f));
    std::vector<KeyStatistics> to;
    for (auto& head : wanted) to.push_back({.sum = head.data()});
    rope_add_weights(few.in(), {}, {}, plain, few.outputs().lse, {to}, context);
    for (int64_t g = 0; g < 2; ++g) {
      const int64_t head = static_cast<int64_t>(h) * 2 + g;
      for (int64_t i = 0; i < kQueries; ++i)
        for (int64_t c = 0; c < 16; ++c)
          ASSERT_NEAR(*call.outputs().out.at<float>({0, head, i, c}), *few.outputs().out.at<float>({0, g, i, c}), 2e-5);
      for (size_t j = 0; j < static_cast<size_t>(count); ++j)
        ASSERT_NEAR(sums[static_cast<size_t>(head)][j], wanted[static_cast<size_t>(g)][j], 2e-5);
    }
  }
}

TEST_P(Rope, WithoutSinksBothKindsOfPositionsAreOne) {
  test::SmallCall call(2, 2, 1, 40, 150, 16, 16);
  Context context = test::context_for(GetParam(), 2);
  RopeAttentionOptions options{.causal = true, .window = 20};
  rope_attention(call.in(), {}, {}, options, call.outputs(), context);
  const std::vector<float> in_text = call.out;
  options.positions = RopePositions::kCache;
  rope_attention(call.in(), {}, {}, options, call.outputs(), context);
  EXPECT_EQ(in_text, call.out);
}

TEST(MergeBuckets, GivesLogarithmsBeyondTheRangeOfProbabilities) {
  // Confidences 1 and 1/2 but for e^-200: ln of (e^-200 + e^-900 / 2 / 2) / 1.5, and of less than any double holds.
  std::vector<float> logits = {0, -200, -900, -900, 0, -900, 0, -900}, out(4);
  merge_bucket_logits(dense_view(logits.data(), DType::kF32, {2, 4}), dense_view(out.data(), DType::kF32, {4}));
  EXPECT_NEAR(out[0], std::log(1.25 / 1.5), 1e-6);
  EXPECT_NEAR(out[1], -200 - std::log(1.5), 1e-4);
  EXPECT_NEAR(out[2], std::log(0.25 / 1.5), 1e-6);
  EXPECT_NEAR(out[3], -900 + std::log(1.25 / 1.5), 1e-4);
}

INSTANTIATE_TEST_SUITE_P(Usable, Rope, testing::ValuesIn(test::usable_isas()),
                         [](const auto& usable) { return std::string(name_of(usable.param)); });

}  // namespace
}  // namespace attend
