#include "sparse/page_codes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "attend/simd/hook.h"
#include "sparse/fixed_dot.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace attend {
namespace {

constexpr int64_t kLine = 64;

// Of a group: the widest channel's step in a line of its own, [2, d]: what a byte of 0 stands for, and a step as a part
// of that; then for each pair of channels and each page four bytes: least and largest of one, least and largest of the
// other.
struct Layout {
  const float *widest, *low, *part;
  const uint32_t* pairs;

  Layout(const std::byte* group, int64_t padded) {
    widest = reinterpret_cast<const float*>(group);
    low = widest + kLine / sizeof(float);
    part = low + padded;
    pairs = reinterpret_cast<const uint32_t*>(group + header(padded));
  }
  static int64_t header(int64_t padded) {
    return kLine + (2 * padded * static_cast<int64_t>(sizeof(float)) + kLine - 1) / kLine * kLine;
  }
};

// Factors have 16 bits: 256 times a signed byte and another. They are smaller where sums would not fit 32 bits.
constexpr int64_t kMostFactor = 127 * 256 + 127;

struct Query {
  const float *q, *scaled;  // [d]; scaled: times most / largest |q|
  const int32_t* shift;     // [d]: 8 where the largest bound counts, 0 where the least does
  float unit;               // of a sum of products, where the widest step is 1
  int64_t d, padded;
};

// sum[p] = sum over channels of factor times byte, of 32 pages.
struct Plain {
  [[gnu::always_inline]] static inline void sums(const Layout& group, const Query& query, int32_t* factor, uint32_t*,
                                                 int32_t* sum) {
#pragma omp simd
    for (int64_t c = 0; c < query.padded; ++c) {
      const float x = query.scaled[c] * group.part[c];
      factor[c] = static_cast<int32_t>(x + (x > 0 ? 0.5f : -0.5f));
    }
    for (int64_t p = 0; p < kCodedPages; ++p) sum[p] = 0;
    for (int64_t c = 0; c < query.padded; c += 2) {
      const uint32_t* pairs = group.pairs + c / 2 * kCodedPages;
      const int32_t x = factor[c], y = factor[c + 1], first = query.shift[c], second = 16 + query.shift[c + 1];
#pragma omp simd
      for (int64_t p = 0; p < kCodedPages; ++p)
        sum[p] +=
            x * static_cast<int32_t>(pairs[p] >> first & 255) + y * static_cast<int32_t>(pairs[p] >> second & 255);
    }
  }
};

// `ahead`: as many bytes are asked for of the groups that follow these.
template <class Sums>
[[gnu::always_inline]] inline void score_loop(const std::byte* codes, int64_t groups, int64_t bytes, const Query& query,
                                              int64_t ahead, int32_t* factor, uint32_t* words, float* scores) {
  for (int64_t i = 0; i < groups; ++i, codes += bytes, scores += kCodedPages) {
    for (int64_t line = 0; line < ahead; line += kLine) __builtin_prefetch(codes + groups * bytes + line);
    const Layout group(codes, query.padded);
    const float base = fixed_dot(query.q, group.low, query.d);
    alignas(64) int32_t sum[kCodedPages];
    Sums::sums(group, query, factor, words, sum);
    const float unit = query.unit * *group.widest;
#pragma omp simd
    for (int64_t p = 0; p < kCodedPages; ++p) scores[p] = base + unit * static_cast<float>(sum[p]);
  }
}

using Loop = void (*)(const std::byte*, int64_t, int64_t, const Query&, int64_t, int32_t*, uint32_t*, float*);

ATTEND_TARGET_AVX2 void loop_avx2(const std::byte* codes, int64_t groups, int64_t bytes, const Query& query,
                                  int64_t ahead, int32_t* factor, uint32_t* words, float* scores) {
  score_loop<Plain>(codes, groups, bytes, query, ahead, factor, words, scores);
}
ATTEND_TARGET_AVX512 void loop_avx512(const std::byte* codes, int64_t groups, int64_t bytes, const Query& query,
                                      int64_t ahead, int32_t* factor, uint32_t* words, float* scores) {
  score_loop<Plain>(codes, groups, bytes, query, ahead, factor, words, scores);
}

#if defined(__x86_64__)
#define ATTEND_TARGET_VNNI [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,bmi,bmi2")]]

// Four products of a byte of bounds with a signed byte of a factor join a sum at once. Of a channel's two bounds one
// has a factor of 0.
struct Vnni {
  ATTEND_TARGET_VNNI static void sums(const Layout& group, const Query& query, int32_t*, uint32_t* words,
                                      int32_t* sum) {
    auto* high = reinterpret_cast<uint16_t*>(words);
    uint16_t* low = high + query.padded;
#pragma omp simd
    for (int64_t c = 0; c < query.padded; ++c) {
      const float x = query.scaled[c] * group.part[c];
      const int32_t factor = static_cast<int32_t>(x + (x > 0 ? 0.5f : -0.5f)), upper = (factor + 128) >> 8;
      high[c] = static_cast<uint16_t>((upper & 255) << query.shift[c]);
      low[c] = static_cast<uint16_t>((factor & 255) << query.shift[c]);
    }
    const auto* codes = reinterpret_cast<const __m512i*>(group.pairs);
    // Two chains, for one would wait for itself.
    __m512i high0 = _mm512_setzero_si512(), high1 = high0, low0 = high0, low1 = high0;
    __m512i high2 = high0, high3 = high0, low2 = high0, low3 = high0;
    const int64_t pairs = query.padded / 2;
    const uint32_t *upper_words = words, *lower_words = words + pairs;
    int64_t pair = 0;
    for (; pair + 2 <= pairs; pair += 2) {
      const __m512i first = _mm512_load_si512(codes + 2 * pair), second = _mm512_load_si512(codes + 2 * pair + 1);
      const __m512i third = _mm512_load_si512(codes + 2 * pair + 2), fourth = _mm512_load_si512(codes + 2 * pair + 3);
      const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(upper_words[pair]));
      const __m512i lower = _mm512_set1_epi32(static_cast<int32_t>(lower_words[pair]));
      const __m512i next_upper = _mm512_set1_epi32(static_cast<int32_t>(upper_words[pair + 1]));
      const __m512i next_lower = _mm512_set1_epi32(static_cast<int32_t>(lower_words[pair + 1]));
      high0 = _mm512_dpbusd_epi32(high0, first, upper), high1 = _mm512_dpbusd_epi32(high1, second, upper);
      low0 = _mm512_dpbusd_epi32(low0, first, lower), low1 = _mm512_dpbusd_epi32(low1, second, lower);
      high2 = _mm512_dpbusd_epi32(high2, third, next_upper), high3 = _mm512_dpbusd_epi32(high3, fourth, next_upper);
      low2 = _mm512_dpbusd_epi32(low2, third, next_lower), low3 = _mm512_dpbusd_epi32(low3, fourth, next_lower);
    }
    if (pair < pairs) {
      const __m512i first = _mm512_load_si512(codes + 2 * pair), second = _mm512_load_si512(codes + 2 * pair + 1);
      const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(upper_words[pair]));
      const __m512i lower = _mm512_set1_epi32(static_cast<int32_t>(lower_words[pair]));
      high0 = _mm512_dpbusd_epi32(high0, first, upper), high1 = _mm512_dpbusd_epi32(high1, second, upper);
      low0 = _mm512_dpbusd_epi32(low0, first, lower), low1 = _mm512_dpbusd_epi32(low1, second, lower);
    }
    alignas(64) int32_t upper_sum[kCodedPages];
    _mm512_store_si512(upper_sum, _mm512_add_epi32(high0, high2));
    _mm512_store_si512(upper_sum + 16, _mm512_add_epi32(high1, high3));
    _mm512_store_si512(sum, _mm512_add_epi32(low0, low2));
    _mm512_store_si512(sum + 16, _mm512_add_epi32(low1, low3));
#pragma omp simd
    for (int64_t p = 0; p < kCodedPages; ++p) sum[p] += 256 * upper_sum[p];
  }
};
ATTEND_TARGET_VNNI void loop_vnni(const std::byte* codes, int64_t groups, int64_t bytes, const Query& query,
                                  int64_t ahead, int32_t* factor, uint32_t* words, float* scores) {
  score_loop<Vnni>(codes, groups, bytes, query, ahead, factor, words, scores);
}
#endif

Loop loop_of(Isa isa) {
#if defined(__x86_64__)
  if (has_avx512(isa) && isa != Isa::kAvx512) return loop_vnni;
#endif
  return isa == Isa::kAvx2 ? loop_avx2 : loop_avx512;
}

uint8_t to_byte(float x) {
  return x > 0 ? static_cast<uint8_t>(std::min(x, 255.0f)) : uint8_t{0};
}

}  // namespace

PageCodes::PageCodes(int64_t d, Isa isa)
    : d_(d),
      padded_((d + 1) / 2 * 2),
      bytes_(Layout::header(padded_) + padded_ / 2 * kCodedPages * static_cast<int64_t>(sizeof(uint32_t))),
      isa_(isa) {}

void PageCodes::write(const float* least, const float* largest, std::byte* to) const {
  std::memset(to, 0, static_cast<size_t>(bytes_));
  auto* widest = reinterpret_cast<float*>(to);
  float *low = widest + kLine / sizeof(float), *part = low + padded_;
  auto* bytes = reinterpret_cast<uint8_t*>(to + Layout::header(padded_));
  bool finite = true;
  for (int64_t c = 0; c < d_; ++c, least += kCodedPages, largest += kCodedPages) {
    low[c] = *std::min_element(least, least + kCodedPages);
    const float step = (*std::max_element(largest, largest + kCodedPages) - low[c]) / 255;
    const float per_step = step > 0 ? 1 / step : 0;
    part[c] = step;
    *widest = std::max(*widest, step);
    for (int64_t p = 0; p < kCodedPages; ++p) {
      finite = finite && std::isfinite(least[p]) && std::isfinite(largest[p]);
      uint8_t* pair = bytes + (c / 2 * kCodedPages + p) * 4 + c % 2 * 2;
      pair[0] = to_byte(std::floor((least[p] - low[c]) * per_step));
      pair[1] = to_byte(std::ceil((largest[p] - low[c]) * per_step));
    }
  }
  finite = finite && std::isfinite(*widest);
  for (int64_t c = 0; c < d_; ++c) part[c] = finite && *widest > 0 ? part[c] / *widest : 0.0f;
  if (!finite) *widest = std::numeric_limits<float>::quiet_NaN();
}

void PageCodes::scores(const std::byte* codes, int64_t groups, const float* q, int64_t group, float* scores,
                       int64_t stride, Scratch& scratch) const {
  constexpr int64_t kAtOnce = 4;  // groups, that heads read from the first-level cache
  const auto most = static_cast<float>(std::min(kMostFactor, int64_t{INT32_MAX} / (255 * padded_)));
  scratch.scaled.assign(static_cast<size_t>(group * padded_), 0.0f);
  scratch.shift.assign(static_cast<size_t>(group * padded_), 0);
  scratch.unit.resize(static_cast<size_t>(group));
  scratch.factor.resize(static_cast<size_t>(padded_));
  scratch.words.resize(static_cast<size_t>(padded_));
  for (int64_t g = 0; g < group; ++g) {
    const float* x = q + g * d_;
    float largest = 0, zero = 0;  // NaN where something is not finite
    for (int64_t c = 0; c < d_; ++c) largest = std::max(largest, std::fabs(x[c])), zero += x[c] * 0;
    const float factor = zero == 0 && largest > std::numeric_limits<float>::min() ? most / largest : 0.0f;
    scratch.unit[static_cast<size_t>(g)] = largest / most + zero;
    for (int64_t c = 0; factor > 0 && c < d_; ++c) {
      scratch.scaled[static_cast<size_t>(g * padded_ + c)] = x[c] * factor;
      scratch.shift[static_cast<size_t>(g * padded_ + c)] = x[c] > 0 ? 8 : 0;
    }
  }
  const Loop loop = loop_of(isa_);
  for (int64_t first = 0; first < groups; first += kAtOnce) {
    const int64_t count = std::min(kAtOnce, groups - first);
    for (int64_t g = 0; g < group; ++g)
      loop(codes + first * bytes_, count, bytes_,
           {.q = q + g * d_,
            .scaled = scratch.scaled.data() + g * padded_,
            .shift = scratch.shift.data() + g * padded_,
            .unit = scratch.unit[static_cast<size_t>(g)],
            .d = d_,
            .padded = padded_},
           g == 0 && first + 2 * kAtOnce <= groups ? bytes_ : 0, scratch.factor.data(), scratch.words.data(),
           scores + g * stride + first * kCodedPages);
  }
}

}  // namespace attend
