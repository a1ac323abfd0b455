#include <algorithm>
#include <limits>

#include "attend/tensor/error.h"
#include "kv/store_base.h"

namespace attend {
namespace {

class ContiguousStore : public kv::StoreBase {
 public:
  explicit ContiguousStore(const StoreShape& shape) : StoreBase(shape), rows_(heads()) {}

 protected:
  void reserve(size_t first, size_t last, int64_t tokens) override {
    std::vector<int64_t> before;
    for (size_t h = first; h < last; ++h) before.push_back(rows_[h].capacity);
    try {
      for (size_t h = first; h < last; ++h) {
        const int64_t wanted = count(h) + tokens, capacity = rows_[h].capacity;
        if (wanted > capacity)
          set_capacity(rows_[h], std::max(kv::round_to_step(wanted), capacity + kv::step_at(capacity)));
      }
    } catch (...) {
      for (size_t h = first; h < last; ++h)
        if (rows_[h].capacity != before[h - first]) set_capacity(rows_[h], before[h - first]);
      throw;
    }
  }

  Place place(size_t head, int64_t slot) const override {
    const Rows& rows = rows_[head];
    return {rows.k.data() + slot * k_row(), rows.v.data() + slot * v_row(), rows.capacity - slot};
  }

  void compact(size_t head, std::span<const int64_t> slots) override { move_rows(head, slots); }

  void shrink(size_t head) override {
    const int64_t kept = count(head);
    if (kept == 0) {
      rows_[head] = Rows();
    } else if (rows_[head].capacity - kept > 2 * kv::step_at(kept)) {
      try {
        set_capacity(rows_[head], kv::round_to_step(kept));
      } catch (const Error&) {  // no memory for the smaller block: the larger one stays
      }
    }
  }

  int64_t row_memory() const override {
    int64_t total = 0;
    for (const Rows& rows : rows_) total += rows.k.held() + rows.v.held();
    return total;
  }

  std::unique_ptr<StoreBase> open_another() const override { return std::make_unique<ContiguousStore>(shape()); }

 private:
  struct Rows {
    Buffer k, v;
    int64_t capacity = 0;
  };

  void set_capacity(Rows& rows, int64_t tokens) const {
    const int64_t largest = std::numeric_limits<int64_t>::max() / 4 / std::max({k_row(), v_row(), int64_t{4}});
    if (tokens > largest)
      throw Error(ErrorKind::kMemory, "append", "tokens", std::to_string(tokens), "are more than memory can hold");
    rows.capacity = std::min(tokens, rows.capacity);  // holds if one of the two fails
    rows.k.resize(tokens * k_row());
    rows.v.resize(tokens * v_row());
    rows.capacity = tokens;
  }

  std::vector<Rows> rows_;
};

}  // namespace

std::unique_ptr<Store> make_contiguous_store(const StoreShape& shape) {
  return std::make_unique<ContiguousStore>(shape);
}

}  // namespace attend
