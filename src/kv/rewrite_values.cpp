#include "attend/kv/rewrite_values.h"

#include <fmt/format.h>

#include <cstring>
#include <utility>
#include <vector>

#include "attend/simd/row_ops.h"
#include "attend/tensor/buffer.h"
#include "attend/tensor/error.h"
#include "attend/tensor/quantised_row.h"

namespace attend {
namespace {

// The keys of a view from a slot on, in memory of their own.
struct Copy {
  Buffer rows;
  std::vector<KeyRun> runs;
  std::vector<int32_t> positions;

  Copy(const KeyView& keys, int64_t first, int64_t d, int64_t dv) {
    int64_t bytes = 0;
    auto each = [&](auto f) {
      for (const KeyRun& run : keys.runs)
        if (const int64_t end = run.first_slot + run.count; end > first)
          f(run.first_slot < first ? run.part(first - run.first_slot, end - first) : run);
    };
    each([&](const KeyRun& run) {
      bytes += run.count * (row_bytes(run.k_type, d) + row_bytes(run.v_type, dv)) + 2 * scale_bytes(run, d);
    });
    rows = Buffer(bytes);
    std::byte* to = rows.data();
    auto take = [&](const void* from, int64_t count) {
      std::memcpy(to, from, static_cast<size_t>(count));
      return std::exchange(to, to + count);
    };
    KeyRun before;
    each([&](KeyRun run) {
      const F16* const group = run.k_scale;
      // Runs of one group stay of one group.
      const bool goes_on = group && !runs.empty() && before.k_scale == group;
      before = run;
      if (goes_on) {
        run.k_scale = runs.back().k_scale, run.k_offset = runs.back().k_offset;
      } else if (group) {
        run.k_scale = reinterpret_cast<const F16*>(take(run.k_scale, scale_bytes(run, d)));
        run.k_offset = reinterpret_cast<const F16*>(take(run.k_offset, scale_bytes(run, d)));
      }
      run.k = copy_rows(run.keys(), run.count, row_bytes(run.k_type, d), take);
      run.v = copy_rows(run.values(), run.count, row_bytes(run.v_type, dv), take);
      run.k_stride = is_quantised(run.k_type) ? row_bytes(run.k_type, d) : d;
      run.v_stride = is_quantised(run.v_type) ? row_bytes(run.v_type, dv) : dv;
      run.first_slot -= first;
      runs.push_back(run);
    });
    for (int64_t slot = first; slot < keys.count(); ++slot)
      positions.push_back(keys.position.empty() ? static_cast<int32_t>(slot)
                                                : keys.position[static_cast<size_t>(slot)]);
  }

 private:
  static int64_t scale_bytes(const KeyRun& run, int64_t d) {
    return run.k_scale ? d * static_cast<int64_t>(sizeof(F16)) : 0;
  }
  template <class Take>
  static const void* copy_rows(const RowRun& from, int64_t count, int64_t bytes, Take take) {
    const void* first = nullptr;
    for (int64_t r = 0; r < count; ++r)
      if (const void* row = take(from.row(r), bytes); r == 0) first = row;
    return first;
  }
};

// Where the group that a slot belongs to begins: keys by channel are stored by whole groups.
int64_t first_of_group(const KeyView& keys, int64_t slot) {
  int64_t first = slot;
  const F16* group = nullptr;
  for (const KeyRun& run : keys.runs) {
    if (run.first_slot > slot) break;
    if (!run.k_scale) {
      first = slot;
    } else if (run.k_scale != group) {
      first = run.first_slot;
    }
    group = run.k_scale;
  }
  return first;
}

}  // namespace

void rewrite_values(Store& store, int layer, int head, std::span<const int64_t> slots, std::span<const float> values,
                    Isa isa) {
  const KeyView keys = store.keys(layer, head);
  const int64_t d = store.shape().d, dv = store.shape().dv;
  if (values.size() != slots.size() * static_cast<size_t>(dv))
    throw Error(ErrorKind::kArgument, "rewrite_values", "values", std::to_string(values.size()),
                fmt::format("must be {} for each of {} slots", dv, slots.size()));
  int64_t previous = -1;
  for (int64_t slot : slots) {
    if (slot <= previous || slot >= keys.count())
      throw Error(ErrorKind::kArgument, "rewrite_values", "slots", std::to_string(slot),
                  fmt::format("must ascend and lie below {}", keys.count()));
    previous = slot;
  }
  if (slots.empty()) return;
  const int64_t first = first_of_group(keys, slots.front());
  const Copy copy(keys, first, d, dv);
  const auto narrow = row_ops(isa).narrow;
  auto run = copy.runs.begin();
  for (size_t i = 0; i < slots.size(); ++i) {
    const int64_t slot = slots[i] - first;
    while (run->first_slot + run->count <= slot) ++run;
    void* row = const_cast<void*>(run->values().row(slot - run->first_slot));
    const float* x = values.data() + static_cast<int64_t>(i) * dv;
    if (is_quantised(run->v_type)) {
      quantise_row(x, dv, run->v_type, row);
    } else {
      narrow(x, dv, run->v_type, row);
    }
  }
  store.cut(layer, head, first);
  store.append_coded(layer, head, {copy.runs, copy.positions});
}

}  // namespace attend
