#include "attend/kv/offloaded_store.h"

#include <algorithm>

#include "attend/tensor/error.h"
#include "kv/mapped_file.h"
#include "kv/mapping.h"
#include "kv/reserved.h"
#include "kv/store_base.h"

namespace attend {
namespace {

constexpr int64_t kGrow = 64 << 10;  // bytes that the file grows by, in each region

OffloadedOptions checked(const OffloadedOptions& options) {
  constexpr int64_t kMost = int64_t{1} << 40;
  if (options.resident < 0 || options.resident > kMost)
    throw Error(ErrorKind::kArgument, "offloaded", "resident", std::to_string(options.resident), "must be 0..2^40 MiB");
  return options;
}

class OffloadedStore : public kv::StoreBase {
 public:
  OffloadedStore(const StoreShape& shape, const OffloadedOptions& options)
      : StoreBase(shape),
        reserved_("offloaded", shape, options.reserve),
        options_(checked(options)),
        limit_(options.resident << 20),
        file_("offloaded", options.directory, reserved_.bytes()),
        regions_(2 * heads()),
        evicted_(static_cast<size_t>(shape.layers)) {}

  int64_t disk_bytes() const override { return file_.disk_bytes(); }

  // The next layer is read ahead, the last one is written, the one before it goes.
  void turn_to(int layer) override {
    const int layers = shape().layers, stay = staying();
    evicted_[static_cast<size_t>(layer)] = false;
    if (stay == layers) return;
    const int next = (layer + 1) % layers, last = (layer + layers - 1) % layers, before = (layer + layers - 2) % layers;
    if (evicted_[static_cast<size_t>(next)]) {
      each_region(next, [&](int64_t begin, int64_t end) { file_.read_ahead(begin, end); });
      evicted_[static_cast<size_t>(next)] = false;
    }
    if (last >= stay && last != layer)
      each_region(last, [&](int64_t begin, int64_t end) { file_.write_behind(begin, end); });
    if (before >= stay && before != layer && before != next) evict(before);
  }

 protected:
  void reserve(size_t first, size_t last, int64_t tokens) override {
    for (size_t h = first; h < last; ++h) reserved_.check(count(h) + tokens);
    for (size_t r = 2 * first; r < 2 * last; ++r) {
      const int64_t wanted = (count(r / 2) + tokens) * row_of(r), held = regions_[r];
      if (wanted <= held) continue;
      const int64_t end = std::min(kv::round_up(wanted, kGrow), size_of_region(r));
      file_.allocate(at(r) + held, at(r) + end);
      regions_[r] = end;
    }
    turn_to(static_cast<int>(first) / shape().kv_heads);
  }

  Place place(size_t head, int64_t slot) const override {
    return {file_.data() + reserved_.k_at(head) + slot * k_row(), file_.data() + reserved_.v_at(head) + slot * v_row(),
            reserved_.tokens - slot};
  }

  void compact(size_t head, std::span<const int64_t> slots) override { move_rows(head, slots); }

  void shrink(size_t head) override {
    for (size_t r = 2 * head; r < 2 * head + 2; ++r) {
      const int64_t end = kv::round_up(count(head) * row_of(r), kv::system_page());
      if (end >= regions_[r]) continue;
      file_.give_back(at(r) + end, at(r) + regions_[r]);
      regions_[r] = end;
    }
    // Keys that were kept moved through memory: a layer that does not stay goes once its last head is done.
    const int heads_a_layer = shape().kv_heads, layer = static_cast<int>(head) / heads_a_layer;
    if (static_cast<int>(head) % heads_a_layer == heads_a_layer - 1 && layer >= staying()) evict(layer);
  }

  int64_t row_memory() const override {
    int64_t total = 0;
    for (size_t r = 0; r < regions_.size(); ++r) total += file_.resident(at(r), at(r) + regions_[r]);
    return total;
  }

  std::unique_ptr<StoreBase> open_another() const override {
    return std::make_unique<OffloadedStore>(shape(), options_);
  }

 private:
  // Regions are counted through: keys and values of a head in turn.
  int64_t at(size_t region) const { return region % 2 ? reserved_.v_at(region / 2) : reserved_.k_at(region / 2); }
  int64_t row_of(size_t region) const { return region % 2 ? v_row() : k_row(); }
  int64_t size_of_region(size_t region) const { return region % 2 ? reserved_.v_region : reserved_.k_region; }

  template <class F>
  void each_region(int layer, F f) {
    const size_t first = 2 * static_cast<size_t>(layer) * static_cast<size_t>(shape().kv_heads);
    for (size_t r = first; r < first + 2 * static_cast<size_t>(shape().kv_heads); ++r)
      f(at(r), at(r) + kv::round_up(count(r / 2) * row_of(r), kv::system_page()));
  }

  int64_t layer_bytes(int layer) const {
    const size_t first = static_cast<size_t>(layer) * static_cast<size_t>(shape().kv_heads);
    int64_t rows = 0;
    for (size_t h = first; h < first + static_cast<size_t>(shape().kv_heads); ++h) rows += count(h);
    return rows * (k_row() + v_row());
  }

  // Layers that are never evicted: all, or the first ones.
  int staying() const {
    int64_t total = 0, largest = 0;
    for (int layer = 0; layer < shape().layers; ++layer) {
      total += layer_bytes(layer);
      largest = std::max(largest, layer_bytes(layer));
    }
    if (total <= limit_) return shape().layers;
    int layer = 0;
    for (int64_t held = 3 * largest; layer < shape().layers && (held += layer_bytes(layer)) <= limit_; ++layer) {
    }
    return layer;
  }

  void evict(int layer) {
    each_region(layer, [&](int64_t begin, int64_t end) { file_.evict(begin, end); });
    evicted_[static_cast<size_t>(layer)] = true;
  }

  kv::Reserved reserved_;
  OffloadedOptions options_;
  int64_t limit_;  // bytes
  kv::MappedFile file_;
  std::vector<int64_t> regions_;  // bytes that the file holds of each
  std::vector<bool> evicted_;     // of layers
};

}  // namespace

std::unique_ptr<Store> make_offloaded_store(const StoreShape& shape, const OffloadedOptions& options) {
  return std::make_unique<OffloadedStore>(shape, options);
}

}  // namespace attend
