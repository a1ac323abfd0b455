// A stream of frames under uni-directional temporal attention (Live2Diff, Liang et al. 2024, arXiv:2407.08701, section
// 3.2): warm-up frames see each other, every later frame sees them, itself and the frames just before it. The store
// holds no more than that, however long the stream is.
#include <gtest/gtest.h>

#include "attend/exact/softmax.h"
#include "attend/kv/retention.h"
#include "attend/kv/store.h"
#include "attend/tensor/registry.h"
#include "support/normal.h"

namespace attend {
namespace {

using test::normal;

constexpr int64_t kFrames = 120, kWarmUp = 8, kWindow = 16, kHeads = 2, kD = 32;

// Of one pixel: [heads, frames, D].
struct Stream {
  std::vector<float> q = normal(kHeads * kFrames * kD, 1), k = normal(kHeads * kFrames * kD, 2),
                     v = normal(kHeads * kFrames * kD, 3);

  static View frames(std::vector<float>& x, int64_t first, int64_t count) {
    View view = dense_view(x.data() + first * kD, DType::kF32, {kHeads, count, kD});
    view.stride[0] = kFrames * kD;
    return view;
  }
  static View batch(View view) {
    View whole = dense_view(view.data, DType::kF32, {1, view.shape[0], view.shape[1], view.shape[2]});
    whole.stride = {0, view.stride[0], view.stride[1], 1};
    return whole;
  }
};

TEST(Stream, OfFramesGivesTheBitsOfTheWholeClip) {
  Stream stream;
  Context context(2);
  const SoftmaxOptions options{.causal = true, .window = kWindow, .prefix = kWarmUp};
  std::vector<float> wanted(static_cast<size_t>(kHeads * kFrames * kD)), got = wanted;
  softmax_attention({.q = Stream::batch(Stream::frames(stream.q, 0, kFrames)),
                     .k = Stream::batch(Stream::frames(stream.k, 0, kFrames)),
                     .v = Stream::batch(Stream::frames(stream.v, 0, kFrames))},
                    options, {.out = Stream::batch(Stream::frames(wanted, 0, kFrames))}, context);

  const auto mechanism = registry().make<Operator>(parse_spec("softmax:causal=true,window=16,prefix=8"));
  const auto drop = make_implied_retention(*mechanism);
  const auto store = make_contiguous_store(
      {.layers = 1, .kv_heads = static_cast<int>(kHeads), .d = kD, .dv = kD, .codec = DType::kF32});
  int64_t largest = 0;
  for (int64_t first = 0; first < kFrames;) {
    const int64_t count = first == 0 ? kWarmUp : 1;  // warm-up frames come together
    std::vector<int32_t> positions;
    for (int64_t f = first; f < first + count; ++f) positions.push_back(static_cast<int32_t>(f));
    store->append(0, Stream::frames(stream.k, first, count), Stream::frames(stream.v, first, count), positions);
    std::vector<KeyView> keys;
    for (int h = 0; h < kHeads; ++h) keys.push_back(store->keys(0, h));
    largest = std::max(largest, keys[0].count());
    mechanism->forward({{"q", Stream::batch(Stream::frames(stream.q, first, count))},
                        {"k", std::span<const KeyView>(keys)},
                        {"q_positions", dense_view(positions.data(), DType::kI32, {1, count})}},
                       {{"out", Stream::batch(Stream::frames(got, first, count))}}, Form::kAny, context);
    first += count;
    std::vector<int64_t> slots;
    for (int h = 0; h < kHeads; ++h) {
      const KeyView held = store->keys(0, h);
      drop->choose({.keys = held, .d = kD, .dv = kD, .next_position = first}, slots);
      store->keep(0, h, slots);
    }
  }
  EXPECT_EQ(got, wanted);
  EXPECT_EQ(largest, kWarmUp + kWindow);
}

}  // namespace
}  // namespace attend
