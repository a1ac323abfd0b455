// Decoding a ragged batch: no unit of work is larger than one split, and the bits stay those of every entry alone.
#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <thread>

#include "exact/call.h"

namespace attend {
namespace {

TEST(Schedule, SharesTheLongEntryOfARaggedBatch) {
  constexpr int64_t kBatch = 16, kLongest = 20000;
  test::SmallCall call(kBatch, 1, 1, 1, kLongest, 16, 16);
  std::vector<int32_t> lengths(kBatch, 300);
  lengths[5] = kLongest;
  Qkv in = call.in();
  in.kv_lens = dense_view(lengths.data(), DType::kI32, {kBatch});
  // Both threads meet in the long entry: each waits a while for the other to come.
  std::mutex mutex;
  std::map<std::thread::id, int64_t> keys;
  std::atomic<int> inside{0};
  struct Seen {
    std::mutex& mutex;
    std::map<std::thread::id, int64_t>& keys;
    std::atomic<int>& inside;
  } seen{mutex, keys, inside};
  Hook hook;
  hook.self = &seen;
  hook.run.fill([](void* self, Tile& tile) {
    Seen& s = *static_cast<Seen*>(self);
    if (tile.batch != 5) return;
    EXPECT_LE(tile.cols, 512);
    ++s.inside;
    for (int i = 0; i < 2000 && s.inside < 2; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const std::lock_guard lock(s.mutex);
    s.keys[std::this_thread::get_id()] += tile.cols;
  });
  Context context(2);
  softmax_attention(in, {.causal = true}, call.outputs(), context, {.score = &hook});
  EXPECT_EQ(keys.size(), 2u);
  int64_t all = 0;
  for (const auto& [thread, count] : keys) all += count;
  EXPECT_EQ(all, kLongest);

  const std::vector<float> together = call.out;
  for (int64_t b : {0, 5, 15}) {
    test::SmallCall alone(1, 1, 1, 1, lengths[static_cast<size_t>(b)], 16, 16);
    auto entry = [&](const View& v) {
      View part = v;
      part.data = v.as<float>() + b * v.stride[0];
      part.shape[0] = 1;
      if (v.shape[2] != 1) part.shape[2] = alone.tk;
      return part;
    };
    softmax_attention({.q = entry(in.q), .k = entry(in.k), .v = entry(in.v)}, {.causal = true}, alone.outputs(),
                      context);
    EXPECT_TRUE(std::equal(alone.out.begin(), alone.out.end(), together.begin() + b * 16)) << b;
  }
}

}  // namespace
}  // namespace attend
