// The runs of keys and values that a job reads. See math-inl.h on how it is included; after channels-inl.h.
#include <algorithm>

#include "attend/simd/split.h"
#include "simd/split_layout.h"

namespace attend {
namespace HWY_NAMESPACE {

using split_layout::kBlockRows;
using split_layout::kGroupRows;
using split_layout::kMostBlockRows;

// Keys and values of a job, by its columns.
class JobKeys {
 public:
  explicit JobKeys(const SplitJob& job) : job_(job) {}

  // Calls f(row 0, stride, first column, count) for the runs of keys under columns [begin, end): a pointer, or
  // CodedRows.
  template <class F>
  void each_key_run(int begin, int end, F f) const {
    each_run(begin, end, [&](const KeyRun& run, int64_t row, int col, int count) {
      if (run.k_type == DType::kQ4_C) {
        f(ChannelRows<DType::kQ4_C>(run.keys(), row, job_.d), run.k_stride, col, count);
      } else if (run.k_type == DType::kQ2_C) {
        f(ChannelRows<DType::kQ2_C>(run.keys(), row, job_.d), run.k_stride, col, count);
      } else {
        typed(run.k_type, run.k, job_.d, [&](const auto k) { f(k + row * run.k_stride, run.k_stride, col, count); });
      }
    });
  }
  template <class F>
  void each_value_run(int begin, int end, F f) const {
    // Runs that only the groups of their keys set apart are one to values.
    RowRun rows;
    int first = 0, so_far = 0;
    auto flush = [&] {
      if (so_far > 0)
        typed_values(rows.type, rows.data, job_.dv, [&](const auto v) { f(v, rows.stride, first, so_far); });
    };
    each_run(begin, end, [&](const KeyRun& run, int64_t row, int col, int count) {
      const RowRun next = run.values().from(row);
      if (so_far > 0 && next.type == rows.type && next.stride == rows.stride && next.data == rows.row(so_far)) {
        so_far += count;
        return;
      }
      flush();
      rows = next, first = col, so_far = count;
    });
    flush();
  }

  // Whether all values are f32.
  bool plain_values() const {
    return std::all_of(job_.runs.begin(), job_.runs.end(), [](const KeyRun& run) { return run.v_type == DType::kF32; });
  }
  // Whether some are integers times a scale.
  bool coded_values() const {
    return std::any_of(job_.runs.begin(), job_.runs.end(), [](const KeyRun& run) {
      return run.v_type != DType::kF32 && run.v_type != DType::kF16 && run.v_type != DType::kBF16;
    });
  }

  // Calls f(run, its first row, first column, count) for the runs under columns [begin, end).
  template <class F>
  void each_run(int begin, int end, F f) const {
    for (const KeyRun& run : job_.runs) {
      if (run.first_slot >= job_.first_slot + end) break;
      const int64_t from = std::max<int64_t>(run.first_slot, job_.first_slot + begin);
      const int64_t to = std::min<int64_t>(run.first_slot + run.count, job_.first_slot + end);
      if (from >= to) continue;
      f(run, from - run.first_slot, static_cast<int>(from - job_.first_slot), static_cast<int>(to - from));
    }
  }
  // f(rows) for the type of values.
  template <class F>
  static void typed_values(DType type, const void* base, int64_t width, F f) {
    if (type == DType::kQ4_1) return f(CodedRows<DType::kQ4_1>{static_cast<const uint8_t*>(base), width});
    if (type == DType::kQ2_1) return f(CodedRows<DType::kQ2_1>{static_cast<const uint8_t*>(base), width});
    typed(type, base, width, f);
  }

 private:
  template <class F>
  static void typed(DType type, const void* base, int64_t width, F f) {
    if (type == DType::kF32) return f(static_cast<const float*>(base));
    if (type == DType::kF16) return f(static_cast<const F16*>(base));
    if (type == DType::kBF16) return f(static_cast<const BF16*>(base));
    const auto* bytes = static_cast<const uint8_t*>(base);
    if (type == DType::kQ8_0) return f(CodedRows<DType::kQ8_0>{bytes, width});
    f(CodedRows<DType::kQ4_0>{bytes, width});
  }

  const SplitJob& job_;
};

}  // namespace HWY_NAMESPACE
}  // namespace attend
