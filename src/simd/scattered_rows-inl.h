// Few rows that read keys and values in runs so short that each is a place of its own: what a selector chose, what a
// retention left, small pages. Memory at random is as fast as memory in order if it is asked well ahead, so lines of rows
// that follow are asked for by their places, values' after the last keys'. See math-inl.h on how it is included; after
// few_rows-inl.h.
#include <algorithm>

namespace attend {
namespace HWY_NAMESPACE {

#if ATTEND_AVX512

inline constexpr int kNearRows = 8;  // of values

// s[r, c] = sum_k q[k, r] keys[c, k] for kSets times 16 keys at rows[0..], ascending k: the bits of score_keys. All lines
// of the keys at ahead[0..] are asked for.
template <int kRows, int kSets, class T>
HWY_NOINLINE void score_scattered(const float* HWY_RESTRICT q, int64_t d_count, const uint8_t* const* rows,
                                  const uint8_t* const* ahead, float* HWY_RESTRICT s, int64_t s_stride) {
  using Bytes = KeyBytes<const T*>;
  constexpr int kCount = 16 * kSets;
  const int64_t bytes = Bytes::bytes(d_count);
  int64_t asked = 0;
  Sums<kRows, kSets> sums;
  sums.clear();
  for (int64_t k = 0; k < d_count; k += Bytes::kElements) {
    const int64_t at = Bytes::bytes(k);
    for (; asked < (at + 32) * kCount; asked += bytes, ++ahead)  // as many bytes as are read
      for (int64_t line = 0; line < bytes; line += 64) prefetch_far(*ahead + line);
    __m512i word[kSets][8];
#pragma GCC unroll 2
    for (int v = 0; v < kSets; ++v) {
      if constexpr (std::is_same_v<T, F16>) {
        transpose_halves(ScatteredRows{rows + 16 * v, at}, word[v]);
      } else {
        transpose_rows(ScatteredRows{rows + 16 * v, at}, word[v]);
      }
    }
    const float* row = q + k * kRows;
    unrolled<Bytes::kElements>([&](auto i) HWY_ATTR __attribute__((always_inline)) {
      Vec key[kSets];
#pragma GCC unroll 8
      for (int v = 0; v < kSets; ++v) key[v].raw = Bytes::template element<i>(word[v], nullptr);
      sums.add(row + i * kRows, 1, key);
    });
  }
  sums.store(s, s_stride);
}

// acc[r, 0..kCols*lanes) += sum_j p[r, j] v[j, ..], ascending j, for values that begin at rows[j] + at; lines of those at
// ahead[j] are asked for. Bits are those of add_values.
template <int kRows, int kCols, class T>
HWY_NOINLINE void add_scattered(const float* HWY_RESTRICT p, int64_t p_stride, const uint8_t* const* rows,
                                const uint8_t* const* ahead, int64_t at, int64_t bytes, int64_t count,
                                float* HWY_RESTRICT out, int64_t out_stride) {
  constexpr int64_t kBytes = kCols * kLanes * static_cast<int64_t>(sizeof(T));
  ahead += at * count / bytes;
  int64_t asked = 0;
  Sums<kRows, kCols> sums;
  sums.load(out, out_stride);
  for (int64_t j = 0; j < count; ++j) {
    for (; asked < (j + 1) * kBytes; asked += bytes, ++ahead)
      for (int64_t line = 0; line < bytes; line += 64) prefetch_far(*ahead + line);
#pragma GCC unroll 8
    for (int64_t c = 0; c < kBytes; c += 64) prefetch(rows[j + kNearRows] + at + c);
    const T* value = reinterpret_cast<const T*>(rows[j] + at);
    Vec b[kCols];
#pragma GCC unroll 8
    for (int v = 0; v < kCols; ++v) b[v] = load_f32(value + v * kLanes);
    sums.add(p + j, p_stride, b);
  }
  sums.store(out, out_stride);
}

// Where the rows of a job's keys, or of its values, lie, if its runs are short and all of one plain type.
class RowPlaces {
 public:
  RowPlaces(const SplitJob& job, const JobKeys& keys, int rows) : job_(job), keys_(keys) {
    constexpr size_t kShortRun = 64;  // keys on average; longer ones are read as they are
    const size_t runs = job.runs.size();
    in_use_ = rows <= kGroupRows && runs > 1 && runs * kShortRun > static_cast<size_t>(job.cols) &&
              job.d * size_of(job.runs[0].k_type) % 32 == 0 && job.dv % 16 == 0 && is_plain(job.runs[0].k_type) &&
              is_plain(job.runs[0].v_type);
    for (size_t i = 1; i < runs && in_use_; ++i)
      in_use_ = job.runs[i].k_type == job.runs[0].k_type && job.runs[i].v_type == job.runs[0].v_type;
  }

  bool in_use() const { return in_use_; }
  int cols() const { return job_.cols; }
  DType key_type() const { return job_.runs[0].k_type; }
  DType value_type() const { return job_.runs[0].v_type; }

  // Places of all keys, then of the first values, then of the last of these, so that `ahead` rows on there is a place.
  void list_keys() {
    set_ahead(job_.d * size_of(key_type()));
    int n = list(0, job_.cols, [](const KeyRun& run) { return run.keys(); });
    if (!job_.sums_only)
      n = list(n, std::min(job_.cols, kMostPlaces - n), [](const KeyRun& run) { return run.values(); });
    std::fill(at_ + n, at_ + kMostPlaces, at_[n - 1]);
  }
  void list_values() {
    set_ahead(job_.dv * size_of(value_type()));
    const int n = list(0, job_.cols, [](const KeyRun& run) { return run.values(); });
    std::fill(at_ + n, at_ + kMostPlaces, at_[n - 1]);
  }
  const uint8_t* const* at(int col) const { return at_ + col; }
  const uint8_t* const* ahead_of(int col) const { return at_ + col + ahead_; }

  // Asks for the rows from a column on that nobody was ahead of.
  void ask_from(int col, int64_t bytes) const {
    for (int i = col; i < col + ahead_; ++i)
      for (int64_t line = 0; line < bytes; line += 64) prefetch(at_[i] + line);
  }

  // f(T()) for the type.
  template <class F>
  static void typed(DType type, F f) {
    if (type == DType::kF16) return f(F16());
    if (type == DType::kBF16) return f(BF16());
    f(float());
  }

 private:
  static constexpr int kMostAhead = 128, kMostPlaces = split_layout::kStripCols + kMostAhead + 2 * 16;
  static constexpr bool is_plain(DType type) {
    return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16;
  }
  void set_ahead(int64_t bytes) {
    ahead_ = static_cast<int>(std::clamp<int64_t>(kPlainAheadBytes / bytes, 16, kMostAhead));
  }
  template <class F>
  int list(int n, int count, F rows_of) {
    keys_.each_run(0, count, [&](const KeyRun& run, int64_t first, int, int rows) {
      const RowRun from = rows_of(run);
      const auto* row = static_cast<const uint8_t*>(from.row(first));
      const int64_t stride = from.stride * size_of(from.type);
      for (int r = 0; r < rows; ++r, row += stride) at_[n++] = row;
    });
    return n;
  }

  const SplitJob& job_;
  const JobKeys& keys_;
  bool in_use_;
  int ahead_ = 0;
  const uint8_t* at_[kMostPlaces];
};

class ScatteredKeys {
 public:
  ScatteredKeys(const SplitJob& job, const JobKeys& keys, int rows) : job_(job), places_(job, keys, rows) {
    if (places_.in_use()) places_.list_keys();
  }
  bool in_use() const { return places_.in_use(); }

  // `by_element`: queries [d, rows].
  void take_block(const float* by_element, float* strip) {
    by_element_ = by_element, strip_ = strip;
    const ColumnRanges& seen = job_.visible[0];
    const int first = seen.a0 < seen.a1 ? seen.a0 : seen.b0;
    if (first < job_.cols) places_.ask_from(first, job_.d * size_of(places_.key_type()));
  }

  // Of all rows, for columns [begin, end), multiples of 16.
  void scores(int rows, int begin, int end) const {
    RowPlaces::typed(places_.key_type(), [&]<class T>(T) {
      for_rows(rows, [&](auto n) { score<n, T>(begin, std::min(end, places_.cols())); });
    });
  }

 private:
  template <int kRows, class T>
  void score(int c, int end) const {
    for (; c + 32 <= end; c += 32)
      score_scattered<kRows, 2, T>(by_element_, job_.d, places_.at(c), places_.ahead_of(c), strip_ + c, kStripStride);
    for (; c < end; c += 16) {
      const uint8_t* rows[16];  // what is beyond the last is not used
      for (int i = 0; i < 16; ++i) rows[i] = *places_.at(std::min(c + i, places_.cols() - 1));
      score_scattered<kRows, 1, T>(by_element_, job_.d, rows, places_.ahead_of(c), strip_ + c, kStripStride);
    }
  }

  const SplitJob& job_;
  RowPlaces places_;
  const float* by_element_ = nullptr;
  float* strip_ = nullptr;
};

class ScatteredValues {
 public:
  ScatteredValues(const SplitJob& job, const JobKeys& keys, int rows) : job_(job), places_(job, keys, rows) {
    if (places_.in_use() && !job.sums_only) places_.list_values();
  }
  bool in_use() const { return places_.in_use(); }

  // acc += p v over columns [begin, end), p and acc from the first of these rows on.
  void add(int rows, const float* p, int begin, int end, float* acc) const {
    constexpr int kStreamed = 64;  // keys whose values are read whole before the next
    RowPlaces::typed(places_.value_type(), [&]<class T>(T) {
      for_rows(rows, [&](auto n) {
        for (int c = begin; c < end; c += kStreamed) add_all_columns<n, T>(p, c, std::min(end - c, kStreamed), acc);
      });
    });
  }

 private:
  template <int kRows, class T>
  void add_all_columns(const float* p, int col, int count, float* acc) const {
    int64_t c = 0;
    for (; c + 4 * kLanes <= job_.dv; c += 4 * kLanes) add_columns<kRows, 4, T>(p, col, count, c, acc);
    for (; c < job_.dv; c += kLanes) add_columns<kRows, 1, T>(p, col, count, c, acc);
  }
  template <int kRows, int kCols, class T>
  void add_columns(const float* p, int col, int count, int64_t c, float* acc) const {
    add_scattered<kRows, kCols, T>(p + col, kStripStride, places_.at(col), places_.ahead_of(col),
                                   c * static_cast<int64_t>(sizeof(T)), job_.dv * static_cast<int64_t>(sizeof(T)),
                                   count, acc + c, job_.acc_stride);
  }

  const SplitJob& job_;
  RowPlaces places_;
};

#else

// Keys are packed, values are read run by run.
class ScatteredKeys {
 public:
  ScatteredKeys(const SplitJob&, const JobKeys&, int) {}
  static constexpr bool in_use() { return false; }
  void take_block(const float*, float*) {}
  void scores(int, int, int) const {}
};
class ScatteredValues {
 public:
  ScatteredValues(const SplitJob&, const JobKeys&, int) {}
  static constexpr bool in_use() { return false; }
  void add(int, const float*, int, int, float*) const {}
};

#endif

}  // namespace HWY_NAMESPACE
}  // namespace attend
