// Rows of quantised blocks (attend/tensor/quantised_row.h) as operands of the micro-kernels. What is read is integer x
// scale, exact in f32, or that plus an offset, rounded once: so every path gives the bits of the same keys stored as
// f32. See math-inl.h on how it is included; after micro-inl.h.
#include <cstring>
#include <type_traits>

namespace attend {
namespace HWY_NAMESPACE {

// Rows from one on, and the first column wanted.
template <DType kType>
struct CodedRows {
  const uint8_t* data;
  int64_t width;  // elements of a row
  int64_t column = 0;
  CodedRows operator+(int64_t bytes) const { return {data + bytes, width, column}; }
};

template <class T>
HWY_INLINE const T* from_column(const T* rows, int64_t column) {
  return rows + column;
}
template <DType kType>
HWY_INLINE CodedRows<kType> from_column(CodedRows<kType> rows, int64_t column) {
  return {rows.data, rows.width, rows.column + column};
}

template <class T>
const uint8_t* first_byte(const T* rows) {
  return reinterpret_cast<const uint8_t*>(rows);
}
template <DType kType>
const uint8_t* first_byte(CodedRows<kType> rows) {
  return rows.data;
}

template <class T>
constexpr DType type_of(const T*) {
  return std::is_same_v<T, float> ? DType::kF32 : std::is_same_v<T, F16> ? DType::kF16 : DType::kBF16;
}
template <DType kType>
constexpr DType type_of(CodedRows<kType>) {
  return kType;
}

// From a row to the next.
template <class T>
int64_t bytes_of_stride(const T*, int64_t stride) {
  return stride * static_cast<int64_t>(sizeof(T));
}
template <DType kType>
int64_t bytes_of_stride(CodedRows<kType>, int64_t stride) {
  return stride;
}

// Of a row of `elements`: where its scales begin.
template <DType kType>
constexpr int64_t integer_bytes(int64_t elements) {
  return elements * code_bits(kType) / 8;
}

// Whether values of blocks have an offset.
template <DType kType>
constexpr bool has_offset() {
  return kType == DType::kQ4_1 || kType == DType::kQ2_1;
}

// The f16 at p in every lane.
HWY_INLINE Vec scale_at(const uint8_t* p) {
  const hn::Rebind<uint16_t, F32> bits;
  const hn::Rebind<hwy::float16_t, F32> halves;
  uint16_t scale;
  std::memcpy(&scale, p, 2);
  return hn::PromoteTo(F32(), hn::BitCast(halves, hn::Set(bits, scale)));
}

// kCount of them, from p on, each in every lane.
template <int kCount>
HWY_INLINE void scales_at(const uint8_t* p, Vec* HWY_RESTRICT out) {
#if ATTEND_AVX512
  if constexpr (kCount > 1) {
    static_assert(kCount == 2 || kCount == 4);
    // Converted at once: one conversion costs as much as a product.
    uint64_t halves = 0;
    std::memcpy(&halves, p, 2 * kCount);
    const __m512 all = _mm512_castps128_ps512(_mm_cvtph_ps(_mm_cvtsi64_si128(static_cast<int64_t>(halves))));
    out[0] = Vec{_mm512_broadcastss_ps(_mm512_castps512_ps128(all))};
#pragma GCC unroll 4
    for (int i = 1; i < kCount; ++i) out[i] = Vec{_mm512_permutexvar_ps(_mm512_set1_epi32(i), all)};
    return;
  }
#endif
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) out[i] = scale_at(p + 2 * i);
}

// A byte a lane.
HWY_INLINE hn::Vec<hn::RebindToUnsigned<F32>> load_bytes(const uint8_t* p) {
  return hn::PromoteTo(hn::RebindToUnsigned<F32>(), hn::LoadU(hn::Rebind<uint8_t, F32>(), p));
}

#if ATTEND_AVX512
// The low four bits, or two, of an index.
HWY_INLINE Vec index_values(int bits) {
  if (bits == 2) return Vec{_mm512_set_ps(3, 2, 1, 0, 3, 2, 1, 0, 3, 2, 1, 0, 3, 2, 1, 0)};
  return Vec{_mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)};
}
// q - 8 for the low four bits q of an index.
HWY_INLINE Vec nibble_values() {
  return Vec{_mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8)};
}
HWY_INLINE Vec look_up(Vec table, hn::Vec<hn::RebindToUnsigned<F32>> index) {
  return Vec{_mm512_permutexvar_ps(index.raw, table.raw)};
}
#endif

// The low bits q of integers, q scale + offset: one scale and one offset for all lanes.
template <int kBits>
HWY_INLINE Vec affine(hn::Vec<hn::RebindToUnsigned<F32>> integers, Vec scale, Vec offset) {
#if ATTEND_AVX512
  return look_up(hn::MulAdd(index_values(kBits), scale, offset), integers);
#else
  const hn::RebindToUnsigned<F32> du;
  const auto q = hn::BitCast(I32(), hn::And(integers, hn::Set(du, (1u << kBits) - 1)));
  return hn::MulAdd(hn::ConvertTo(F32(), q), scale, offset);
#endif
}

// kLanes integers of two bits, each at the bottom of its lane.
HWY_INLINE hn::Vec<hn::RebindToUnsigned<F32>> load_twos(const uint8_t* p) {
  const hn::RebindToUnsigned<F32> du;
  uint32_t word = 0;
  std::memcpy(&word, p, kLanes / 4);
  return hn::Shr(hn::Set(du, word), hn::Add(hn::Iota(du, 0), hn::Iota(du, 0)));
}

// kCols vectors of a row, from a column on that is a multiple of 32, or lies with all of them in half a block.
template <DType kType, int kCols>
class CodedColumns {
 public:
  CodedColumns(int64_t width, int64_t column)
      : integers_(code_bits(kType) == 4 ? column / 32 * 16 + column % 16 : integer_bytes<kType>(column)),
        scales_(integer_bytes<kType>(width) + column / 32 * 2),
        offsets_(scales_ + width / 32 * 2),
        high_(column % 32 >= 16) {}

  static constexpr int64_t kBytes = integer_bytes<kType>(kCols * kLanes);
  const uint8_t* begin(const uint8_t* row) const { return row + integers_; }

  HWY_INLINE void load(const uint8_t* row, Vec* HWY_RESTRICT out) const {
    const uint8_t* integers = row + integers_;
    Vec scale[kGroups], offset[kGroups];
    scales_at<kGroups>(row + scales_, scale);
    if constexpr (has_offset<kType>()) scales_at<kGroups>(row + offsets_, offset);
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; ++g)
      load_group(integers + integer_bytes<kType>(g * kGroup * kLanes), scale[g],
                 has_offset<kType>() ? offset[g] : hn::Zero(F32()), out + g * kGroup);
  }

 private:
  static constexpr bool kBlocks = kCols * kLanes >= 32;
  static_assert(kBlocks ? kCols * kLanes % 32 == 0 : kCols * kLanes <= 16);
  static constexpr int kGroup = kBlocks ? static_cast<int>(32 / kLanes) : kCols;  // vectors that share a scale
  static constexpr int kGroups = kCols / kGroup;

  HWY_INLINE void load_group(const uint8_t* p, Vec scale, Vec offset, Vec* HWY_RESTRICT out) const {
    const F32 d;
    const I32 di;
    if constexpr (kType == DType::kQ8_0) {
      const hn::Rebind<int8_t, F32> d8;
#pragma GCC unroll 8
      for (int v = 0; v < kGroup; ++v) {
        const auto bytes = hn::LoadU(d8, reinterpret_cast<const int8_t*>(p + v * kLanes));
        out[v] = hn::Mul(hn::ConvertTo(d, hn::PromoteTo(di, bytes)), scale);
      }
    } else if constexpr (kType == DType::kQ2_1) {
#pragma GCC unroll 8
      for (int v = 0; v < kGroup; ++v) out[v] = affine<2>(load_twos(p + v * (kLanes / 4)), scale, offset);
    } else if constexpr (kBlocks) {
      constexpr int kPairs = kGroup / 2;
#pragma GCC unroll 8
      for (int v = 0; v < kPairs; ++v) {
        const auto bytes = load_bytes(p + v * kLanes);
        out[v] = nibbles(bytes, scale, offset);
        out[v + kPairs] = nibbles(hn::ShiftRight<4>(bytes), scale, offset);
      }
    } else {
#pragma GCC unroll 8
      for (int v = 0; v < kGroup; ++v) {
        const auto bytes = load_bytes(p + v * kLanes);
        out[v] = nibbles(high_ ? hn::ShiftRight<4>(bytes) : bytes, scale, offset);
      }
    }
  }

  // (low four bits - 8) x scale, or low four bits x scale + offset.
  static HWY_INLINE Vec nibbles(hn::Vec<hn::RebindToUnsigned<F32>> bytes, Vec scale, [[maybe_unused]] Vec offset) {
    if constexpr (kType == DType::kQ4_1) return affine<4>(bytes, scale, offset);
#if ATTEND_AVX512
    return look_up(hn::Mul(nibble_values(), scale), bytes);
#else
    const hn::RebindToUnsigned<F32> du;
    const I32 di;
    const auto q = hn::BitCast(di, hn::And(bytes, hn::Set(du, 15u)));
    return hn::Mul(hn::ConvertTo(F32(), hn::Sub(q, hn::Set(di, 8))), scale);
#endif
  }

  int64_t integers_, scales_, offsets_;
  bool high_;
};

// As add_values of plain rows.
template <int kRows, int kCols, bool kAhead, DType kType>
HWY_INLINE void add_values(const float* HWY_RESTRICT p, int64_t p_stride, CodedRows<kType> values, int64_t v_stride,
                           int64_t count, float* HWY_RESTRICT out, int64_t out_stride,
                           [[maybe_unused]] Ahead ahead = {}) {
  const CodedColumns<kType, kCols> columns(values.width, values.column);
  Sums<kRows, kCols> sums;
  sums.load(out, out_stride);
  const uint8_t* row = values.data;
  for (int64_t j = 0; j < count; ++j, row += v_stride) {
    if constexpr (kAhead) {
      // Rows begin anywhere in a cache line; scales lie in the line of these integers or of the next row's.
      const uint8_t* far = ahead.at + j * ahead.step;
      prefetch_far(far), prefetch_far(far + columns.kBytes - 1);
      const uint8_t* near = columns.begin(row) + kNearBytes;
      prefetch(near), prefetch(near + columns.kBytes - 1);
    }
    Vec b[kCols];
    columns.load(row, b);
    sums.add(p + j, p_stride, b);
  }
  sums.store(out, out_stride);
}

// As pack_values of plain rows; dv is a multiple of 32, so there is nothing to pad.
template <DType kType>
HWY_NOINLINE void pack_values(CodedRows<kType> values, int64_t stride, int64_t count, int64_t dv, int64_t padded,
                              float* HWY_RESTRICT out) {
  constexpr int kBlockVecs = static_cast<int>(32 / kLanes);
  for (int64_t c = 0; c < dv; c += 32) {
    const CodedColumns<kType, kBlockVecs> columns(dv, c);
    for (int64_t j = 0; j < count; ++j) {
      Vec b[kBlockVecs];
      columns.load(values.data + j * stride, b);
#pragma GCC unroll 8
      for (int v = 0; v < kBlockVecs; ++v) hn::StoreU(b[v], F32(), out + j * padded + c + v * kLanes);
    }
  }
}

// 16 bytes from p on of `lanes` rows as four vectors of words: lane c of word[i] is bytes 4 i .. 4 i + 3 of row c.
struct Words {
  hn::Vec<hn::RebindToUnsigned<F32>> word[4];
};
HWY_INLINE Words transpose_words(const uint8_t* p, int64_t stride) {
  const hn::RebindToUnsigned<F32> d32;
  const hn::Repartition<uint64_t, F32> d64;
  auto row = [&](int64_t r) { return hn::BitCast(d32, load_blocks(p + r * stride, stride)); };
  const auto r0 = row(0), r1 = row(1), r2 = row(2), r3 = row(3);
  const auto a = hn::BitCast(d64, hn::InterleaveLower(d32, r0, r1)),
             b = hn::BitCast(d64, hn::InterleaveLower(d32, r2, r3)),
             e = hn::BitCast(d64, hn::InterleaveUpper(d32, r0, r1)),
             f = hn::BitCast(d64, hn::InterleaveUpper(d32, r2, r3));
  return {{hn::BitCast(d32, hn::InterleaveLower(d64, a, b)), hn::BitCast(d32, hn::InterleaveUpper(d64, a, b)),
           hn::BitCast(d32, hn::InterleaveLower(d64, e, f)), hn::BitCast(d32, hn::InterleaveUpper(d64, e, f))}};
}

// What integers are multiplied by before their scale: they are read from the top of a word.
template <DType kType>
constexpr float integer_unit() {
#if ATTEND_AVX512
  if (kType == DType::kQ4_0) return 1;  // found in a table
#endif
  return kType == DType::kQ8_0 ? 0x1p-24f : 0x1p-28f;
}

// scale[b, c] = scale of block b of row c, times the unit of integers. The last 16 bytes of rows are read first, then
// those before: all lie inside their row.
template <DType kType>
HWY_INLINE void transpose_scales(const uint8_t* rows, int64_t stride, int64_t blocks, float* HWY_RESTRICT scale) {
  const F32 d;
  const hn::Rebind<uint16_t, F32> bits;
  const hn::Rebind<hwy::float16_t, F32> halves;
  const Vec unit = hn::Set(d, integer_unit<kType>());
  const uint8_t* scales = rows + integer_bytes<kType>(blocks * 32);
  for (int64_t end = blocks; end > 0; end -= 8) {
    const Words w = transpose_words(scales + 2 * end - 16, stride);
#pragma GCC unroll 8
    for (int h = 0; h < 8; ++h) {
      const int64_t block = end - 8 + h;
      if (block < 0) continue;
      const auto word = h % 2 ? hn::ShiftRight<16>(w.word[h / 2]) : w.word[h / 2];
      const Vec s = hn::PromoteTo(d, hn::BitCast(halves, hn::TruncateTo(bits, word)));
      hn::StoreU(hn::Mul(s, unit), d, scale + block * kLanes);
    }
  }
}

// Byte kByte of every word, as its value times 2^24.
template <int kByte>
HWY_INLINE Vec top_byte(hn::Vec<hn::RebindToUnsigned<F32>> word) {
  const hn::RebindToUnsigned<F32> du;
  const hn::Repartition<uint8_t, F32> d8;
  const I32 di;
  if constexpr (kByte == 3) {
    return hn::ConvertTo(F32(), hn::BitCast(di, hn::And(word, hn::Set(du, 0xff000000u))));
  } else if constexpr (kByte == 0) {
    return hn::ConvertTo(F32(), hn::BitCast(di, hn::ShiftLeft<24>(word)));
  } else {
    constexpr uint8_t k = kByte, none = 0x80;
    alignas(16) static constexpr uint8_t kIndex[16] = {none, none, none, k,     none, none, none, k + 4,
                                                       none, none, none, k + 8, none, none, none, k + 12};
    const auto moved = hn::TableLookupBytesOr0(hn::BitCast(d8, word), hn::LoadDup128(d8, kIndex));
    return hn::ConvertTo(F32(), hn::BitCast(di, moved));
  }
}

// The four bits from bit kBit of every word on, minus 8, in units of integer_unit().
template <int kBit>
HWY_INLINE Vec nibble(hn::Vec<hn::RebindToUnsigned<F32>> word) {
#if ATTEND_AVX512
  return look_up(nibble_values(), hn::ShiftRight<kBit>(word));
#else
  // With its top bit turned over a nibble is q - 8 in two's complement.
  const hn::RebindToUnsigned<F32> du;
  const auto top = hn::And(hn::ShiftLeft<28 - kBit>(word), hn::Set(du, 0xf0000000u));
  return hn::ConvertTo(F32(), hn::BitCast(I32(), hn::Xor(top, hn::Set(du, 0x80000000u))));
#endif
}

// The elements of a step of 16 bytes as rows of a panel.
template <DType kType, class Stride>
HWY_INLINE void store_words(const Words& w, Vec scale, float* HWY_RESTRICT to, Stride stride) {
  const F32 d;
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const auto word = w.word[i];
    float* at = to + 4 * i * stride;
    if constexpr (kType == DType::kQ8_0) {
      hn::StoreU(hn::Mul(top_byte<0>(word), scale), d, at);
      hn::StoreU(hn::Mul(top_byte<1>(word), scale), d, at + stride);
      hn::StoreU(hn::Mul(top_byte<2>(word), scale), d, at + 2 * stride);
      hn::StoreU(hn::Mul(top_byte<3>(word), scale), d, at + 3 * stride);
    } else {
      float* high = at + 16 * stride;
      hn::StoreU(hn::Mul(nibble<0>(word), scale), d, at);
      hn::StoreU(hn::Mul(nibble<4>(word), scale), d, high);
      hn::StoreU(hn::Mul(nibble<8>(word), scale), d, at + stride);
      hn::StoreU(hn::Mul(nibble<12>(word), scale), d, high + stride);
      hn::StoreU(hn::Mul(nibble<16>(word), scale), d, at + 2 * stride);
      hn::StoreU(hn::Mul(nibble<20>(word), scale), d, high + 2 * stride);
      hn::StoreU(hn::Mul(nibble<24>(word), scale), d, at + 3 * stride);
      hn::StoreU(hn::Mul(nibble<28>(word), scale), d, high + 3 * stride);
    }
  }
}

// panel[k, c] = keys[c, k] for the `kLanes` keys from `rows` on. kAhead: they come from memory, and so do the next.
template <bool kAhead, DType kType, class Stride>
HWY_INLINE void pack_coded_lanes(const uint8_t* HWY_RESTRICT rows, int64_t stride, int64_t d_count,
                                 float* HWY_RESTRICT panel, Stride panel_stride) {
  constexpr int64_t kMostBlocks = 512 / 32;
  HWY_ALIGN float scale[kMostBlocks * kLanes];
  const int64_t blocks = d_count / 32, bytes = integer_bytes<kType>(d_count);
  transpose_scales<kType>(rows, stride, blocks, scale);
  for (int64_t at = 0; at < bytes; at += 16) {
    if constexpr (kAhead)
      for (int64_t line = 0; line < kLanes * 16; line += 64) prefetch_stream<kAheadBytes>(rows + kLanes * at + line);
    const int64_t first = kType == DType::kQ8_0 ? at : 2 * at;
    const Words w = transpose_words(rows + at, stride);
    store_words<kType>(w, hn::LoadU(F32(), scale + first / 32 * kLanes), panel + first * panel_stride, panel_stride);
  }
  if constexpr (kAhead)
    for (int64_t line = kLanes * bytes; line < kLanes * row_bytes(kType, d_count); line += 64)
      prefetch_stream<kAheadBytes>(rows + line);
}

// As pack_keys of plain rows. Strides that are known let the compiler address the rows of a panel by constants.
template <DType kType>
HWY_NOINLINE void pack_keys(CodedRows<kType> keys, int64_t stride, int64_t count, int64_t d_count,
                            float* HWY_RESTRICT panel, int64_t panel_stride) {
  int64_t c = 0;
  auto pack = [&](auto known) {
    for (; c + kLanes <= count; c += kLanes)
      pack_coded_lanes<true, kType>(keys.data + c * stride, stride, d_count, panel + c, known);
  };
  if (panel_stride == kVecs * kLanes) {
    pack(std::integral_constant<int64_t, kVecs * kLanes>());
  } else if (panel_stride == 2 * kLanes) {
    pack(std::integral_constant<int64_t, 2 * kLanes>());
  } else {
    pack(panel_stride);
  }
  if (c == count) return;
  // The last few keys through copies with room around them.
  const int64_t bytes = row_bytes(kType, d_count);
  uint8_t rows[kLanes * row_bytes(kType, 512)];
  float lanes[kLanes * 512];
  for (int64_t r = 0; r < kLanes; ++r)
    std::memcpy(rows + r * bytes, keys.data + (c + std::min(r, count - c - 1)) * stride, static_cast<size_t>(bytes));
  pack_coded_lanes<false, kType>(rows, bytes, d_count, lanes, std::integral_constant<int64_t, kLanes>());
  for (int64_t k = 0; k < d_count; ++k) std::copy_n(lanes + k * kLanes, count - c, panel + k * panel_stride + c);
}

}  // namespace HWY_NAMESPACE
}  // namespace attend
