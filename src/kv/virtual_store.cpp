#include "attend/kv/virtual_store.h"

#include <algorithm>

#include "kv/mapping.h"
#include "kv/reserved.h"
#include "kv/store_base.h"

namespace attend {
namespace {

class VirtualStore : public kv::StoreBase {
 public:
  VirtualStore(const StoreShape& shape, const VirtualOptions& options)
      : StoreBase(shape),
        reserved_("virtual", shape, options.reserve),
        options_(options),
        memory_(reserved_.bytes()),
        touched_(heads()) {}

 protected:
  void reserve(size_t first, size_t last, int64_t tokens) override {
    for (size_t h = first; h < last; ++h) reserved_.check(count(h) + tokens);
    for (size_t h = first; h < last; ++h) touched_[h] = std::max(touched_[h], count(h) + tokens);
  }

  Place place(size_t head, int64_t slot) const override {
    return {memory_.data() + reserved_.k_at(head) + slot * k_row(),
            memory_.data() + reserved_.v_at(head) + slot * v_row(), reserved_.tokens - slot};
  }

  void compact(size_t head, std::span<const int64_t> slots) override { move_rows(head, slots); }

  void shrink(size_t head) override {
    const int64_t kept = count(head), page = kv::system_page();
    auto give_back = [&](int64_t at, int64_t row) {
      memory_.give_back(at + kv::round_up(kept * row, page), at + kv::round_up(touched_[head] * row, page));
    };
    if (touched_[head] <= kept) return;
    give_back(reserved_.k_at(head), k_row());
    give_back(reserved_.v_at(head), v_row());
    touched_[head] = kept;
  }

  int64_t row_memory() const override {
    int64_t total = 0;
    for (int64_t tokens : touched_)
      total += kv::round_up(tokens * k_row(), kv::system_page()) + kv::round_up(tokens * v_row(), kv::system_page());
    return total;
  }

  std::unique_ptr<StoreBase> open_another() const override { return std::make_unique<VirtualStore>(shape(), options_); }

 private:
  kv::Reserved reserved_;
  VirtualOptions options_;
  kv::Mapping memory_;
  std::vector<int64_t> touched_;  // rows of each head that were written since they were given back
};

}  // namespace

std::unique_ptr<Store> make_virtual_store(const StoreShape& shape, const VirtualOptions& options) {
  return std::make_unique<VirtualStore>(shape, options);
}

}  // namespace attend
