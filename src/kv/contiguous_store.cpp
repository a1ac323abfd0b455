#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "attend/kv/store.h"
#include "attend/simd/isa.h"
#include "attend/simd/row_ops.h"
#include "attend/tensor/buffer.h"
#include "attend/tensor/error.h"

namespace attend {
namespace {

constexpr int64_t kStep = 32;  // tokens

int64_t round_to_step(int64_t tokens) {
  return (tokens + kStep - 1) / kStep * kStep;
}

int64_t step_at(int64_t tokens) {
  return std::max(kStep, round_to_step(tokens / 8));
}

// Keys and values of one layer and kv head.
struct Head {
  Buffer k, v, positions;  // positions empty: slot = position
  int64_t count = 0, capacity = 0, last = -1;
  KeyRun run;

  int64_t bytes() const { return k.bytes() + v.bytes() + positions.bytes(); }
};

class ContiguousStore : public Store {
 public:
  explicit ContiguousStore(const StoreShape& shape)
      : shape_(shape),
        k_row_(row_bytes(shape.codec, shape.d)),
        v_row_(row_bytes(shape.codec, shape.dv)),
        heads_(static_cast<size_t>(shape.layers) * static_cast<size_t>(shape.kv_heads)) {}

  void append(int layer, const View& k, const View& v, std::span<const int32_t> position) override {
    check_append(layer, k, v, position);
    const int64_t t = static_cast<int64_t>(position.size());
    if (t == 0) return;
    const auto narrow = row_ops(active_isa(context_)).narrow;
    reserve(layer, position);
    for (int h = 0; h < shape_.kv_heads; ++h) {
      Head& head = at(layer, h);
      for (int64_t i = 0; i < t; ++i) {
        const int64_t slot = head.count + i;
        narrow(k.at<float>({h, i}), shape_.d, shape_.codec, head.k.data() + slot * k_row_);
        narrow(v.at<float>({h, i}), shape_.dv, shape_.codec, head.v.data() + slot * v_row_);
      }
      if (head.positions.bytes())
        std::memcpy(head.positions.as<int32_t>() + head.count, position.data(), position.size_bytes());
      head.count += t;
      head.last = position.back();
      publish(head);
    }
  }

  KeyView keys(int layer, int head_index) const override {
    check_layer("keys", layer);
    if (head_index < 0 || head_index >= shape_.kv_heads)
      throw Error(ErrorKind::kArgument, "keys", "head", std::to_string(head_index),
                  fmt::format("must be below {}", shape_.kv_heads));
    const Head& head = heads_[index(layer, head_index)];
    KeyView view;
    view.k_type = view.v_type = shape_.codec;
    if (head.count) view.runs = {&head.run, 1};
    if (head.positions.bytes()) view.position = {head.positions.as<int32_t>(), static_cast<size_t>(head.count)};
    return view;
  }

  void keep(int layer, int head_index, std::span<const int64_t> slots) override {
    check_layer("keep", layer);
    if (head_index < 0 || head_index >= shape_.kv_heads)
      throw Error(ErrorKind::kArgument, "keep", "head", std::to_string(head_index),
                  fmt::format("must be below {}", shape_.kv_heads));
    Head& head = at(layer, head_index);
    int64_t previous = -1;
    for (int64_t slot : slots) {
      if (slot <= previous || slot >= head.count)
        throw Error(ErrorKind::kArgument, "keep", "slots", std::to_string(slot),
                    fmt::format("must ascend and lie below {}", head.count));
      previous = slot;
    }
    const int64_t kept = static_cast<int64_t>(slots.size());
    if (kept == head.count) return;
    // Dropping a suffix leaves every slot at its position.
    const bool prefix = kept == 0 || slots.back() == kept - 1;
    if (!prefix && !head.positions.bytes()) {
      Buffer positions(head.capacity * static_cast<int64_t>(sizeof(int32_t)));
      for (int64_t i = 0; i < head.count; ++i) positions.as<int32_t>()[i] = static_cast<int32_t>(i);
      head.positions = std::move(positions);
    }
    if (!prefix) compact(head, slots);
    head.count = kept;
    head.last = kept == 0                ? -1
                : head.positions.bytes() ? head.positions.as<int32_t>()[kept - 1]
                                         : static_cast<int32_t>(kept - 1);
    if (kept == 0) head.positions = Buffer();
    if (head.capacity - kept > 2 * step_at(kept)) set_capacity(head, round_to_step(kept));
    publish(head);
  }

  void clear() override {
    for (Head& head : heads_) head = Head();
  }

  int64_t bytes() const override {
    int64_t total = 0;
    for (const Head& head : heads_) total += head.bytes();
    return total;
  }

 private:
  size_t index(int layer, int head) const {
    return static_cast<size_t>(layer) * static_cast<size_t>(shape_.kv_heads) + static_cast<size_t>(head);
  }
  Head& at(int layer, int head) { return heads_[index(layer, head)]; }

  void check_layer(std::string_view op, int layer) const {
    if (layer < 0 || layer >= shape_.layers)
      throw Error(ErrorKind::kArgument, op, "layer", std::to_string(layer),
                  fmt::format("must be below {}", shape_.layers));
  }

  void check_append(int layer, const View& k, const View& v, std::span<const int32_t> position) const {
    check_layer("append", layer);
    const int64_t t = static_cast<int64_t>(position.size());
    auto check = [&](std::string_view name, const View& view, int64_t width) {
      if (view.type != DType::kF32 || view.rank != 3 || view.shape[0] != shape_.kv_heads || view.shape[1] != t ||
          view.shape[2] != width || (width > 1 && view.stride[2] != 1))
        throw Error(ErrorKind::kArgument, "append", name, fmt::format("{} {}", name_of(view.type), to_string(view)),
                    fmt::format("must be f32 [{}, {}, {}] with innermost stride 1", shape_.kv_heads, t, width));
    };
    check("k", k, shape_.d);
    check("v", v, shape_.dv);
    for (int h = 0; h < shape_.kv_heads; ++h) {
      int64_t previous = heads_[index(layer, h)].last;
      for (int32_t p : position) {
        if (p <= previous)
          throw Error(ErrorKind::kArgument, "append", "position", std::to_string(p),
                      fmt::format("must ascend beyond {}", previous));
        previous = p;
      }
    }
  }

  // Room for the new tokens in every head of the layer, or in none.
  void reserve(int layer, std::span<const int32_t> position) {
    const int64_t t = static_cast<int64_t>(position.size());
    std::vector<int64_t> before;
    for (int h = 0; h < shape_.kv_heads; ++h) before.push_back(at(layer, h).capacity);
    try {
      for (int h = 0; h < shape_.kv_heads; ++h) {
        Head& head = at(layer, h);
        const int64_t wanted = head.count + t;
        if (wanted > head.capacity)
          set_capacity(head, std::max(round_to_step(wanted), head.capacity + step_at(head.capacity)));
        const bool at_slots = position.front() == head.count && position.back() - position.front() == t - 1;
        if (!head.positions.bytes() && !at_slots) {
          Buffer positions(head.capacity * static_cast<int64_t>(sizeof(int32_t)));
          for (int64_t i = 0; i < head.count; ++i) positions.as<int32_t>()[i] = static_cast<int32_t>(i);
          head.positions = std::move(positions);
        }
      }
    } catch (...) {
      for (int h = 0; h < shape_.kv_heads; ++h)
        if (Head& head = at(layer, h); head.capacity != before[static_cast<size_t>(h)])
          set_capacity(head, before[static_cast<size_t>(h)]);
      throw;
    }
  }

  void set_capacity(Head& head, int64_t tokens) {
    const int64_t largest = std::numeric_limits<int64_t>::max() / 4 / std::max({k_row_, v_row_, int64_t{4}});
    if (tokens > largest)
      throw Error(ErrorKind::kMemory, "append", "tokens", std::to_string(tokens), "are more than memory can hold");
    head.k.resize(tokens * k_row_);
    head.v.resize(tokens * v_row_);
    if (head.positions.bytes()) head.positions.resize(tokens * static_cast<int64_t>(sizeof(int32_t)));
    head.capacity = tokens;
    publish(head);
  }

  void compact(Head& head, std::span<const int64_t> slots) const {
    int32_t* positions = head.positions.as<int32_t>();
    for (size_t i = 0; i < slots.size();) {
      size_t end = i + 1;  // a stretch of neighbouring slots moves at once
      while (end < slots.size() && slots[end] == slots[end - 1] + 1) ++end;
      const int64_t to = static_cast<int64_t>(i), from = slots[i], n = static_cast<int64_t>(end - i);
      if (to != from) {
        std::memmove(head.k.data() + to * k_row_, head.k.data() + from * k_row_, static_cast<size_t>(n * k_row_));
        std::memmove(head.v.data() + to * v_row_, head.v.data() + from * v_row_, static_cast<size_t>(n * v_row_));
        std::memmove(positions + to, positions + from, static_cast<size_t>(n) * sizeof(int32_t));
      }
      i = end;
    }
  }

  void publish(Head& head) const {
    head.run = {.k = head.k.data(),
                .v = head.v.data(),
                .k_stride = k_row_ / size_of(shape_.codec),
                .v_stride = v_row_ / size_of(shape_.codec),
                .first_slot = 0,
                .count = head.count};
  }

  StoreShape shape_;
  int64_t k_row_, v_row_;  // bytes
  std::vector<Head> heads_;
  Context context_{1};
};

}  // namespace

std::unique_ptr<Store> make_contiguous_store(const StoreShape& shape) {
  constexpr int64_t kMost = 1 << 20;
  if (shape.layers < 1 || shape.kv_heads < 1 || shape.d < 1 || shape.dv < 1 || shape.layers > kMost ||
      shape.kv_heads > kMost || shape.d > kMost || shape.dv > kMost)
    throw Error(ErrorKind::kArgument, "store", "shape",
                fmt::format("{} layers, {} heads, d {}, dv {}", shape.layers, shape.kv_heads, shape.d, shape.dv),
                fmt::format("must be 1..{} each", kMost));
  const bool quantised = is_quantised(shape.codec);
  if (shape.codec != DType::kF32 && shape.codec != DType::kF16 && shape.codec != DType::kBF16 && !quantised)
    throw Error(ErrorKind::kArgument, "store", "codec", name_of(shape.codec), "must be f32, f16, bf16, q8_0 or q4_0");
  if (quantised && (shape.d % kQuantisedBlock != 0 || shape.dv % kQuantisedBlock != 0))
    throw Error(ErrorKind::kArgument, "store", "codec", name_of(shape.codec),
                fmt::format("codes blocks of {}: rows of {} and {} elements are no multiples", kQuantisedBlock, shape.d,
                            shape.dv));
  return std::make_unique<ContiguousStore>(shape);
}

}  // namespace attend
