#include "kv/store_base.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "attend/simd/isa.h"
#include "attend/simd/row_ops.h"
#include "attend/tensor/error.h"

namespace attend {

void check_store_shape(const StoreShape& shape) {
  constexpr int64_t kMost = 1 << 20;
  if (shape.layers < 1 || shape.kv_heads < 1 || shape.d < 1 || shape.dv < 1 || shape.layers > kMost ||
      shape.kv_heads > kMost || shape.d > kMost || shape.dv > kMost)
    throw Error(ErrorKind::kArgument, "store", "shape",
                fmt::format("{} layers, {} heads, d {}, dv {}", shape.layers, shape.kv_heads, shape.d, shape.dv),
                fmt::format("must be 1..{} each", kMost));
  if (int64_t{shape.layers} * shape.kv_heads > kMost)
    throw Error(ErrorKind::kArgument, "store", "shape",
                fmt::format("{} layers of {} heads", shape.layers, shape.kv_heads),
                fmt::format("must be at most {} heads in all", kMost));
  if (shape.context < 0)
    throw Error(ErrorKind::kArgument, "store", "context", std::to_string(shape.context), "must be at least 0");
  for (const DType codec : {shape.codec, shape.v_codec}) {
    const bool plain = codec == DType::kF32 || codec == DType::kF16 || codec == DType::kBF16;
    const bool of_stages = is_quantised(codec) && codec != DType::kQ8_0 && codec != DType::kQ4_0;
    if ((!plain && !is_quantised(codec)) || (of_stages && !shape.part))
      throw Error(ErrorKind::kArgument, "store", "codec", name_of(codec), "must be f32, f16, bf16, q8_0 or q4_0");
    if (is_quantised(codec) && (shape.d % kQuantisedBlock != 0 || shape.dv % kQuantisedBlock != 0))
      throw Error(ErrorKind::kArgument, "store", "codec", name_of(codec),
                  fmt::format("codes blocks of {}: rows of {} and {} elements are no multiples", kQuantisedBlock,
                              shape.d, shape.dv));
  }
}

namespace kv {
namespace {

constexpr int64_t kStep = 32;  // tokens

StoreShape checked(const StoreShape& shape) {
  check_store_shape(shape);
  return shape;
}

}  // namespace

int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

int64_t round_to_step(int64_t tokens) {
  return round_up(tokens, kStep);
}

int64_t step_at(int64_t tokens) {
  return std::max(kStep, round_to_step(tokens / 8));
}

StoreBase::StoreBase(const StoreShape& shape)
    : shape_(checked(shape)),
      k_row_(row_bytes(shape.codec, shape.d)),
      v_row_(row_bytes(shape.v_codec, shape.dv)),
      heads_(static_cast<size_t>(shape.layers) * static_cast<size_t>(shape.kv_heads)) {}

void StoreBase::append(int layer, const View& k, const View& v, std::span<const int32_t> position) {
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
  for (const DType codec : {shape_.codec, shape_.v_codec})
    if (is_quantised(codec) && codec != DType::kQ8_0 && codec != DType::kQ4_0)
      throw Error(ErrorKind::kArgument, "append", "codec", name_of(codec), "rows must come coded");
  const size_t first = index("append", layer, 0), last = first + static_cast<size_t>(shape_.kv_heads);
  for (size_t h = first; h < last; ++h) check_positions(h, position);
  if (t == 0) return;
  const auto narrow = row_ops(active_isa(context_)).narrow;
  for (size_t h = first; h < last; ++h) reserve_positions(heads_[h], position);
  reserve(first, last, t);
  for (size_t h = first; h < last; ++h) {
    Head& head = heads_[h];
    const int64_t before = head.count, model_head = static_cast<int64_t>(h - first);
    for (int64_t i = 0; i < t;) {
      const Place to = place(h, before + i);
      const int64_t n = std::min(to.rows, t - i);
      for (int64_t r = 0; r < n; ++r) {
        narrow(k.at<float>({model_head, i + r}), shape_.d, shape_.codec, to.k + r * k_row_);
        narrow(v.at<float>({model_head, i + r}), shape_.dv, shape_.v_codec, to.v + r * v_row_);
      }
      i += n;
    }
    add_positions(head, position, t);
    written(h, before);
    publish(h, first_moved(before));
  }
}

void StoreBase::append_coded(int layer, int head_index, const KeyView& keys) {
  const size_t h = index("append", layer, head_index);
  for (const KeyRun& run : keys.runs)
    if (run.k_type != shape_.codec || run.v_type != shape_.v_codec)
      throw Error(ErrorKind::kArgument, "append", "codec",
                  fmt::format("{} and {}", name_of(run.k_type), name_of(run.v_type)),
                  fmt::format("must be the store's, {} and {}", name_of(shape_.codec), name_of(shape_.v_codec)));
  const int64_t t = keys.count();
  std::vector<int32_t> slots;
  std::span<const int32_t> position = keys.position;
  if (position.empty() && !shape_.part) {
    if (t > std::numeric_limits<int32_t>::max())
      throw Error(ErrorKind::kArgument, "append", "tokens", std::to_string(t), "must have positions of 32 bits");
    slots.resize(static_cast<size_t>(t));
    std::iota(slots.begin(), slots.end(), 0);
    position = slots;
  }
  if (!shape_.part && static_cast<int64_t>(position.size()) != t)
    throw Error(ErrorKind::kArgument, "append", "positions", std::to_string(position.size()),
                fmt::format("must be one for each of {} keys", t));
  check_positions(h, position);
  if (t == 0) return;
  Head& head = heads_[h];
  reserve_positions(head, position);
  reserve(h, h + 1, t);
  const int64_t before = head.count;
  for (const KeyRun& run : keys.runs)
    for (int64_t i = 0; i < run.count; ++i) {
      const Place to = place(h, before + run.first_slot + i);
      std::memcpy(to.k, run.keys().row(i), static_cast<size_t>(k_row_));
      std::memcpy(to.v, run.values().row(i), static_cast<size_t>(v_row_));
    }
  add_positions(head, position, t);
  written(h, before);
  publish(h, first_moved(before));
}

KeyView StoreBase::keys(int layer, int head_index) const {
  const Head& head = heads_[index("keys", layer, head_index)];
  KeyView view;
  view.runs = head.runs;
  if (head.positions.bytes()) view.position = {head.positions.as<int32_t>(), static_cast<size_t>(head.count)};
  return view;
}

void StoreBase::keep(int layer, int head_index, std::span<const int64_t> slots) {
  const size_t h = index("keep", layer, head_index);
  Head& head = heads_[h];
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
  if (!prefix) {
    if (!shape_.part) make_positions(head, head.count);
    compact(h, slots);
    for (size_t i = 0; i < slots.size() && !shape_.part; ++i)
      head.positions.as<int32_t>()[i] = head.positions.as<int32_t>()[slots[i]];
  }
  lessen(h, kept, prefix ? first_moved(kept) : 0);
}

void StoreBase::cut(int layer, int head_index, int64_t count) {
  const size_t h = index("cut", layer, head_index);
  if (count < 0 || count > heads_[h].count)
    throw Error(ErrorKind::kArgument, "cut", "count", std::to_string(count),
                fmt::format("must be 0..{}", heads_[h].count));
  if (count < heads_[h].count) lessen(h, count, first_moved(count));
}

// `kept` rows are left, those from `from` on lie elsewhere.
void StoreBase::lessen(size_t h, int64_t kept, int64_t from) {
  Head& head = heads_[h];
  head.count = kept;
  if (kept == 0) head.positions = Buffer();
  head.last = kept == 0                ? -1
              : head.positions.bytes() ? head.positions.as<int32_t>()[kept - 1]
                                       : static_cast<int32_t>(kept - 1);
  constexpr int64_t kSize = sizeof(int32_t);
  if (head.positions.bytes() / kSize - kept > 2 * step_at(kept)) {
    try {
      head.positions.resize(round_to_step(kept) * kSize);
    } catch (const Error&) {  // no memory for the smaller block: the larger one stays
    }
  }
  shrink(h);
  publish(h, from);
}

void StoreBase::clear() {
  for (size_t h = 0; h < heads_.size(); ++h) {
    heads_[h] = Head();
    shrink(h);
  }
}

std::unique_ptr<Store> StoreBase::fork() const {
  std::unique_ptr<StoreBase> copy = open_another();
  for (int layer = 0; layer < shape_.layers; ++layer)
    for (int head = 0; head < shape_.kv_heads; ++head) copy->append_coded(layer, head, keys(layer, head));
  return copy;
}

int64_t StoreBase::bytes() const {
  int64_t total = row_memory();
  for (const Head& head : heads_) total += head.positions.bytes();
  return total;
}

void StoreBase::move_rows(size_t head, std::span<const int64_t> slots) {
  for (size_t i = 0; i < slots.size();) {
    size_t end = i + 1;  // a stretch of neighbouring slots moves at once
    while (end < slots.size() && slots[end] == slots[end - 1] + 1) ++end;
    const int64_t n = static_cast<int64_t>(end - i);
    if (slots[i] != static_cast<int64_t>(i)) {
      const Place to = place(head, static_cast<int64_t>(i)), from = place(head, slots[i]);
      std::memmove(to.k, from.k, static_cast<size_t>(n * k_row_));
      std::memmove(to.v, from.v, static_cast<size_t>(n * v_row_));
    }
    i = end;
  }
}

void StoreBase::share_positions(const StoreBase& other) {
  for (size_t h = 0; h < heads_.size(); ++h) {
    const Head& from = other.heads_[h];
    Head& head = heads_[h];
    head.positions = Buffer(from.positions.bytes());
    if (from.positions.bytes())
      std::memcpy(head.positions.data(), from.positions.data(), static_cast<size_t>(from.positions.bytes()));
    head.count = from.count;
    head.last = from.last;
    publish(h, 0);
  }
}

size_t StoreBase::index(std::string_view op, int layer, int head) const {
  check_layer(op, layer);
  if (head < 0 || head >= shape_.kv_heads)
    throw Error(ErrorKind::kArgument, op, "head", std::to_string(head),
                fmt::format("must be below {}", shape_.kv_heads));
  return static_cast<size_t>(layer) * static_cast<size_t>(shape_.kv_heads) + static_cast<size_t>(head);
}

void StoreBase::check_layer(std::string_view op, int layer) const {
  if (layer < 0 || layer >= shape_.layers)
    throw Error(ErrorKind::kArgument, op, "layer", std::to_string(layer),
                fmt::format("must be below {}", shape_.layers));
}

void StoreBase::check_positions(size_t head, std::span<const int32_t> position) const {
  if (shape_.part) return;
  int64_t previous = heads_[head].last;
  for (int32_t p : position) {
    if (p <= previous)
      throw Error(ErrorKind::kArgument, "append", "position", std::to_string(p),
                  fmt::format("must ascend beyond {}", previous));
    previous = p;
  }
}

// Positions are slots so far; `tokens` is the room wanted for them.
void StoreBase::make_positions(Head& head, int64_t tokens) {
  if (head.positions.bytes()) return;
  Buffer positions(round_to_step(tokens) * static_cast<int64_t>(sizeof(int32_t)));
  std::iota(positions.as<int32_t>(), positions.as<int32_t>() + head.count, 0);
  head.positions = std::move(positions);
}

void StoreBase::reserve_positions(Head& head, std::span<const int32_t> position) {
  if (shape_.part) return;
  constexpr int64_t kSize = sizeof(int32_t);
  const int64_t t = static_cast<int64_t>(position.size()), wanted = head.count + t;
  const bool at_slots = position.front() == head.count && position.back() - position.front() == t - 1;
  if (!head.positions.bytes()) {
    if (!at_slots) make_positions(head, wanted);
    return;
  }
  const int64_t capacity = head.positions.bytes() / kSize;
  if (wanted > capacity) head.positions.resize(std::max(round_to_step(wanted), capacity + step_at(capacity)) * kSize);
}

void StoreBase::add_positions(Head& head, std::span<const int32_t> position, int64_t tokens) {
  head.count += tokens;
  if (shape_.part) return;
  if (head.positions.bytes())
    std::memcpy(head.positions.as<int32_t>() + head.count - tokens, position.data(), position.size_bytes());
  head.last = position.back();
}

// Runs from slot `from` on, neighbours in memory as one.
void StoreBase::publish(size_t h, int64_t from) {
  Head& head = heads_[h];
  const int64_t k_stride = k_row_ / size_of(shape_.codec), v_stride = v_row_ / size_of(shape_.v_codec);
  from = std::min(from, head.count);
  while (!head.runs.empty() && head.runs.back().first_slot >= from) head.runs.pop_back();
  if (!head.runs.empty()) head.runs.back().count = from - head.runs.back().first_slot;
  for (int64_t slot = from; slot < head.count;) {
    const Place at = place(h, slot);
    const int64_t n = std::min(at.rows, head.count - slot);
    if (!head.runs.empty()) {
      KeyRun& run = head.runs.back();
      if (static_cast<const std::byte*>(run.k) + run.count * k_row_ == at.k &&
          static_cast<const std::byte*>(run.v) + run.count * v_row_ == at.v) {
        run.count += n;
        slot += n;
        continue;
      }
    }
    head.runs.push_back({at.k, at.v, k_stride, v_stride, slot, n, shape_.codec, shape_.v_codec});
    slot += n;
  }
}

}  // namespace kv
}  // namespace attend
