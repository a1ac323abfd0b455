#include "attend/tensor/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace attend {
namespace {

TEST(Parallel, RunsEveryIndexOnce) {
  for (int threads : {1, 2, 3, 8})
    for (int64_t count : {0, 1, 2, 7, 1000})
      for (int repeat = 0; repeat < 50; ++repeat) {
        std::vector<int> done(static_cast<size_t>(count));
        std::vector<std::atomic<int>> inside(static_cast<size_t>(threads));
        std::atomic<bool> good = true;
        parallel_for(threads, count, [&](int64_t i, int worker) {
          if (worker < 0 || worker >= threads || inside[static_cast<size_t>(worker)]++) good = false;
          ++done[static_cast<size_t>(i)];
          --inside[static_cast<size_t>(worker)];
        });
        ASSERT_TRUE(good);
        for (int n : done) ASSERT_EQ(n, 1);
      }
}

#if defined(__x86_64__)
TEST(Parallel, DenormalsAreZeroInTasksOnly) {
  volatile float small = 1e-38f;
  for (int threads : {1, 3}) {
    std::atomic<int> zeros = 0;
    parallel_for(threads, 100, [&](int64_t, int) {
      const float tenth = small * 0.1f;
      if (tenth == 0) ++zeros;
    });
    EXPECT_EQ(zeros, 100);
    const float tenth = small * 0.1f;
    EXPECT_GT(tenth, 0);
  }
}
#endif

TEST(Parallel, ManySmallJobsSeeEachOthersWrites) {
  std::vector<int64_t> values(64, 0);
  for (int job = 0; job < 20000; ++job)
    parallel_for(3, 64, [&](int64_t i, int) { values[static_cast<size_t>(i)] += job; });
  for (int64_t v : values) EXPECT_EQ(v, int64_t{20000} * 19999 / 2);
}

TEST(Parallel, NestedAndConcurrentCallsFinish) {
  std::atomic<int64_t> total = 0;
  auto work = [&] {
    for (int job = 0; job < 200; ++job)
      parallel_for(3, 4, [&](int64_t, int) { parallel_for(3, 4, [&](int64_t i, int) { total += i; }); });
  };
  std::thread other(work);
  work();
  other.join();
  EXPECT_EQ(total, 2 * 200 * 4 * 6);
}

}  // namespace
}  // namespace attend
