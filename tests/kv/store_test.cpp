// Every store of the registry against a list of what was appended and kept.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "attend/exact/softmax.h"
#include "attend/kv/paged_store.h"
#include "attend/kv/staged_store.h"
#include "attend/kv/store.h"
#include "attend/tensor/error.h"
#include "attend/tensor/registry.h"
#include "kv/naive_store.h"
#include "support/expect_error.h"
#include "support/resident_memory.h"

namespace attend {
namespace {

// Every store with its defaults, and what is worth another look.
std::vector<std::string> stores() {
  std::vector<std::string> specs = {"paged:page=1", "paged:page=3", "paged:page=64,share=false"};
  for (const Entry* entry : registry().entries())
    if (entry->kind == Kind::kStore) specs.emplace_back(entry->name);
  return specs;
}

std::unique_ptr<StoreFactory> factory(const std::string& spec) {
  return registry().make<StoreFactory>(parse_specs(spec)[0]);
}

StoreShape small_shape(DType codec) {
  const bool quantised = is_quantised(codec);
  return {
      .layers = 2, .kv_heads = 3, .d = quantised ? 64 : 20, .dv = quantised ? 32 : 9, .codec = codec, .context = 2048};
}

struct Rows {
  std::vector<float> data;
  View view;  // [heads, t, width] of memory [t, heads, width]
};

Rows random_rows(std::mt19937& random, int64_t heads, int64_t t, int64_t width) {
  std::normal_distribution<float> normal(0, 3);
  Rows rows{std::vector<float>(static_cast<size_t>(heads * t * width)), {}};
  for (float& x : rows.data) x = normal(random);
  rows.view = dense_view(rows.data.data(), DType::kF32, {heads, t, width});
  rows.view.stride = {width, heads * width, 1};
  return rows;
}

std::vector<int32_t> positions(int32_t first, int64_t count) {
  std::vector<int32_t> result;
  for (int64_t i = 0; i < count; ++i) result.push_back(first + static_cast<int32_t>(i));
  return result;
}

constexpr DType kCodecs[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0};

TEST(Stores, FollowRandomEvents) {
  for (const std::string& spec : stores())
    for (DType codec : kCodecs) {
      const unsigned seed = 17 + static_cast<unsigned>(codec);
      SCOPED_TRACE(fmt::format("{}, seed {}, codec {}", spec, seed, name_of(codec)));
      std::mt19937 random(seed);
      const auto opens = factory(spec);
      test::StoreWalk walk([&](const StoreShape& shape) { return opens->open(shape); }, small_shape(codec),
                           [&] { return static_cast<uint32_t>(random()); });
      for (int step = 0; step < 150; ++step) ASSERT_EQ(walk.step(), "") << "step " << step;
    }
}

// Codecs that code keys anew as they age: by channel, in rows, and in several stages.
std::vector<Codec> aging_codecs() {
  return {Codec(DType::kF16, {{40, DType::kQ2_C, DType::kQ2_1}}, 32, 64),
          Codec(DType::kF32, {{0, DType::kQ4_C, DType::kQ4_1}}, 8, 8),
          Codec(DType::kF16,
                {{16, DType::kQ8_0, DType::kQ8_0}, {48, DType::kQ4_C, DType::kQ4_1}, {90, DType::kQ2_C, DType::kQ2_1}},
                16, 16)};
}

TEST(Stores, FollowRandomEventsWhileKeysAge) {
  for (const std::string& spec : stores())
    for (const Codec& codec : aging_codecs()) {
      const unsigned seed = 23 + static_cast<unsigned>(codec.stages.size());
      SCOPED_TRACE(fmt::format("{}, seed {}, {} stages from {}", spec, seed, codec.stages.size(), name_of(codec.type)));
      std::mt19937 random(seed);
      const auto opens = factory(spec);
      StoreShape shape = small_shape(DType::kQ8_0);
      shape.codec = shape.v_codec = codec.type;
      test::StoreWalk walk([&](const StoreShape& s) { return open_store(*opens, s, codec); }, shape, codec,
                           [&] { return static_cast<uint32_t>(random()); });
      for (int step = 0; step < 150; ++step) ASSERT_EQ(walk.step(), "") << "step " << step;
    }
}

// Attention reads every store as it reads one buffer, bit by bit, after keys were dropped too.
TEST(Stores, GiveAttentionTheSameBits) {
  constexpr int64_t kTokens = 1300, kHeads = 2, kD = 64, kQueries = 5;
  for (DType codec : {DType::kF32, DType::kF16, DType::kQ8_0, DType::kQ4_0}) {
    const StoreShape shape{.layers = 1, .kv_heads = kHeads, .d = kD, .dv = kD, .codec = codec, .context = kTokens};
    auto attend_over = [&](Store& store) {
      std::mt19937 random(5);
      const Rows k = random_rows(random, kHeads, kTokens, kD), v = random_rows(random, kHeads, kTokens, kD);
      Rows q = random_rows(random, 2 * kHeads, kQueries, kD);
      for (int64_t done = 0; done < kTokens;) {
        const int64_t n = std::min<int64_t>(done < 900 ? 300 : 1, kTokens - done);
        auto part = [&](const Rows& rows) {
          View view = rows.view;
          view.data = const_cast<float*>(rows.view.at<float>({0, done}));
          view.shape[1] = n;
          return view;
        };
        store.append(0, part(k), part(v), positions(static_cast<int32_t>(done), n));
        done += n;
      }
      std::vector<int64_t> some;
      for (int64_t s = 0; s < kTokens; ++s)
        if (s < 4 || (s > 200 && random() % 8)) some.push_back(s);
      store.keep(0, 1, some);
      std::vector<KeyView> keys;
      for (int h = 0; h < kHeads; ++h) keys.push_back(store.keys(0, h));
      std::vector<float> out(static_cast<size_t>(2 * kHeads * kQueries * kD));
      const std::vector<int32_t> at = positions(kTokens - kQueries, kQueries);
      View queries = dense_view(q.data.data(), DType::kF32, {1, 2 * kHeads, kQueries, kD});
      Qkv in{.q = queries, .k = {}, .v = {}};
      in.keys = keys;
      in.dv = kD;
      in.q_positions = dense_view(const_cast<int32_t*>(at.data()), DType::kI32, {1, kQueries});
      SoftmaxOptions options;
      options.causal = true;
      Context context(2);
      softmax_attention(in, options, {.out = dense_view(out.data(), DType::kF32, {1, 2 * kHeads, kQueries, kD})},
                        context);
      return out;
    };
    const std::vector<float> expected = attend_over(*make_contiguous_store(shape));
    for (const std::string& spec : stores()) {
      const std::vector<float> out = attend_over(*factory(spec)->open(shape));
      EXPECT_EQ(std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)), 0)
          << spec << " " << name_of(codec);
    }
  }
}

TEST(Stores, NarrowSpecialValues) {
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

TEST(Stores, RefuseWithoutChange) {
  for (const std::string& spec : stores()) {
    SCOPED_TRACE(spec);
    const StoreShape shape{.layers = 1, .kv_heads = 2, .d = 8, .dv = 4, .codec = DType::kF32, .context = 64};
    const auto opens = factory(spec);
    auto store = opens->open(shape);
    std::mt19937 random(3);
    const Rows k = random_rows(random, 2, 3, 8), v = random_rows(random, 2, 3, 4);
    const std::vector<int32_t> position = {4, 5, 7};
    store->append(0, k.view, v.view, position);
    const int64_t bytes = store->bytes();
    auto refuses = [](auto call) { test::expect_error(ErrorKind::kArgument, "", call); };
    refuses([&] { store->append(0, k.view, v.view, position); });                        // does not ascend
    refuses([&] { store->append(0, k.view, v.view, std::vector<int32_t>{8, 9}); });      // length
    refuses([&] { store->append(0, v.view, v.view, std::vector<int32_t>{8, 9, 10}); });  // width
    refuses([&] { store->append(1, k.view, v.view, std::vector<int32_t>{8, 9, 10}); });  // layer
    refuses([&] { store->append(0, k.view, v.view, std::vector<int32_t>{8, 8, 10}); });  // repeats
    refuses([&] { store->keep(0, 0, std::vector<int64_t>{0, 3}); });
    refuses([&] { store->keep(0, 0, std::vector<int64_t>{1, 1}); });
    refuses([&] { store->keep(0, 2, {}); });
    refuses([&] { (void)store->keys(0, -1); });
    const float four[4] = {};
    const int64_t beyond[] = {3}, last[] = {2}, twice[] = {1, 1};
    refuses([&] { rewrite_values(*store, 0, 0, beyond, four, Isa::kAvx2); });
    refuses([&] { rewrite_values(*store, 0, 2, last, four, Isa::kAvx2); });                    // head
    refuses([&] { rewrite_values(*store, 0, 0, last, std::span(four, 3), Isa::kAvx2); });      // width
    refuses([&] { rewrite_values(*store, 0, 0, twice, std::vector<float>(8), Isa::kAvx2); });  // repeats
    refuses([&] { store->append_coded(0, 2, store->keys(0, 1)); });
    refuses([&] { store->append_coded(0, 0, store->keys(0, 1)); });  // does not ascend
    KeyRun other = store->keys(0, 1).runs[0];
    other.k_type = other.v_type = DType::kF16;
    const int32_t later[] = {20, 21, 22};
    refuses([&] { store->append_coded(0, 0, {{&other, 1}, later}); });
    EXPECT_EQ(store->keys(0, 1).count(), 3);
    EXPECT_EQ(store->bytes(), bytes);
    for (const StoreShape& wrong : {StoreShape{0, 2, 8, 4, DType::kF32}, StoreShape{1, 2, 8, 4, DType::kI64},
                                    StoreShape{1, 2, 48, 64, DType::kQ8_0}, StoreShape{1, 2, 64, 80, DType::kQ4_0},
                                    StoreShape{1, 2, 8, 4, DType::kF32, -1}})
      refuses([&] { opens->open(wrong); });
  }
}

TEST(Stores, ComeAndGoWithoutGrowth) {
  const StoreShape shape{.layers = 2, .kv_heads = 2, .d = 64, .dv = 64, .codec = DType::kF16, .context = 256};
  std::mt19937 random(7);
  const Rows k = random_rows(random, 2, 100, 64), v = random_rows(random, 2, 100, 64);
  for (const std::string& spec : stores()) {
    SCOPED_TRACE(spec);
    const auto opens = factory(spec);
    int64_t before = 0;
    const int sequences = spec == "offloaded" ? 300 : 3000;  // a file each
    for (int sequence = 0; sequence < sequences; ++sequence) {
      if (sequence == sequences / 3) before = test::resident_bytes();
      auto store = opens->open(shape);
      const int64_t t = 1 + random() % 100;
      View keys = k.view, values = v.view;
      keys.shape[1] = values.shape[1] = t;
      for (int layer = 0; layer < 2; ++layer) store->append(layer, keys, values, positions(0, t));
      if (sequence % 3 == 0) store->keep(1, 0, std::vector<int64_t>{0});
      if (sequence % 4 == 0) store->clear();
    }
    // A sequence holds up to 100 KB, so that a few kept would show.
    if (test::kTellsMemory) {
      EXPECT_LT(test::resident_bytes() - before, 3 << 20);
    }
  }
}

}  // namespace
}  // namespace attend
