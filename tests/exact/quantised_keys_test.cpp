// Keys and values as rows of q8_0 and q4_0: the bits of the same numbers as f32, whatever the sizes, and errors.
#include <fmt/format.h>

#include <cstring>
#include <limits>

#include "attend/tensor/quantised_row.h"
#include "exact/call.h"
#include "exact/key_reader.h"
#include "support/expect_error.h"

namespace attend {
namespace {

constexpr DType kTypes[] = {DType::kQ8_0, DType::kQ4_0};

// The rows of `values` in some type; `values` then holds what they hold.
struct Rows {
  std::vector<uint8_t> bytes;
  int64_t stride = 0;  // as runs count it

  Rows(std::vector<float>& values, int64_t width, DType type) {
    const int64_t count = static_cast<int64_t>(values.size()) / width, row = row_bytes(type, width);
    bytes.resize(static_cast<size_t>(count * row));
    stride = row / size_of(type);
    for (int64_t r = 0; r < count; ++r) {
      float* x = values.data() + r * width;
      uint8_t* to = bytes.data() + r * row;
      if (is_quantised(type)) {
        quantise_row(x, width, type, to);
        dequantise_row(to, width, type, x);
      } else {
        std::memcpy(to, x, static_cast<size_t>(row));
      }
    }
  }
};

// One view for each kv head of arrays [heads, keys, width].
struct Views {
  Rows k, v;
  std::vector<KeyRun> runs;
  std::vector<KeyView> views;

  Views(std::vector<float>& keys, std::vector<float>& values, int64_t heads, int64_t count, int64_t d, int64_t dv,
        DType k_type, DType v_type)
      : k(keys, d, k_type), v(values, dv, v_type), runs(static_cast<size_t>(heads)) {
    for (int64_t h = 0; h < heads; ++h) {
      KeyRun& run = runs[static_cast<size_t>(h)];
      run = {k.bytes.data() + h * count * k.stride * size_of(k_type),
             v.bytes.data() + h * count * v.stride * size_of(v_type),
             k.stride,
             v.stride,
             0,
             count,
             k_type,
             v_type};
      views.push_back({{&run, 1}, {}});
    }
  }
};

Qkv with_views(test::SmallCall& call, const Views& views) {
  return {.q = call.in().q, .keys = views.views, .dv = call.dv};
}

// Scales in one and in two pieces, whole and partial panels, few rows (values in place) and many (values packed).
TEST(QuantisedKeys, GiveTheBitsOfTheSameNumbersInF32) {
  struct Shape {
    int64_t hq, hkv, tq, tk, d, dv;
  };
  const Shape shapes[] = {{2, 2, 1, 1, 32, 32},     {8, 2, 1, 700, 128, 128}, {2, 2, 1, 530, 64, 64},
                          {4, 1, 3, 77, 96, 160},   {2, 1, 67, 67, 64, 96},   {6, 2, 40, 600, 128, 32},
                          {1, 1, 5, 33, 320, 512},  {2, 2, 30, 50, 512, 256}, {3, 1, 9, 1100, 256, 64},
                          {2, 1, 200, 200, 32, 64}, {8, 8, 1, 47, 64, 64}};
  for (const Shape& s : shapes)
    for (DType k_type : {DType::kQ8_0, DType::kQ4_0, DType::kF32})
      for (DType v_type : {DType::kQ8_0, DType::kQ4_0, DType::kF32})
        for (int compute_index = 0; compute_index < kComputeCount; ++compute_index)
          for (Isa isa : test::usable_isas()) {
            const Compute compute = static_cast<Compute>(compute_index);
            SCOPED_TRACE(fmt::format("{} {}: Hq {} Hkv {} Tq {} Tk {} D {} Dv {} {} {}", name_of(k_type),
                                     name_of(v_type), s.hq, s.hkv, s.tq, s.tk, s.d, s.dv, name_of(isa),
                                     name_of(compute)));
            test::SmallCall call(1, s.hq, s.hkv, s.tq, s.tk, s.d, s.dv);
            const Views views(call.k, call.v, s.hkv, s.tk, s.d, s.dv, k_type, v_type);
            const SoftmaxOptions options{.causal = true, .compute = compute};
            Context context = test::context_for(isa);
            call.run(options, context);
            const auto out = call.out, lse = call.lse;
            for (int threads : {1, 3}) {
              std::fill(call.out.begin(), call.out.end(), NAN);
              Context other = test::context_for(isa, threads);
              softmax_attention(with_views(call, views), options, call.outputs(), other);
              ASSERT_EQ(out, call.out);
              ASSERT_EQ(lse, call.lse);
            }
          }
}

// A NaN of either sign, or a block that can't be stored, shows in the rows that see its key, and in no other.
TEST(QuantisedKeys, WhatIsNotFiniteShowsWhereItIsSeen) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const std::pair<DType, float> spoilers[] = {
      {DType::kF32, kNan}, {DType::kF32, -kNan}, {DType::kQ8_0, kNan}, {DType::kQ8_0, 1e7f}, {DType::kQ4_0, -INFINITY}};
  for (const auto& [type, bad_value] : spoilers)
    for (Isa isa : test::usable_isas())
      for (bool value : {false, true}) {
        test::SmallCall call(1, 2, 1, 40, 40, 64, 64), spoiled(1, 2, 1, 40, 40, 64, 64);
        (value ? spoiled.v : spoiled.k)[20 * 64 + 40] = bad_value;
        Context context = test::context_for(isa);
        const Views good(call.k, call.v, 1, 40, 64, 64, type, type),
            bad(spoiled.k, spoiled.v, 1, 40, 64, 64, type, type);
        softmax_attention(with_views(call, good), {.causal = true}, call.outputs(), context);
        softmax_attention(with_views(spoiled, bad), {.causal = true}, spoiled.outputs(), context);
        for (size_t h = 0; h < 2; ++h)
          for (size_t i = 0; i < 40; ++i)
            for (size_t c = 0; c < 64; ++c) {
              const size_t at = (h * 40 + i) * 64 + c;
              const bool hit = i >= 20 && (!value || (is_quantised(type) ? c >= 32 : c == 40));
              ASSERT_EQ(std::isnan(spoiled.out[at]), hit) << name_of(type) << " " << i << " " << c;
              if (!hit) {
                ASSERT_EQ(spoiled.out[at], call.out[at]);
              }
            }
      }
}

// Whatever reads views of f32 keys reads quantised ones, or says in one line why not.
TEST(QuantisedKeys, EveryMechanismThatReadsKeyViewsReadsThem) {
  int reading = 0;
  test::each_mechanism(11, {{1, 4, 2, 5, 70, 64, 64}, {1, 2, 2, 70, 70, 64, 64}}, [&](test::KeyReader& reader) {
    const Sizes& sizes = reader.sizes;
    auto run = [&](std::vector<float> k, std::vector<float> v, DType type) {
      return reader.run(Views(k, v, sizes.hkv, sizes.tk, sizes.d, sizes.dv, type, type).views);
    };
    std::vector<float> k = reader.normal(sizes.hkv * sizes.tk * sizes.d),
                       v = reader.normal(sizes.hkv * sizes.tk * sizes.dv);
    for (DType type : kTypes) {
      const Views coded(k, v, sizes.hkv, sizes.tk, sizes.d, sizes.dv, type, type);  // k and v now hold the numbers
      try {
        run(k, v, DType::kF32);
      } catch (const Error&) {
        return;  // no key views, or none at these sizes
      }
      ++reading;
      EXPECT_EQ(run(k, v, DType::kF32), run(k, v, type)) << name_of(type);
    }
  });
  EXPECT_GE(reading, 10) << "softmax and what is made of it";
}

TEST(QuantisedKeys, Refusals) {
  test::SmallCall call(1, 1, 1, 1, 3, 64, 64), odd(1, 1, 1, 1, 3, 40, 64);
  Context context(1);
  for (DType type : kTypes) {
    Views views(call.k, call.v, 1, 3, 64, 64, type, type);
    const Qkv whole = with_views(call, views);
    views.runs[0].k_type = DType::kI32;
    test::expect_error(ErrorKind::kArgument, "i32", [&] { softmax_attention(whole, {}, call.outputs(), context); });
    views.runs[0].k_type = type;
    views.runs[0].k_stride -= 1;
    test::expect_error(ErrorKind::kArgument, "a row long",
                       [&] { softmax_attention(whole, {}, call.outputs(), context); });
    views.runs[0].k_stride += 1;
    Qkv narrow = whole;
    narrow.q = odd.in().q;
    test::expect_error(ErrorKind::kArgument, fmt::format("multiple of 32 where rows are {}", name_of(type)),
                       [&] { softmax_attention(narrow, {}, call.outputs(), context); });
    Qkv array = call.in();
    array.k.type = type;
    test::expect_error(ErrorKind::kArgument, name_of(type),
                       [&] { softmax_attention(array, {}, call.outputs(), context); });
  }
}

}  // namespace
}  // namespace attend
