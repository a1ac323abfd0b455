// Micro-kernels of attend_split: products of a few rows with a panel, and packing. See math-inl.h on how it is
// included.
#include <algorithm>
#include <cstring>

namespace attend {
namespace HWY_NAMESPACE {

// 4 vectors a row where there are 32 registers, 2 where there are 16.
#if HWY_TARGET == HWY_AVX2
inline constexpr int kVecs = 2;
#else
inline constexpr int kVecs = 4;
#endif
inline constexpr int64_t kPanelCols = kVecs * kLanes;

// s[r, c] = sum_k q[r, k] panel[k, c], ascending k.
template <int kRows>
HWY_INLINE void score_panel(const float* HWY_RESTRICT q, int64_t d_count, const float* HWY_RESTRICT panel,
                            float* HWY_RESTRICT s, int64_t s_stride) {
  const F32 d;
  Vec acc[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) acc[r][v] = hn::Zero(d);
  for (int64_t k = 0; k < d_count; ++k) {
    Vec b[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) b[v] = hn::LoadU(d, panel + k * kPanelCols + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec a = hn::Set(d, q[r * d_count + k]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) acc[r][v] = hn::MulAdd(a, b[v], acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) hn::StoreU(acc[r][v], d, s + r * s_stride + v * kLanes);
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

// acc[r, 0..N*lanes) += sum_j p[r, j] v[j, ..], ascending j.
template <int kRows, int kCols, class T>
HWY_INLINE void add_values(const float* HWY_RESTRICT p, int64_t p_stride, const T* HWY_RESTRICT values,
                           int64_t v_stride, int64_t count, float* HWY_RESTRICT out, int64_t out_stride) {
  const F32 d;
  Vec acc[kRows][kCols];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kCols; ++v) acc[r][v] = hn::LoadU(d, out + r * out_stride + v * kLanes);
  for (int64_t j = 0; j < count; ++j) {
    Vec b[kCols];
#pragma GCC unroll 8
    for (int v = 0; v < kCols; ++v) b[v] = load_f32(values + j * v_stride + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec a = hn::Set(d, p[r * p_stride + j]);
#pragma GCC unroll 8
      for (int v = 0; v < kCols; ++v) acc[r][v] = hn::MulAdd(a, b[v], acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kCols; ++v) hn::StoreU(acc[r][v], d, out + r * out_stride + v * kLanes);
}

// Four keys at a time, four elements at a time: loads rows, transposes, stores columns.
template <class T>
HWY_INLINE auto load_four(const T* p) {
  const hn::Full128<float> d;
  if constexpr (std::is_same_v<T, float>) {
    return hn::LoadU(d, p);
  } else if constexpr (std::is_same_v<T, F16>) {
    const hn::Rebind<hwy::float16_t, decltype(d)> d16;
    return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(p)));
  } else {
    const hn::Rebind<uint16_t, decltype(d)> d16;
    const hn::RebindToUnsigned<decltype(d)> du;
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(d16, &p->bits))));
  }
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

// panel[k, c] = keys[c, k] for c < count: a transpose, in f32.
template <class T>
HWY_NOINLINE void pack_keys(const T* HWY_RESTRICT keys, int64_t stride, int64_t count, int64_t d_count,
                            float* HWY_RESTRICT panel) {
  const hn::Full128<float> d;
  const hn::RepartitionToWide<decltype(d)> dw;
  int64_t c = 0;
  for (; c + 4 <= count; c += 4) {
    const T *k0 = keys + c * stride, *k1 = k0 + stride, *k2 = k1 + stride, *k3 = k2 + stride;
    int64_t k = 0;
    for (; k + 4 <= d_count; k += 4) {
      const auto r0 = load_four(k0 + k), r1 = load_four(k1 + k), r2 = load_four(k2 + k), r3 = load_four(k3 + k);
      const auto a = hn::BitCast(dw, hn::InterleaveLower(d, r0, r1)),
                 b = hn::BitCast(dw, hn::InterleaveLower(d, r2, r3));
      const auto e = hn::BitCast(dw, hn::InterleaveUpper(d, r0, r1)),
                 f = hn::BitCast(dw, hn::InterleaveUpper(d, r2, r3));
      float* to = panel + k * kPanelCols + c;
      hn::StoreU(hn::BitCast(d, hn::InterleaveLower(dw, a, b)), d, to);
      hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(dw, a, b)), d, to + kPanelCols);
      hn::StoreU(hn::BitCast(d, hn::InterleaveLower(dw, e, f)), d, to + 2 * kPanelCols);
      hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(dw, e, f)), d, to + 3 * kPanelCols);
    }
    for (; k < d_count; ++k) {
      float* to = panel + k * kPanelCols + c;
      to[0] = scalar_f32(k0[k]), to[1] = scalar_f32(k1[k]), to[2] = scalar_f32(k2[k]), to[3] = scalar_f32(k3[k]);
    }
  }
  for (; c < count; ++c)
    for (int64_t k = 0; k < d_count; ++k) panel[k * kPanelCols + c] = scalar_f32(keys[c * stride + k]);
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

}  // namespace HWY_NAMESPACE
}  // namespace attend
