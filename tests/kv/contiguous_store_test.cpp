// The store against a list of what was appended and kept.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "attend/kv/retention.h"
#include "attend/kv/store.h"
#include "attend/tensor/buffer.h"
#include "attend/tensor/error.h"
#include "attend/tensor/quantised_row.h"
#include "support/expect_error.h"

namespace attend {
namespace {

struct Key {
  int32_t position;
  std::vector<float> k, v;
};

// What a row reads as.
std::vector<float> stored(const std::vector<float>& row, DType codec) {
  std::vector<float> x = row;
  if (is_quantised(codec)) {
    const int64_t n = static_cast<int64_t>(row.size());
    std::vector<uint8_t> coded(static_cast<size_t>(row_bytes(codec, n)));
    quantise_row(row.data(), n, codec, coded.data());
    dequantise_row(coded.data(), n, codec, x.data());
    return x;
  }
  for (float& v : x) v = codec == DType::kF16 ? to_f32(to_f16(v)) : codec == DType::kBF16 ? to_f32(to_bf16(v)) : v;
  return x;
}

float read(const void* row, int64_t i, int64_t n, DType codec) {
  if (is_quantised(codec)) return quantised_element(row, n, codec, i);
  if (codec == DType::kF16) return to_f32(static_cast<const F16*>(row)[i]);
  if (codec == DType::kBF16) return to_f32(static_cast<const BF16*>(row)[i]);
  return static_cast<const float*>(row)[i];
}

void expect_keys(const KeyView& view, const std::vector<Key>& expected, const StoreShape& shape) {
  ASSERT_EQ(view.count(), static_cast<int64_t>(expected.size()));
  ASSERT_EQ(view.k_type, shape.codec);
  const int64_t element = size_of(shape.codec);
  for (const KeyRun& run : view.runs)
    for (int64_t i = 0; i < run.count; ++i) {
      const int64_t slot = run.first_slot + i;
      const Key& key = expected[static_cast<size_t>(slot)];
      ASSERT_EQ(view.position.empty() ? slot : view.position[static_cast<size_t>(slot)], key.position);
      for (int64_t c = 0; c < shape.d; ++c)
        ASSERT_EQ(read(static_cast<const char*>(run.k) + i * run.k_stride * element, c, shape.d, shape.codec),
                  key.k[static_cast<size_t>(c)]);
      for (int64_t c = 0; c < shape.dv; ++c)
        ASSERT_EQ(read(static_cast<const char*>(run.v) + i * run.v_stride * element, c, shape.dv, shape.codec),
                  key.v[static_cast<size_t>(c)]);
    }
}

struct Rows {
  std::vector<float> data;
  View view;  // [heads, t, width] of memory [t, heads, width]
};

Rows random_rows(std::mt19937& random, int heads, int64_t t, int64_t width) {
  std::normal_distribution<float> normal(0, 3);
  Rows rows{std::vector<float>(static_cast<size_t>(heads * t * width)), {}};
  for (float& x : rows.data) x = normal(random);
  rows.view = dense_view(rows.data.data(), DType::kF32, {heads, t, width});
  rows.view.stride = {width, heads * width, 1};
  return rows;
}

std::vector<float> row_of(const Rows& rows, int64_t head, int64_t t) {
  const float* x = rows.view.at<float>({head, t});
  return {x, x + rows.view.shape[2]};
}

TEST(ContiguousStore, FollowsRandomAppendsAndKeeps) {
  for (DType codec : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
    const unsigned seed = 17 + static_cast<unsigned>(codec);
    SCOPED_TRACE(fmt::format("seed {} codec {}", seed, name_of(codec)));
    std::mt19937 random(seed);
    const int64_t d = is_quantised(codec) ? 64 : 20, dv = is_quantised(codec) ? 32 : 9;
    const StoreShape shape{.layers = 2, .kv_heads = 3, .d = d, .dv = dv, .codec = codec};
    auto store = make_contiguous_store(shape);
    std::vector<Key> expected[2][3];
    int32_t next[2] = {0, 0};
    for (int step = 0; step < 120; ++step) {
      const int layer = static_cast<int>(random() % 2);
      if (random() % 3) {
        const int64_t t = random() % 5 ? 1 + random() % 7 : 1 + random() % 400;
        const Rows k = random_rows(random, 3, t, shape.d), v = random_rows(random, 3, t, shape.dv);
        std::vector<int32_t> position;
        for (int64_t i = 0; i < t; ++i) {
          next[layer] += random() % 40 == 0 ? 5 : 0;
          position.push_back(next[layer]++);
        }
        store->append(layer, k.view, v.view, position);
        for (int h = 0; h < 3; ++h)
          for (int64_t i = 0; i < t; ++i)
            expected[layer][h].push_back(
                {position[static_cast<size_t>(i)], stored(row_of(k, h, i), codec), stored(row_of(v, h, i), codec)});
      } else {
        const int head = static_cast<int>(random() % 3);
        std::vector<Key>& keys = expected[layer][head];
        std::vector<int64_t> slots;
        std::vector<Key> kept;
        const unsigned drop = random() % 4;  // none, a prefix, some, all
        const size_t cut = keys.empty() ? 0 : random() % keys.size();
        for (size_t s = 0; s < keys.size(); ++s)
          if (drop == 0 || (drop == 1 && s >= cut) || (drop == 2 && random() % 2)) {
            slots.push_back(static_cast<int64_t>(s));
            kept.push_back(keys[s]);
          }
        store->keep(layer, head, slots);
        keys = kept;
      }
      for (int l = 0; l < 2; ++l)
        for (int h = 0; h < 3; ++h) expect_keys(store->keys(l, h), expected[l][h], shape);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(ContiguousStore, NarrowsSpecialValues) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> x = {0.0f,    -0.0f,   1e-8f,   -6e-8f, 3e-8f,     65504.0f, 65519.9f, 65520.0f,
                          1e-40f,  3.4e38f, inf,     -inf,   nan,       -nan,     1.0f / 3, 2049.0f,
                          2051.0f, 6.1e-5f, 5.9e-5f, 1e-39f, -3.39e38f, 0.1f,     1e30f};
  for (DType codec : {DType::kF16, DType::kBF16}) {
    const int64_t n = static_cast<int64_t>(x.size());
    auto store = make_contiguous_store({.layers = 1, .kv_heads = 1, .d = n, .dv = n, .codec = codec});
    const View view = dense_view(x.data(), DType::kF32, {1, 1, n});
    const int32_t position[] = {0};
    store->append(0, view, view, position);
    const auto* bits = static_cast<const uint16_t*>(store->keys(0, 0).runs[0].k);
    for (int64_t i = 0; i < n; ++i) {
      const float value = x[static_cast<size_t>(i)];
      const uint16_t wanted = codec == DType::kF16 ? to_f16(value).bits : to_bf16(value).bits;
      EXPECT_EQ(bits[i], wanted) << name_of(codec) << " of " << value;
    }
  }
}

TEST(ContiguousStore, HoldsBytesByUse) {
  for (const auto& [codec, row] : {std::pair{DType::kF16, 128}, {DType::kQ8_0, 68}, {DType::kQ4_0, 36}}) {
    const StoreShape shape{.layers = 1, .kv_heads = 1, .d = 64, .dv = 64, .codec = codec};
    auto store = make_contiguous_store(shape);
    EXPECT_EQ(store->bytes(), 0);
    std::mt19937 random(1);
    const Rows rows = random_rows(random, 1, 1, 64);
    for (int32_t p = 0; p < 20000; ++p) {
      store->append(0, rows.view, rows.view, std::span(&p, 1));
      ASSERT_LE(store->bytes(), 2 * row * ((p + 1) * 9 / 8 + 256));
    }
    std::vector<int64_t> slots;
    for (int64_t s = 19000; s < 20000; ++s) slots.push_back(s);
    store->keep(0, 0, slots);
    EXPECT_LE(store->bytes(), (2 * row + 4) * 1300);
    store->clear();
    EXPECT_EQ(store->bytes(), 0);
  }
}

TEST(ContiguousStore, QuantisedRowsAreWholeBlocks) {
  for (DType codec : {DType::kQ8_0, DType::kQ4_0}) {
    EXPECT_NO_THROW(make_contiguous_store({.layers = 1, .kv_heads = 1, .d = 64, .dv = 32, .codec = codec}));
    for (const auto& [d, dv] : {std::pair{48, 64}, {64, 80}})
      test::expect_error(ErrorKind::kArgument, name_of(codec), [&] {
        make_contiguous_store({.layers = 1, .kv_heads = 1, .d = d, .dv = dv, .codec = codec});
      });
  }
}

TEST(ContiguousStore, RefusesWithoutChange) {
  const StoreShape shape{.layers = 1, .kv_heads = 2, .d = 8, .dv = 4, .codec = DType::kF32};
  auto store = make_contiguous_store(shape);
  std::mt19937 random(3);
  const Rows k = random_rows(random, 2, 3, 8), v = random_rows(random, 2, 3, 4);
  const std::vector<int32_t> position = {4, 5, 7};
  store->append(0, k.view, v.view, position);
  const int64_t bytes = store->bytes();
  EXPECT_THROW(store->append(0, k.view, v.view, position), Error);                        // does not ascend
  EXPECT_THROW(store->append(0, k.view, v.view, std::vector<int32_t>{8, 9}), Error);      // length
  EXPECT_THROW(store->append(0, v.view, v.view, std::vector<int32_t>{8, 9, 10}), Error);  // width
  EXPECT_THROW(store->append(1, k.view, v.view, std::vector<int32_t>{8, 9, 10}), Error);  // layer
  EXPECT_THROW(store->append(0, k.view, v.view, std::vector<int32_t>{8, 8, 10}), Error);  // repeats
  EXPECT_THROW(store->keep(0, 0, std::vector<int64_t>{0, 3}), Error);
  EXPECT_THROW(store->keep(0, 0, std::vector<int64_t>{1, 1}), Error);
  EXPECT_THROW(store->keep(0, 2, {}), Error);
  EXPECT_THROW(store->keys(0, -1), Error);
  EXPECT_EQ(store->keys(0, 1).count(), 3);
  EXPECT_EQ(store->bytes(), bytes);
  EXPECT_THROW(make_contiguous_store({.layers = 0, .kv_heads = 2, .d = 8, .dv = 4, .codec = DType::kF32}), Error);
  EXPECT_THROW(make_contiguous_store({.layers = 1, .kv_heads = 2, .d = 8, .dv = 4, .codec = DType::kI64}), Error);
}

struct SinksAndWindow : Operator {
  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors&) const override { return {}; }
  void forward(const Tensors&, const Tensors&, Form, Context&) const override {}
  std::vector<KeyRange> needed_from(int64_t position) const override {
    return {{0, 2}, {std::max<int64_t>(2, position - 9), kNoEnd}};
  }
};

TEST(Retention, DropsWhatNobodySees) {
  std::vector<int32_t> position;
  for (int32_t p = 0; p < 30; p += 2) position.push_back(p);
  KeyRun run;
  run.count = 15;
  KeyView plain, keys;
  plain.runs = keys.runs = {&run, 1};
  keys.position = position;
  std::vector<int64_t> slots;
  const SinksAndWindow mechanism;
  make_implied_retention(mechanism)->choose({.keys = keys, .d = 4, .dv = 4, .next_position = 30}, slots);
  EXPECT_EQ(slots, (std::vector<int64_t>{0, 11, 12, 13, 14}));
  make_keep_all()->choose({.keys = keys, .d = 4, .dv = 4, .next_position = 30}, slots);
  EXPECT_EQ(slots.size(), 15u);
  EXPECT_EQ(slots_in(plain, {4, kNoEnd}), (KeyRange{4, 15}));
  EXPECT_EQ(slots_in(plain, {40, kNoEnd}), (KeyRange{15, 15}));
}

}  // namespace
}  // namespace attend
