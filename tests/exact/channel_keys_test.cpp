// Keys by channel in groups, values in rows with offsets, and newer ones as floats behind them: the bits of the same
// numbers as f32, whatever the sizes of groups, and errors.
#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <random>

#include "attend/exact/weight_statistics.h"
#include "attend/simd/key_rows.h"
#include "attend/tensor/quantised_row.h"
#include "exact/call.h"
#include "exact/key_reader.h"
#include "support/expect_error.h"

namespace attend {
namespace {

// What one kv head holds; the arrays that it was made of then hold the numbers that it reads as.
struct CodedHead {
  std::vector<uint8_t> k, v;
  std::vector<F16> scale, offset, k_half, v_half;
  std::vector<KeyRun> runs;

  // Groups of `sizes` keys, again and again, as far as `old` keys reach; the others are f16.
  CodedHead(float* keys, float* values, int64_t count, int64_t d, int64_t dv, int bits, int64_t old,
            const std::vector<int64_t>& sizes) {
    const DType k_type = bits == 2 ? DType::kQ2_C : DType::kQ4_C, v_type = bits == 2 ? DType::kQ2_1 : DType::kQ4_1;
    const int64_t k_row = row_bytes(k_type, d), v_row = row_bytes(v_type, dv);
    old = std::min(old, count);
    k.resize(static_cast<size_t>(old * k_row)), v.resize(static_cast<size_t>(old * v_row));
    scale.resize(static_cast<size_t>(old * d)), offset.resize(scale.size());
    for (int64_t first = 0, g = 0; first < old; ++g) {
      const int64_t n = std::min(old - first, sizes[static_cast<size_t>(g) % sizes.size()]);
      KeyRun run{k.data() + first * k_row, v.data() + first * v_row, k_row, v_row, first, n, k_type, v_type,
                 scale.data() + g * d,     offset.data() + g * d};
      quantise_channels(keys + first * d, n, d, k_type, scale.data() + g * d, offset.data() + g * d,
                        k.data() + first * k_row);
      for (int64_t r = 0; r < n; ++r) {
        quantise_row(values + (first + r) * dv, dv, v_type, v.data() + (first + r) * v_row);
        for (int64_t c = 0; c < d; ++c) keys[(first + r) * d + c] = element_of(run.keys(), r, d, c);
        for (int64_t c = 0; c < dv; ++c) values[(first + r) * dv + c] = element_of(run.values(), r, dv, c);
      }
      runs.push_back(run);
      first += n;
    }
    auto halves = [&](float* x, int64_t width, std::vector<F16>& to) {
      for (int64_t i = old * width; i < count * width; ++i) to.push_back(to_f16(x[i])), x[i] = to_f32(to.back());
    };
    halves(keys, d, k_half), halves(values, dv, v_half);
    if (old < count) runs.push_back({k_half.data(), v_half.data(), d, dv, old, count - old, DType::kF16, DType::kF16});
  }
};

struct CodedCall {
  std::vector<CodedHead> heads;
  std::vector<KeyView> views;

  CodedCall(std::vector<float>& k, std::vector<float>& v, int64_t kv_heads, int64_t count, int64_t d, int64_t dv,
            int bits, int64_t old, const std::vector<int64_t>& sizes) {
    for (int64_t h = 0; h < kv_heads; ++h)
      heads.emplace_back(k.data() + h * count * d, v.data() + h * count * dv, count, d, dv, bits, old, sizes);
    for (const CodedHead& head : heads) views.push_back({head.runs, {}});
  }
};

const std::vector<int64_t> kGroups[] = {{32}, {32, 1, 17, 32, 5, 64, 3}};

TEST(ChannelKeys, GiveTheBitsOfTheSameNumbersInF32) {
  struct Shape {
    int64_t hq, hkv, tq, tk, d, dv, old;
  };
  const Shape shapes[] = {{2, 2, 1, 1, 32, 32, 1},       {8, 2, 1, 700, 128, 128, 640}, {2, 2, 1, 530, 64, 64, 530},
                          {4, 1, 3, 77, 96, 160, 64},    {2, 1, 67, 67, 64, 96, 33},    {6, 2, 40, 600, 128, 32, 511},
                          {1, 1, 5, 33, 320, 512, 32},   {2, 2, 30, 50, 512, 256, 50},  {3, 1, 9, 1100, 256, 64, 1000},
                          {2, 1, 200, 200, 32, 64, 150}, {8, 8, 1, 47, 64, 64, 40}};
  for (const Shape& s : shapes)
    for (const int bits : {2, 4})
      for (const auto& sizes : kGroups)
        for (int compute_index = 0; compute_index < kComputeCount; ++compute_index)
          for (Isa isa : test::usable_isas()) {
            const Compute compute = static_cast<Compute>(compute_index);
            SCOPED_TRACE(fmt::format("{} bits, {} groups: Hq {} Hkv {} Tq {} Tk {} D {} Dv {} {} {}", bits,
                                     sizes.size(), s.hq, s.hkv, s.tq, s.tk, s.d, s.dv, name_of(isa), name_of(compute)));
            test::SmallCall call(1, s.hq, s.hkv, s.tq, s.tk, s.d, s.dv);
            const CodedCall coded(call.k, call.v, s.hkv, s.tk, s.d, s.dv, bits, s.old, sizes);
            const SoftmaxOptions options{.causal = true, .compute = compute};
            Context context = test::context_for(isa);
            call.run(options, context);
            const auto out = call.out, lse = call.lse;
            for (int threads : {1, 3}) {
              std::fill(call.out.begin(), call.out.end(), NAN);
              Context other = test::context_for(isa, threads);
              softmax_attention({.q = call.in().q, .keys = coded.views, .dv = s.dv}, options, call.outputs(), other);
              ASSERT_EQ(out, call.out);
              ASSERT_EQ(lse, call.lse);
            }
          }
}

TEST(ChannelKeys, AreReadAsTheyAreWidened) {
  for (const int bits : {2, 4})
    for (Isa isa : test::usable_isas()) {
      test::SmallCall call(1, 2, 2, 1, 90, 96, 64);
      const CodedCall coded(call.k, call.v, 2, 90, 96, 64, bits, 80, kGroups[1]);
      std::vector<float> k(55 * 96), v(55 * 64);
      read_keys(coded.views[1], 30, 55, 96, isa, k.data());
      read_values(coded.views[1], 30, 55, 64, isa, v.data());
      EXPECT_TRUE(std::equal(k.begin(), k.end(), call.k.begin() + (90 + 30) * 96)) << name_of(isa);
      EXPECT_TRUE(std::equal(v.begin(), v.end(), call.v.begin() + (90 + 30) * 64)) << name_of(isa);
    }
}

TEST(ChannelKeys, SumsOfWeightsAreThoseOfTheSameNumbers) {
  for (Isa isa : test::usable_isas()) {
    test::SmallCall call(1, 4, 2, 20, 700, 64, 64);
    const CodedCall coded(call.k, call.v, 2, 700, 64, 64, 2, 600, kGroups[1]);
    Context context = test::context_for(isa, 2);
    call.run({.causal = true}, context);
    auto sums_of = [&](const Qkv& in) {
      std::vector<std::vector<float>> sums(4, std::vector<float>(700, 0.0f));
      std::vector<KeyStatistics> places;
      for (auto& s : sums) places.push_back({.sum = s.data()});
      add_weights(in, {.causal = true}, call.outputs().lse, {.heads = places}, context);
      return sums;
    };
    EXPECT_EQ(sums_of({.q = call.in().q, .keys = coded.views, .dv = 64}), sums_of(call.in())) << name_of(isa);
  }
}

// A group with a number that is not finite shows in the rows that see a key of it, in its channel.
TEST(ChannelKeys, WhatIsNotFiniteShowsWhereItIsSeen) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity(), 1e6f})
    for (Isa isa : test::usable_isas())
      for (bool value : {false, true}) {
        test::SmallCall call(1, 2, 1, 70, 70, 64, 64), spoiled(1, 2, 1, 70, 70, 64, 64);
        (value ? spoiled.v : spoiled.k)[40 * 64 + 40] = bad;
        Context context = test::context_for(isa);
        const CodedCall good(call.k, call.v, 1, 70, 64, 64, 4, 64, kGroups[0]),
            with(spoiled.k, spoiled.v, 1, 70, 64, 64, 4, 64, kGroups[0]);
        softmax_attention({.q = call.in().q, .keys = good.views, .dv = 64}, {.causal = true}, call.outputs(), context);
        softmax_attention({.q = spoiled.in().q, .keys = with.views, .dv = 64}, {.causal = true}, spoiled.outputs(),
                          context);
        for (size_t h = 0; h < 2; ++h)
          for (size_t i = 0; i < 70; ++i)
            for (size_t c = 0; c < 64; ++c) {
              const size_t at = (h * 70 + i) * 64 + c;
              const bool hit = value ? i >= 40 && c >= 32 : i >= 32;
              ASSERT_EQ(std::isnan(spoiled.out[at]), hit) << i << " " << c << " " << value;
              if (!hit) {
                ASSERT_EQ(spoiled.out[at], call.out[at]);
              }
            }
      }
}

TEST(ChannelKeys, EveryMechanismThatReadsKeyViewsReadsThem) {
  int reading = 0;
  test::each_mechanism(13, {{1, 4, 2, 5, 90, 64, 64}, {1, 2, 2, 90, 90, 64, 64}}, [&](test::KeyReader& reader) {
    const Sizes& sizes = reader.sizes;
    std::vector<float> k = reader.normal(sizes.hkv * sizes.tk * sizes.d),
                       v = reader.normal(sizes.hkv * sizes.tk * sizes.dv);
    const CodedCall coded(k, v, sizes.hkv, sizes.tk, sizes.d, sizes.dv, 4, 70, kGroups[1]);
    std::vector<KeyRun> runs;
    std::vector<KeyView> plain;
    for (int64_t h = 0; h < sizes.hkv; ++h)
      runs.push_back(
          {k.data() + h * sizes.tk * sizes.d, v.data() + h * sizes.tk * sizes.dv, sizes.d, sizes.dv, 0, sizes.tk});
    for (const KeyRun& r : runs) plain.push_back({{&r, 1}, {}});
    std::vector<float> expected;
    try {
      expected = reader.run(plain);
    } catch (const Error&) {
      return;  // no key views, or none at these sizes
    }
    ++reading;
    EXPECT_EQ(reader.run(coded.views), expected);
  });
  EXPECT_GE(reading, 10) << "softmax and what is made of it";
}

TEST(ChannelKeys, Refusals) {
  test::SmallCall call(1, 1, 1, 1, 40, 64, 64);
  Context context(1);
  CodedCall coded(call.k, call.v, 1, 40, 64, 64, 4, 32, kGroups[0]);
  std::vector<KeyRun>& runs = coded.heads[0].runs;
  auto refuses = [&](std::string_view why) {
    test::expect_error(ErrorKind::kArgument, why, [&] {
      softmax_attention({.q = call.in().q, .keys = coded.views, .dv = 64}, {}, call.outputs(), context);
    });
  };
  const KeyRun good = runs[0];
  runs[0].k_scale = nullptr;
  refuses("where keys are q4_c");
  runs[0] = good;
  runs[0].v_type = DType::kQ4_C;
  refuses("q2_c of keys");
  runs[0] = good;
  runs[0].k_type = DType::kQ4_1;
  refuses("q4_1 and q2_1 are of values");
  runs[0] = good;
  runs[1].k_offset = good.k_offset;
  refuses("must not be there where keys are f16");
}

}  // namespace
}  // namespace attend
