// Chosen keys as a view: the rows that were chosen, read where they lie or copied.
#include "attend/sparse/selected_keys.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "attend/exact/softmax.h"
#include "attend/simd/isa.h"
#include "attend/simd/key_rows.h"
#include "attend/tensor/context.h"

namespace attend {
namespace {

constexpr int64_t kKeys = 3000, kWidth = 64, kRows = 4;

struct Stored {
  std::vector<F16> k = std::vector<F16>(kKeys * kWidth), v = k;
  std::vector<KeyRun> runs;

  explicit Stored(std::mt19937_64& random) {
    std::normal_distribution<float> normal;
    for (auto* rows : {&k, &v})
      for (F16& x : *rows) x = to_f16(normal(random));
    for (int64_t first = 0; first < kKeys; first += 1000)
      runs.push_back({.k = k.data() + first * kWidth,
                      .v = v.data() + first * kWidth,
                      .k_stride = kWidth,
                      .v_stride = kWidth,
                      .first_slot = first,
                      .count = 1000,
                      .k_type = DType::kF16,
                      .v_type = DType::kF16});
  }
};

// Ranges of `longest` slots at most, some right before the next, half of all.
Selection choose(std::mt19937_64& random, int64_t longest) {
  Selection selection;
  for (int64_t at = 0; at < kKeys;) {
    const int64_t count = std::min(1 + static_cast<int64_t>(random() % static_cast<uint64_t>(longest)), kKeys - at);
    if (random() % 2) append_range(selection.slots, {at, at + count});
    at += count;
  }
  return selection;
}

// The chosen rows, in order, whatever runs they lie in.
std::vector<float> rows_of(const KeyView& view, bool values) {
  std::vector<float> rows(static_cast<size_t>(view.count() * kWidth));
  (values ? read_values : read_keys)(view, 0, view.count(), kWidth, active_isa(Context(1)), rows.data());
  return rows;
}

bool copied(const KeyView& view, const Stored& stored) {
  const auto inside = [](const void* row, const std::vector<F16>& rows) {
    return row >= rows.data() && row < rows.data() + rows.size();
  };
  for (const KeyRun& run : view.runs)
    if (!inside(run.k, stored.k) || !inside(run.v, stored.v)) return true;
  return false;
}

TEST(SelectedKeys, AreTheChosenRowsReadWhereTheyLieOrCopied) {
  Context context(1);
  const Isa isa = active_isa(context);
  for (uint64_t seed = 0; seed < 4; ++seed)
    for (int64_t longest : {1, 16, 40, 100, 1000}) {
      SCOPED_TRACE(fmt::format("seed {}, ranges of up to {}", seed, longest));
      std::mt19937_64 random(seed);
      const Stored stored(random);
      const Selection selection = choose(random, longest);
      ASSERT_GT(selection.count(), 0);
      std::vector<float> k, v;
      for (const KeyRange& range : selection.slots)
        for (int64_t at = range.begin * kWidth; at < range.end * kWidth; ++at)
          k.push_back(to_f32(stored.k[static_cast<size_t>(at)])),
              v.push_back(to_f32(stored.v[static_cast<size_t>(at)]));
      SelectedKeys few, many;
      few.cut({.runs = stored.runs, .position = {}}, selection, kWidth, kWidth, false, kRows);
      many.cut({.runs = stored.runs, .position = {}}, selection, kWidth, kWidth);
      for (const SelectedKeys* keys : {&few, &many}) {
        EXPECT_EQ(rows_of(keys->view(), false), k);
        EXPECT_EQ(rows_of(keys->view(), true), v);
      }
      if (longest <= 16) {
        EXPECT_TRUE(copied(many.view(), stored));
        EXPECT_EQ(copied(few.view(), stored),
                  !reads_scattered_rows(isa, kRows, DType::kF16, DType::kF16, kWidth, kWidth));
      }
      // Attention has the same bits either way.
      std::vector<float> q(kRows * kWidth), a(q), b(q);
      std::normal_distribution<float> normal;
      for (float& x : q) x = normal(random);
      auto attend_to = [&](const KeyView& view, std::vector<float>& out) {
        auto shaped = [&](float* x) { return dense_view(x, DType::kF32, {1, kRows, 1, kWidth}); };
        softmax_attention({.q = shaped(q.data()), .keys = {&view, 1}, .dv = kWidth}, {}, {.out = shaped(out.data())},
                          context);
      };
      attend_to(few.view(), a), attend_to(many.view(), b);
      EXPECT_EQ(a, b);
    }
}

}  // namespace
}  // namespace attend
