// Scores of coded bounds against what the codes stand for, in double.
#include "sparse/page_codes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "attend/simd/isa.h"
#include "sparse/large_pages.h"

namespace attend {
namespace {

constexpr int64_t kGroups = 11;

struct Bounds {
  std::vector<float> least, largest;  // [groups, d, 32]

  Bounds(int64_t d, std::mt19937& random) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < kGroups; ++i)
      for (int64_t c = 0; c < d; ++c) {
        const float deviation = 0.1f + static_cast<float>(c % 7), offset = 5 * normal(random);
        for (int64_t p = 0; p < kCodedPages; ++p) {
          const float x = offset + deviation * normal(random);
          least.push_back(x);
          largest.push_back(x + std::fabs(normal(random)));
        }
      }
  }
  size_t at(int64_t d, int64_t group, int64_t c, int64_t page) const {
    return static_cast<size_t>((group * d + c) * kCodedPages + page);
  }
};

LargeVector<std::byte> written(const PageCodes& codes, const Bounds& bounds, int64_t d) {
  LargeVector<std::byte> to(static_cast<size_t>(kGroups * codes.bytes()));
  for (int64_t i = 0; i < kGroups; ++i)
    codes.write(bounds.least.data() + i * d * kCodedPages, bounds.largest.data() + i * d * kCodedPages,
                to.data() + i * codes.bytes());
  return to;
}

TEST(PageCodes, ScoresLieAboveThoseOfTheBoundsByAStepAtMost) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (int64_t d : {1, 7, 16, 64, 80, 129, 512})
    for (int64_t group : {1, 4, 5}) {
      const Bounds bounds(d, random);
      std::vector<float> q(static_cast<size_t>(group * d));
      for (float& x : q) x = normal(random);
      std::vector<float> first;
      for (const IsaInfo& info : isa_list()) {
        if (!info.usable) continue;
        SCOPED_TRACE(testing::Message() << name_of(info.isa) << " d " << d << " group " << group << " seed 3");
        const PageCodes codes(d, info.isa);
        const LargeVector<std::byte> coded = written(codes, bounds, d);
        const int64_t stride = kGroups * kCodedPages;
        std::vector<float> scores(static_cast<size_t>(group * stride), -1e30f);
        PageCodes::Scratch scratch;
        codes.scores(coded.data(), kGroups, q.data(), group, scores.data(), stride, scratch);
        if (first.empty()) first = scores;
        EXPECT_EQ(scores, first) << "integers are the same everywhere";
        for (int64_t g = 0; g < group; ++g)
          for (int64_t i = 0; i < kGroups; ++i) {
            double moves = 0, widest = 0, most = 0, norm = 0;
            for (int64_t c = 0; c < d; ++c) {
              const auto from = bounds.least.begin() + static_cast<std::ptrdiff_t>(bounds.at(d, i, c, 0));
              const auto to = bounds.largest.begin() + static_cast<std::ptrdiff_t>(bounds.at(d, i, c, 0));
              const double low = static_cast<double>(*std::min_element(from, from + kCodedPages));
              const double step = (static_cast<double>(*std::max_element(to, to + kCodedPages)) - low) / 255;
              const double x = std::fabs(static_cast<double>(q[static_cast<size_t>(g * d + c)]));
              moves += x * step, norm += x * (std::fabs(low) + 255 * step);
              widest = std::max(widest, step), most = std::max(most, x);
            }
            // Half a unit of a factor a channel, times a byte; sums of d numbers in f32.
            const double rounding =
                static_cast<double>(d) * 0.5 * 255 * widest * most /
                    std::min(32639.0, std::floor(2147483647.0 / 255 / static_cast<double>(d + d % 2))) +
                static_cast<double>(d + 8) * std::ldexp(norm, -23);
            for (int64_t p = 0; p < kCodedPages; ++p) {
              double bound = 0;
              for (int64_t c = 0; c < d; ++c) {
                const double x = static_cast<double>(q[static_cast<size_t>(g * d + c)]);
                const size_t at = bounds.at(d, i, c, p);
                bound +=
                    std::max(x * static_cast<double>(bounds.least[at]), x * static_cast<double>(bounds.largest[at]));
              }
              const double score = static_cast<double>(scores[static_cast<size_t>(g * stride + i * kCodedPages + p)]);
              ASSERT_GE(score, bound - rounding) << i << " " << p;
              ASSERT_LE(score, bound + moves + rounding) << i << " " << p;
            }
          }
      }
    }
}

TEST(PageCodes, WhatIsNotFiniteIsNotANumberAndStaysWhereItIs) {
  constexpr int64_t kD = 20;
  std::mt19937 random(4);
  Bounds bounds(kD, random);
  bounds.largest[bounds.at(kD, 2, 3, 5)] = std::numeric_limits<float>::infinity();
  bounds.least[bounds.at(kD, 4, 0, 0)] = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> q(3 * kD, 0.5f);
  std::fill_n(q.begin() + kD, kD, 0.0f);
  q[2 * kD + 1] = -std::numeric_limits<float>::infinity();
  for (const IsaInfo& info : isa_list()) {
    if (!info.usable) continue;
    SCOPED_TRACE(name_of(info.isa));
    const PageCodes codes(kD, info.isa);
    const LargeVector<std::byte> coded = written(codes, bounds, kD);
    constexpr int64_t kStride = kGroups * kCodedPages;
    std::vector<float> scores(3 * kStride);
    PageCodes::Scratch scratch;
    codes.scores(coded.data(), kGroups, q.data(), 3, scores.data(), kStride, scratch);
    for (int64_t i = 0; i < kGroups; ++i)
      for (int64_t p = 0; p < kCodedPages; ++p) {
        const auto at = static_cast<size_t>(i * kCodedPages + p);
        EXPECT_EQ(std::isnan(scores[at]), i == 2 || i == 4) << i;
        if (i != 2 && i != 4) {
          EXPECT_EQ(scores[kStride + at], 0) << "of a query of zeros";
        }
        EXPECT_TRUE(std::isnan(scores[2 * kStride + at]));
      }
  }
}

}  // namespace
}  // namespace attend
