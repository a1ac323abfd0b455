// The largest scores against a sort.
#include "sparse/largest.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "attend/simd/isa.h"

namespace attend {
namespace {

TEST(Largest, AreThoseOfASort) {
  std::mt19937 random(1);
  for (const IsaInfo& info : isa_list()) {
    if (!info.usable) continue;
    for (int64_t n : {1, 7, 64, 1000, 200'000}) {
      SCOPED_TRACE(testing::Message() << name_of(info.isa) << " " << n);
      std::vector<float> x(static_cast<size_t>(n));
      // Few values, so that many are equal; both signs, infinities and zeros.
      for (float& e : x) e = static_cast<float>(static_cast<int>(random() % 19) - 9) * 0.25f;
      x[0] = -INFINITY, x.back() = INFINITY;
      std::vector<int64_t> order(x.size());
      std::iota(order.begin(), order.end(), 0);
      std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        const float u = x[static_cast<size_t>(a)], v = x[static_cast<size_t>(b)];
        return u != v ? u > v : a > b;
      });
      std::vector<int32_t> scratch;
      std::vector<int64_t> chosen;
      for (int64_t k : {int64_t{0}, int64_t{1}, n / 3, n - 1, n}) {
        largest(x, k, info.isa, scratch, chosen);
        std::vector<int64_t> wanted(order.begin(), order.begin() + k);
        std::sort(wanted.begin(), wanted.end());
        EXPECT_EQ(chosen, wanted) << k;
      }
    }
  }
}

}  // namespace
}  // namespace attend
