// Keys by channel, q4_c and q2_c (attend/tensor/quantised_row.h), as operands of the micro-kernels: integer x scale +
// offset, rounded once, so that every path gives the bits of the same keys stored as f32. See math-inl.h on how it is
// included; after quantised-inl.h.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "attend/tensor/key_view.h"

namespace attend {
namespace HWY_NAMESPACE {

// Rows of one group, from one on.
template <DType kType>
struct ChannelRows {
  const uint8_t* data;
  int64_t width;  // elements of a row
  const F16 *scale, *offset;

  ChannelRows(const RowRun& run, int64_t row, int64_t elements)
      : data(static_cast<const uint8_t*>(run.row(row))), width(elements), scale(run.scale), offset(run.offset) {}
  ChannelRows operator+(int64_t bytes) const {
    ChannelRows rows = *this;
    rows.data += bytes;
    return rows;
  }
};

// The low bits of each lane.
template <int kBits>
HWY_INLINE Vec low_bits(hn::Vec<hn::RebindToUnsigned<F32>> word) {
#if ATTEND_AVX512
  return look_up(index_values(kBits), word);
#else
  const hn::RebindToUnsigned<F32> du;
  return hn::ConvertTo(F32(), hn::BitCast(I32(), hn::And(word, hn::Set(du, (1u << kBits) - 1))));
#endif
}

// As pack_values of plain rows: for what takes keys row by row.
template <DType kType>
HWY_NOINLINE void pack_values(ChannelRows<kType> keys, int64_t stride, int64_t count, int64_t d_count, int64_t padded,
                              float* HWY_RESTRICT out) {
  const F32 d;
  constexpr int kBits = code_bits(kType);
  for (int64_t c = 0; c < d_count; c += kLanes) {
    const Vec scale = load_f32(keys.scale + c), offset = load_f32(keys.offset + c);
    const int64_t at = kBits == 4 ? c / 32 * 16 + c % 16 : c / 4;
    for (int64_t j = 0; j < count; ++j) {
      const uint8_t* p = keys.data + j * stride + at;
      float* to = out + j * padded + c;
      if constexpr (kBits == 2) {
        hn::StoreU(hn::MulAdd(low_bits<2>(load_twos(p)), scale, offset), d, to);
      } else {
        const auto bytes = load_bytes(p);
        hn::StoreU(hn::MulAdd(low_bits<4>(c % 32 >= 16 ? hn::ShiftRight<4>(bytes) : bytes), scale, offset), d, to);
      }
    }
  }
}

// The integers at bit kBit of each word, of one channel, as a row of a panel.
template <int kBits, int kBit>
HWY_INLINE void store_channel(hn::Vec<hn::RebindToUnsigned<F32>> word, const float* HWY_RESTRICT scale,
                              const float* HWY_RESTRICT offset, float* HWY_RESTRICT to) {
  const F32 d;
  const auto q = kBit == 0 ? word : hn::ShiftRight<kBit>(word);
  hn::StoreU(hn::MulAdd(low_bits<kBits>(q), hn::Set(d, *scale), hn::Set(d, *offset)), d, to);
}

// The channels of a word of each row as rows of a panel: 4 and, 16 further, 4 more of four bits, 16 of two.
template <int kBits, class Stride>
HWY_INLINE void store_channels(hn::Vec<hn::RebindToUnsigned<F32>> word, const float* HWY_RESTRICT scale,
                               const float* HWY_RESTRICT offset, float* HWY_RESTRICT to, Stride stride) {
  if constexpr (kBits == 4) {
    auto pair = [&](auto i) {
      constexpr int k = decltype(i)::value;
      store_channel<4, 8 * k>(word, scale + k, offset + k, to + k * stride);
      store_channel<4, 8 * k + 4>(word, scale + k + 16, offset + k + 16, to + (k + 16) * stride);
    };
    pair(std::integral_constant<int, 0>()), pair(std::integral_constant<int, 1>());
    pair(std::integral_constant<int, 2>()), pair(std::integral_constant<int, 3>());
  } else {
    auto four = [&](auto i) {
      constexpr int k = 4 * decltype(i)::value;
      store_channel<2, 2 * k>(word, scale + k, offset + k, to + k * stride);
      store_channel<2, 2 * k + 2>(word, scale + k + 1, offset + k + 1, to + (k + 1) * stride);
      store_channel<2, 2 * k + 4>(word, scale + k + 2, offset + k + 2, to + (k + 2) * stride);
      store_channel<2, 2 * k + 6>(word, scale + k + 3, offset + k + 3, to + (k + 3) * stride);
    };
    four(std::integral_constant<int, 0>()), four(std::integral_constant<int, 1>());
    four(std::integral_constant<int, 2>()), four(std::integral_constant<int, 3>());
  }
}

// panel[k, c] = keys[c, k] for the `kLanes` keys from `rows` on, whose rows have at least 16 bytes.
template <bool kAhead, DType kType, class Stride>
HWY_INLINE void pack_channel_lanes(const uint8_t* HWY_RESTRICT rows, int64_t stride, int64_t bytes,
                                   const float* HWY_RESTRICT scale, const float* HWY_RESTRICT offset,
                                   float* HWY_RESTRICT panel, Stride panel_stride) {
  constexpr int kBits = code_bits(kType);
  for (int64_t next = 0; next < bytes; next += 16) {
    // The last 16 bytes may overlap those before: all lie inside their row.
    const int64_t at = std::min(next, bytes - 16), first = at * 8 / kBits;
    if constexpr (kAhead)
      for (int64_t line = 0; line < kLanes * 16; line += 64) prefetch_stream<kAheadBytes>(rows + kLanes * at + line);
    const Words w = transpose_words(rows + at, stride);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int64_t k = first + i * (kBits == 4 ? 4 : 16);
      store_channels<kBits>(w.word[i], scale + k, offset + k, panel + k * panel_stride, panel_stride);
    }
  }
}

// As pack_keys of plain rows.
template <DType kType>
HWY_NOINLINE void pack_keys(ChannelRows<kType> keys, int64_t stride, int64_t count, int64_t d_count,
                            float* HWY_RESTRICT panel, int64_t panel_stride) {
  constexpr int64_t kMost = 512;
  HWY_ALIGN float scale[kMost];
  HWY_ALIGN float offset[kMost];
  for (int64_t k = 0; k < d_count; k += kLanes) {
    hn::StoreU(load_f32(keys.scale + k), F32(), scale + k);
    hn::StoreU(load_f32(keys.offset + k), F32(), offset + k);
  }
  // Those of the group after the next.
  for (int64_t k = 0; k < 2 * d_count; k += 32)
    prefetch(keys.scale + 2 * d_count + k), prefetch(keys.offset + 2 * d_count + k);
  const int64_t bytes = row_bytes(kType, d_count);
  int64_t c = 0;
  auto pack = [&](auto known) {
    for (; c + kLanes <= count; c += kLanes)
      pack_channel_lanes<true, kType>(keys.data + c * stride, stride, bytes, scale, offset, panel + c, known);
  };
  if (bytes >= 16) {
    if (panel_stride == kVecs * kLanes) {
      pack(std::integral_constant<int64_t, kVecs * kLanes>());
    } else if (panel_stride == 2 * kLanes) {
      pack(std::integral_constant<int64_t, 2 * kLanes>());
    } else {
      pack(panel_stride);
    }
  }
  // Short rows, and the last few keys, through copies with room around them.
  const int64_t room = std::max<int64_t>(bytes, 16);
  uint8_t rows[kLanes * row_bytes(kType, kMost)];
  float lanes[kLanes * kMost];
  if (bytes < room) {
    std::fill_n(rows, kLanes * room, uint8_t{0});
    std::fill_n(scale + d_count, (room - bytes) * 8 / code_bits(kType), 0.0f);
    std::fill_n(offset + d_count, (room - bytes) * 8 / code_bits(kType), 0.0f);
  }
  for (; c < count; c += kLanes) {
    for (int64_t r = 0; r < kLanes; ++r)
      std::memcpy(rows + r * room, keys.data + (c + std::min(r, count - c - 1)) * stride, static_cast<size_t>(bytes));
    pack_channel_lanes<false, kType>(rows, room, room, scale, offset, lanes, std::integral_constant<int64_t, kLanes>());
    const int64_t n = std::min<int64_t>(kLanes, count - c);
    for (int64_t k = 0; k < d_count; ++k) std::copy_n(lanes + k * kLanes, n, panel + k * panel_stride + c);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace attend
