// Scores of few rows, decoding above all, with keys that are read where they lie: 16 at a time are transposed and widened
// in registers, for the one multiplication of each row that they take part in. Packing panels first pays where several
// groups of rows share them. Bits are those of score_panel. See math-inl.h on how it is included; after job_keys-inl.h.
#include <algorithm>
#include <type_traits>
#include <utility>

namespace attend {
namespace HWY_NAMESPACE {

// Whether a job of so many rows reads keys in place and values in one stream. Two groups of rows widen all twice, which
// is cheap for plain numbers only.
inline bool reads_in_place(int rows, bool coded) {
  constexpr int kMostPlainRows = 10;
  return rows <= (coded ? kGroupRows : kMostPlainRows);
}

#if ATTEND_AVX512

// f(std::integral_constant<int, i>) for i in [0, kCount).
template <int kCount, class F>
HWY_INLINE void unrolled(F f) {
  [&]<int... i>(std::integer_sequence<int, i...>) HWY_ATTR __attribute__((always_inline)) {
    (f(std::integral_constant<int, i>()), ...);
  }
  (std::make_integer_sequence<int, kCount>());
}

// Rows of keys as bytes, and how 32 of them become elements.
template <class Rows>
struct KeyBytes;
template <class T>
struct KeyBytes<const T*> {
  static constexpr int kElements = 32 / static_cast<int>(sizeof(T)), kScales = 0;
  static constexpr int64_t kAhead = kPlainAheadBytes;
  static const uint8_t* first(const T* rows) { return reinterpret_cast<const uint8_t*>(rows); }
  static int64_t bytes(int64_t elements) { return elements * static_cast<int64_t>(sizeof(T)); }

  template <int kIndex>
  static HWY_INLINE __m512 element(const __m512i (&word)[8], const __m512*) {
    if constexpr (std::is_same_v<T, float>) {
      return _mm512_castsi512_ps(word[kIndex]);
    } else if constexpr (std::is_same_v<T, BF16>) {
      const __m512i pair = word[kIndex / 2];
      return _mm512_castsi512_ps(kIndex % 2 ? _mm512_and_si512(pair, _mm512_set1_epi32(static_cast<int>(0xffff0000u)))
                                            : _mm512_slli_epi32(pair, 16));
    } else {
      return _mm512_cvtph_ps(_mm512_extracti64x4_epi64(word[kIndex % 8], kIndex / 8));
    }
  }
};
template <DType kType>
struct KeyBytes<CodedRows<kType>> {
  static constexpr int kElements = kType == DType::kQ8_0 ? 32 : 64, kScales = kElements / 32;
  static constexpr int64_t kAhead = kAheadBytes;
  static constexpr DType kCode = kType;
  static const uint8_t* first(const CodedRows<kType>& rows) { return rows.data; }
  static int64_t bytes(int64_t elements) { return integer_bytes<kType>(elements); }

  template <int kIndex>
  static HWY_INLINE __m512 element(const __m512i (&words)[8], const __m512* scale) {
    if constexpr (kType == DType::kQ8_0) {
      const hn::Vec<hn::RebindToUnsigned<F32>> word{words[kIndex / 4]};
      return _mm512_mul_ps(top_byte<kIndex % 4>(word).raw, scale[0]);
    } else {
      constexpr int kByte = kIndex / 32 * 16 + kIndex % 16;  // of the 32
      const hn::Vec<hn::RebindToUnsigned<F32>> word{words[kByte / 4]};
      return _mm512_mul_ps(nibble<8 * (kByte % 4) + kIndex % 32 / 16 * 4>(word).raw, scale[kIndex / 32]);
    }
  }
};

// 32 bytes from each.
HWY_INLINE __m512i two_rows(const uint8_t* low, const uint8_t* high) {
  const __m512i first = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(low)));
  return _mm512_inserti64x4(first, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(high)), 1);
}

// 16 rows a stride apart, and 16 anywhere: row 4 f + i of them.
struct StridedRows {
  const uint8_t* first;
  int64_t stride;
  HWY_INLINE const uint8_t* operator()(int f, int i) const { return first + 4 * f * stride + i * stride; }
};
struct ScatteredRows {
  const uint8_t* const* rows;
  int64_t at;  // bytes into each
  HWY_INLINE const uint8_t* operator()(int f, int i) const { return rows[4 * f + i] + at; }
};

// Lane c of word[i] is bytes 4 i .. 4 i + 3 of the 32 of row c.
template <class At>
HWY_INLINE void transpose_rows(At at, __m512i (&word)[8]) {
  __m512i a[2][4];  // rows 8 h + i and 8 h + i + 4
#pragma GCC unroll 8
  for (int h = 0; h < 2; ++h) {
    __m512i r[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) r[i] = two_rows(at(2 * h, i), at(2 * h + 1, i));
    const __m512i s = _mm512_unpacklo_epi32(r[0], r[1]), t = _mm512_unpacklo_epi32(r[2], r[3]),
                  u = _mm512_unpackhi_epi32(r[0], r[1]), v = _mm512_unpackhi_epi32(r[2], r[3]);
    a[h][0] = _mm512_unpacklo_epi64(s, t), a[h][1] = _mm512_unpackhi_epi64(s, t);
    a[h][2] = _mm512_unpacklo_epi64(u, v), a[h][3] = _mm512_unpackhi_epi64(u, v);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    word[i] = _mm512_shuffle_i64x2(a[0][i], a[1][i], 0x88);
    word[4 + i] = _mm512_shuffle_i64x2(a[0][i], a[1][i], 0xdd);
  }
}

// Lanes c of word[i] are elements i, of 16 bits, of the 16 of row c, then elements i + 8.
template <class At>
HWY_INLINE void transpose_halves(At at, __m512i (&word)[8]) {
  __m512i t[2][4];  // rows 4 h + 0..3: pairs of elements
#pragma GCC unroll 8
  for (int h = 0; h < 2; ++h) {
    __m512i r[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512i rows = two_rows(at(h, i), at(h + 2, i));
      r[i] = _mm512_shuffle_i64x2(rows, rows, 0xd8);
    }
    const __m512i a = _mm512_unpacklo_epi16(r[0], r[1]), b = _mm512_unpacklo_epi16(r[2], r[3]),
                  e = _mm512_unpackhi_epi16(r[0], r[1]), f = _mm512_unpackhi_epi16(r[2], r[3]);
    t[h][0] = _mm512_unpacklo_epi32(a, b), t[h][1] = _mm512_unpackhi_epi32(a, b);
    t[h][2] = _mm512_unpacklo_epi32(e, f), t[h][3] = _mm512_unpackhi_epi32(e, f);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    word[2 * i] = _mm512_unpacklo_epi64(t[0][i], t[1][i]);
    word[2 * i + 1] = _mm512_unpackhi_epi64(t[0][i], t[1][i]);
  }
}

// s[r, c] = sum_k q[k, r] keys[c, k] for kSets times 16 keys, ascending k. The integers or floats of a row are a multiple
// of 32 bytes. Keys come from memory, and so do the next. These are all read before the first is done with, so what memory
// is asked for lies beyond the last.
template <int kRows, int kSets, class Rows>
HWY_NOINLINE void score_keys(const float* HWY_RESTRICT q, int64_t d_count, Rows keys, int64_t stride_bytes,
                             float* HWY_RESTRICT s, int64_t s_stride) {
  using Bytes = KeyBytes<Rows>;
  constexpr int kMostBlocks = 512 / 32, kLines = 8 * kSets;
  constexpr int64_t kBeyondBytes = 4096, kBehind = Bytes::kAhead - kNearBytes;
  const uint8_t *first = Bytes::first(keys),
                *next = first + std::max(Bytes::kAhead, kSets * kLanes * stride_bytes + kBeyondBytes);
  HWY_ALIGN float scale[Bytes::kScales > 0 ? kSets : 1][kMostBlocks * kLanes];
  if constexpr (Bytes::kScales > 0)
    for (int v = 0; v < kSets; ++v)
      transpose_scales<Bytes::kCode>(first + v * 16 * stride_bytes, stride_bytes, d_count / 32, scale[v]);
  Sums<kRows, kSets> sums;
  sums.clear();
  for (int64_t k = 0; k < d_count; k += Bytes::kElements) {
#pragma GCC unroll 16
    for (int line = 0; line < kLines; ++line) prefetch_far(next + 64 * line), prefetch(next - kBehind + 64 * line);
    next += kLines * 64;
    // Hidden from the compiler, which would give each of 32 rows an address register of its own.
    int64_t stride = stride_bytes;
    const uint8_t* at = first + Bytes::bytes(k);
    __asm__("" : "+r"(stride), "+r"(at));
    __m512i word[kSets][8];
    __m512 scales[kSets][Bytes::kScales + 1];
#pragma GCC unroll 2
    for (int v = 0; v < kSets; ++v) {
      if constexpr (std::is_same_v<Rows, const F16*>) {
        transpose_halves(StridedRows{at + v * 16 * stride, stride}, word[v]);
      } else {
        transpose_rows(StridedRows{at + v * 16 * stride, stride}, word[v]);
      }
#pragma GCC unroll 8
      for (int b = 0; b < Bytes::kScales; ++b) scales[v][b] = _mm512_load_ps(scale[v] + (k / 32 + b) * kLanes);
    }
    const float* row = q + k * kRows;
    unrolled<Bytes::kElements>([&](auto i) HWY_ATTR __attribute__((always_inline)) {
      Vec key[kSets];
#pragma GCC unroll 8
      for (int v = 0; v < kSets; ++v) key[v].raw = Bytes::template element<i>(word[v], scales[v]);
      sums.add(row + i * kRows, 1, key);
    });
  }
  sums.store(s, s_stride);
}

// Scores of a job of few rows, for panels whose keys can be read in place.
class KeysInPlace {
 public:
  KeysInPlace(const SplitJob& job, const JobKeys& keys, int rows)
      : job_(job),
        keys_(keys),
        rows_(rows),
        panel_(reinterpret_cast<float*>(job.scratch + split_layout::layout(job.d, job.dv).panels)) {}

  // Whether it may cover any.
  bool takes() const { return reads_in_place(rows_, false); }

  // `room`: for each group of rows [d, rows of the group].
  void take_block(const float* q, float* room, float* strip) {
    q_ = q, by_element_ = room, strip_ = strip;
    for (int first = 0; first < rows_; first += kGroupRows) {
      const int count = std::min(kGroupRows, rows_ - first);
      float* group = room + first * job_.d;
      for (int r = 0; r < count; ++r)
        for (int64_t k = 0; k < job_.d; ++k) group[k * count + r] = q[(first + r) * job_.d + k];
    }
  }

  // Whether the keys of these columns are rows of whole 32 bytes, in runs that begin at multiples of 16.
  bool covers(int begin, int end) const {
    bool all = true;
    keys_.each_run(begin, std::min(end, job_.cols), [&](const KeyRun& run, int64_t, int col, int) {
      const int64_t bytes =
          is_quantised(run.k_type) ? job_.d * code_bits(run.k_type) / 8 : job_.d * size_of(run.k_type);
      all = all && !is_by_channel(run.k_type) && bytes % 32 == 0 && col % 16 == 0 &&
            reads_in_place(rows_, is_quantised(run.k_type));
    });
    return all;
  }

  // Of a group of rows, for columns [begin, end), multiples of 16.
  void scores(int row, int rows, int begin, int end) const {
    keys_.each_key_run(begin, std::min(end, job_.cols), [&](const auto k, int64_t stride, int col, int count) {
      for_rows(rows, [&](auto n) { score_rows<n>(row, k, stride, col, count); });
    });
    if (end >= job_.cols && !job_.sums_only) ask_for_values();
  }

 private:
  template <int kRows, class Rows>
  void score_rows(int row, Rows k, int64_t stride, int col, int count) const {
    using Bytes = KeyBytes<Rows>;
    const int64_t stride_bytes = Bytes::first(k + stride) - Bytes::first(k);
    const float *q = q_ + row * job_.d, *by_element = by_element_ + row * job_.d;
    float* s = strip_ + static_cast<int64_t>(row) * kStripStride + col;
    int c = 0;
    auto score = [&](auto sets) {
      for (; c + sets * kLanes <= count; c += static_cast<int>(sets * kLanes))
        score_keys<kRows, sets>(by_element, job_.d, k + c * stride, stride_bytes, s + c, kStripStride);
    };
    score(std::integral_constant<int, 2>());
    score(std::integral_constant<int, 1>());
    if (c == count) return;
    for (int64_t i = 0; i < job_.d; ++i) std::fill_n(panel_ + i * kLanes + (count - c), kLanes - (count - c), 0.0f);
    pack_keys(k + c * stride, stride, count - c, job_.d, panel_, kLanes);
    score_panel<kRows, 1>(q, job_.d, panel_, kLanes, s + c, kStripStride);
  }
  template <int kRows, DType kType>
  void score_rows(int, ChannelRows<kType>, int64_t, int, int) const {}  // not covered

  // The first values that a row sees, so that memory works while scores become weights.
  void ask_for_values() const {
    const ColumnRanges& seen = job_.visible[0];
    const int first = seen.a0 < seen.a1 ? seen.a0 : seen.b0;
    if (first >= job_.cols) return;
    keys_.each_run(first, first + 1, [&](const KeyRun& run, int64_t row, int, int) {
      const auto* at = static_cast<const char*>(run.values().row(row));
      const int64_t bytes = std::min(is_quantised(run.v_type) ? kAheadBytes : kPlainAheadBytes,
                                     (run.count - row) * row_bytes(run.v_type, job_.dv));
      for (int64_t line = 0; line < bytes; line += 64) prefetch(at + line);
    });
  }

  const SplitJob& job_;
  const JobKeys& keys_;
  int rows_;
  const float* q_ = nullptr;
  float *by_element_ = nullptr, *strip_ = nullptr, *panel_;
};

#else

// Without 16 lanes and 32 registers keys are always packed.
class KeysInPlace {
 public:
  KeysInPlace(const SplitJob&, const JobKeys&, int) {}
  static constexpr bool takes() { return false; }
  void take_block(const float*, float*, float*) {}
  bool covers(int, int) const { return false; }
  void scores(int, int, int, int) const {}
};

#endif

}  // namespace HWY_NAMESPACE
}  // namespace attend
