// Micro-kernels of attend_split: products of a few rows with a panel, and packing. See math-inl.h on how it is
// included.
#include <algorithm>
#include <cstring>
#include <type_traits>

namespace attend {
namespace HWY_NAMESPACE {

// 4 vectors a row where there are 32 registers, 2 where there are 16.
#if HWY_TARGET == HWY_AVX2
inline constexpr int kVecs = 2;
#else
inline constexpr int kVecs = 4;
#endif

// Sums of a few rows, in registers.
template <int kRows, int kCols>
struct Sums {
  Vec acc[kRows][kCols];

  HWY_INLINE void clear() {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kCols; ++v) acc[r][v] = hn::Zero(F32());
  }
  HWY_INLINE void load(const float* HWY_RESTRICT from, int64_t stride) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kCols; ++v) acc[r][v] = hn::LoadU(F32(), from + r * stride + v * kLanes);
  }
  // Row r += p[r * stride] b.
  HWY_INLINE void add(const float* HWY_RESTRICT p, int64_t stride, const Vec (&b)[kCols]) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec a = hn::Set(F32(), p[r * stride]);
#pragma GCC unroll 8
      for (int v = 0; v < kCols; ++v) acc[r][v] = hn::MulAdd(a, b[v], acc[r][v]);
    }
  }
  HWY_INLINE void store(float* HWY_RESTRICT to, int64_t stride) const {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kCols; ++v) hn::StoreU(acc[r][v], F32(), to + r * stride + v * kLanes);
  }
};

// s[r, c] = sum_k q[r, k] panel[k, c] for kCols vectors of columns, ascending k. Not by Sums: GCC then inlines it
// elsewhere, and decoding on AVX2 loses 2%.
template <int kRows, int kCols>
HWY_INLINE void score_panel(const float* HWY_RESTRICT q, int64_t d_count, const float* HWY_RESTRICT panel,
                            int64_t panel_stride, float* HWY_RESTRICT s, int64_t s_stride) {
  const F32 d;
  Vec acc[kRows][kCols];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kCols; ++v) acc[r][v] = hn::Zero(d);
  for (int64_t k = 0; k < d_count; ++k) {
    Vec b[kCols];
#pragma GCC unroll 8
    for (int v = 0; v < kCols; ++v) b[v] = hn::LoadU(d, panel + k * panel_stride + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec a = hn::Set(d, q[r * d_count + k]);
#pragma GCC unroll 8
      for (int v = 0; v < kCols; ++v) acc[r][v] = hn::MulAdd(a, b[v], acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kCols; ++v) hn::StoreU(acc[r][v], d, s + r * s_stride + v * kLanes);
}

HWY_INLINE Vec load_f32(const float* p) {
  return hn::LoadU(F32(), p);
}
HWY_INLINE Vec load_f32(const F16* p) {
  const hn::Rebind<hwy::float16_t, F32> d16;
  return hn::PromoteTo(F32(), hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(p)));
}
HWY_INLINE Vec load_f32(const BF16* p) {
  const hn::Rebind<uint16_t, I32> d16;
  const hn::RebindToUnsigned<F32> du;
  return hn::BitCast(F32(), hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(d16, &p->bits))));
}

// Rows are too short for hardware prefetchers to see a stream: this many bytes further on are asked for in time, and
// more where a row of plain numbers is read once, so that memory is what one waits for. More lines can be on their way to
// the second cache than to the first, which asks for them when they are near.
inline constexpr int64_t kAheadBytes = 8192, kPlainAheadBytes = 12288, kNearBytes = 2048;

template <class T>
HWY_INLINE void prefetch(const T* p) {
  __builtin_prefetch(p, 0, 3);
}
template <class T>
HWY_INLINE void prefetch_far(const T* p) {
  __builtin_prefetch(p, 0, 2);
}
// For a stream that has come to `p`.
template <int64_t kBytes, class T>
HWY_INLINE void prefetch_stream(const T* p) {
  const char* at = reinterpret_cast<const char*>(p);
  prefetch_far(at + kBytes);
  prefetch(at + kNearBytes);
}

// Where memory is asked for what follows, with the first row, and how much further on with each other.
struct Ahead {
  const uint8_t* at;
  int64_t step;
};

// acc[r, 0..N*lanes) += sum_j p[r, j] v[j, ..], ascending j. kAhead: values come from memory and are prefetched.
template <int kRows, int kCols, bool kAhead, class T>
HWY_INLINE void add_values(const float* HWY_RESTRICT p, int64_t p_stride, const T* HWY_RESTRICT values,
                           int64_t v_stride, int64_t count, float* HWY_RESTRICT out, int64_t out_stride,
                           [[maybe_unused]] Ahead ahead = {}) {
  Sums<kRows, kCols> sums;
  sums.load(out, out_stride);
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  for (int64_t j = 0; j < count; ++j) {
    if constexpr (kAhead)
#pragma GCC unroll 8
      for (int64_t c = 0; c < kCols * kLanes; c += kLine) {
        prefetch_far(ahead.at + j * ahead.step + c * static_cast<int64_t>(sizeof(T)));
        prefetch(values + j * v_stride + c + kNearBytes / static_cast<int64_t>(sizeof(T)));
      }
    Vec b[kCols];
#pragma GCC unroll 8
    for (int v = 0; v < kCols; ++v) b[v] = load_f32(values + j * v_stride + v * kLanes);
    sums.add(p + j, p_stride, b);
  }
  sums.store(out, out_stride);
}

HWY_INLINE float scalar_f32(float x) {
  return x;
}
HWY_INLINE float scalar_f32(F16 x) {
  return to_f32(x);
}
HWY_INLINE float scalar_f32(BF16 x) {
  return to_f32(x);
}

// 16 bytes of each fourth row: block g of the result comes from row 4 g.
template <class T>
HWY_INLINE hn::Vec<hn::Repartition<uint8_t, F32>> load_blocks(const T* p, [[maybe_unused]] int64_t stride) {
#if HWY_TARGET == HWY_AVX2
  auto at = [&](int64_t g) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 4 * g * stride)); };
  return {_mm256_inserti128_si256(_mm256_castsi128_si256(at(0)), at(1), 1)};
#elif ATTEND_AVX512
  auto at = [&](int64_t g) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 4 * g * stride)); };
  __m512i v = _mm512_inserti32x4(_mm512_castsi128_si512(at(0)), at(1), 1);
  v = _mm512_inserti32x4(v, at(2), 2);
  return {_mm512_inserti32x4(v, at(3), 3)};
#else
  return hn::LoadU(hn::Repartition<uint8_t, F32>(), reinterpret_cast<const uint8_t*>(p));
#endif
}

// Columns [0, lanes) of elements [k, k + 16 bytes): rows become lanes, in f32.
template <class T>
HWY_INLINE void transpose_block(const T* rows, int64_t stride, float* HWY_RESTRICT to, int64_t to_stride) {
  const F32 d;
  const hn::Repartition<uint16_t, F32> d16;
  const hn::RebindToUnsigned<F32> d32;
  const hn::Repartition<uint64_t, F32> d64;
  const auto r0 = load_blocks(rows, stride), r1 = load_blocks(rows + stride, stride),
             r2 = load_blocks(rows + 2 * stride, stride), r3 = load_blocks(rows + 3 * stride, stride);
  if constexpr (std::is_same_v<T, float>) {
    auto store_pair = [&](auto low, auto high, float* at) {
      hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, hn::BitCast(d64, low), hn::BitCast(d64, high))), d, at);
      hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, hn::BitCast(d64, low), hn::BitCast(d64, high))), d,
                 at + to_stride);
    };
    const auto f0 = hn::BitCast(d, r0), f1 = hn::BitCast(d, r1), f2 = hn::BitCast(d, r2), f3 = hn::BitCast(d, r3);
    store_pair(hn::InterleaveLower(d, f0, f1), hn::InterleaveLower(d, f2, f3), to);
    store_pair(hn::InterleaveUpper(d, f0, f1), hn::InterleaveUpper(d, f2, f3), to + 2 * to_stride);
  } else {
    // `pair` holds, in each 128-bit block, four keys of one element and then four keys of the next.
    auto store_pair = [&](auto pair, float* at) {
      if constexpr (std::is_same_v<T, BF16>) {
        const auto words = hn::BitCast(d16, pair), zero = hn::Zero(d16);
        hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d16, zero, words)), d, at);
        hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d16, zero, words)), d, at + to_stride);
      } else {
        const hn::Rebind<hwy::float16_t, F32> df16;
        const auto even = hn::ConcatEven(d64, hn::BitCast(d64, pair), hn::BitCast(d64, pair));
        const auto odd = hn::ConcatOdd(d64, hn::BitCast(d64, pair), hn::BitCast(d64, pair));
        hn::StoreU(hn::PromoteTo(d, hn::BitCast(df16, hn::LowerHalf(hn::BitCast(d16, even)))), d, at);
        hn::StoreU(hn::PromoteTo(d, hn::BitCast(df16, hn::LowerHalf(hn::BitCast(d16, odd)))), d, at + to_stride);
      }
    };
    auto words = [&](auto v) { return hn::BitCast(d16, v); };
    auto pairs = [&](auto v) { return hn::BitCast(d32, v); };
    const auto a = pairs(hn::InterleaveLower(d16, words(r0), words(r1))),
               b = pairs(hn::InterleaveLower(d16, words(r2), words(r3))),
               e = pairs(hn::InterleaveUpper(d16, words(r0), words(r1))),
               f = pairs(hn::InterleaveUpper(d16, words(r2), words(r3)));
    store_pair(hn::InterleaveLower(d32, a, b), to);
    store_pair(hn::InterleaveUpper(d32, a, b), to + 2 * to_stride);
    store_pair(hn::InterleaveLower(d32, e, f), to + 4 * to_stride);
    store_pair(hn::InterleaveUpper(d32, e, f), to + 6 * to_stride);
  }
}

// panel[k, c] = keys[c, k] for the `kLanes` keys from `keys` on.
template <class T>
HWY_INLINE void pack_lanes(const T* HWY_RESTRICT keys, int64_t stride, int64_t d_count, float* HWY_RESTRICT panel,
                           int64_t panel_stride) {
  constexpr int64_t kStep = 16 / static_cast<int64_t>(sizeof(T));
  int64_t k = 0;
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  const T* next = keys;
  for (; k + kStep <= d_count; k += kStep) {
    // 1/4 of the lines of these rows a step.
    for (int64_t r = 0; r < kLanes / (kLine / kStep); ++r, next += kLine) prefetch_stream<kAheadBytes>(next);
    transpose_block(keys + k, stride, panel + k * panel_stride, panel_stride);
  }
  for (; k < d_count; ++k)
    for (int64_t c = 0; c < kLanes; ++c) panel[k * panel_stride + c] = scalar_f32(keys[c * stride + k]);
}

// panel[k, c] = keys[c, k] for c < count: a transpose, in f32.
template <class T>
HWY_NOINLINE void pack_keys(const T* HWY_RESTRICT keys, int64_t stride, int64_t count, int64_t d_count,
                            float* HWY_RESTRICT panel, int64_t panel_stride) {
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) pack_lanes(keys + c * stride, stride, d_count, panel + c, panel_stride);
  if (c == count) return;
  // The last few keys through copies with room around them.
  T rows[kLanes * 512];
  float lanes[kLanes * 512];
  for (int64_t r = 0; r < kLanes; ++r)
    std::copy_n(keys + (c + std::min(r, count - c - 1)) * stride, d_count, rows + r * d_count);
  pack_lanes(rows, d_count, d_count, lanes, kLanes);
  for (int64_t k = 0; k < d_count; ++k) std::copy_n(lanes + k * kLanes, count - c, panel + k * panel_stride + c);
}

// Rows of values as f32, padded with zeros to `padded` elements.
template <class T>
HWY_NOINLINE void pack_values(const T* HWY_RESTRICT values, int64_t stride, int64_t count, int64_t dv, int64_t padded,
                              float* HWY_RESTRICT out) {
  for (int64_t j = 0; j < count; ++j) {
    const T* row = values + j * stride;
    float* to = out + j * padded;
    int64_t c = 0;
    for (; c + kLanes <= dv; c += kLanes) hn::StoreU(load_f32(row + c), F32(), to + c);
    for (; c < dv; ++c) to[c] = scalar_f32(row[c]);
    for (; c < padded; ++c) to[c] = 0;
  }
}

// f(std::integral_constant<int, rows>) for 1 <= rows <= 6.
template <class F>
HWY_INLINE void for_rows(int rows, F f) {
  switch (rows) {
    case 6:
      return f(std::integral_constant<int, 6>());
    case 5:
      return f(std::integral_constant<int, 5>());
    case 4:
      return f(std::integral_constant<int, 4>());
    case 3:
      return f(std::integral_constant<int, 3>());
    case 2:
      return f(std::integral_constant<int, 2>());
    default:
      return f(std::integral_constant<int, 1>());
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace attend
