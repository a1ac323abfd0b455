#pragma once
// What a store should hold: lists of positions and rows, and random sequences of what may happen to a store.
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "attend/kv/codec.h"
#include "attend/kv/rewrite_values.h"
#include "attend/kv/store.h"
#include "attend/simd/isa.h"
#include "attend/tensor/context.h"
#include "attend/tensor/quantised_row.h"

namespace attend::test {

// What a row reads as.
inline std::vector<float> stored(const std::vector<float>& row, DType codec) {
  std::vector<float> x = row;
  if (is_quantised(codec)) {
    const int64_t n = static_cast<int64_t>(row.size());
    std::vector<uint8_t> coded(static_cast<size_t>(row_bytes(codec, n)));
    quantise_row(row.data(), n, codec, coded.data());
    dequantise_row(coded.data(), n, codec, x.data());
    return x;
  }
  for (float& v : x) v = codec == DType::kF16 ? to_f32(to_f16(v)) : codec == DType::kBF16 ? to_f32(to_bf16(v)) : v;
  return x;
}

struct NaiveKey {
  int32_t position;
  std::vector<float> k, v;
  size_t stage = 0;
};

class NaiveStore {
 public:
  NaiveStore(const StoreShape& shape, const Codec& codec)
      : shape_(shape), codec_(codec), heads_(static_cast<size_t>(shape.layers * shape.kv_heads)) {}

  std::vector<NaiveKey>& at(int layer, int head) { return heads_[static_cast<size_t>(layer * shape_.kv_heads + head)]; }

  // Empty, or in what the store differs.
  std::string difference(const Store& store) {
    for (int layer = 0; layer < shape_.layers; ++layer)
      for (int head = 0; head < shape_.kv_heads; ++head)
        if (std::string text = difference(store.keys(layer, head), at(layer, head)); !text.empty())
          return fmt::format("layer {} head {}: {}", layer, head, text);
    return "";
  }

  // Keys pass from stage to stage, in groups of positions.
  void settle(int64_t tokens) {
    for (std::vector<NaiveKey>& keys : heads_)
      for (size_t s = 0; s < codec_.stages.size(); ++s) {
        const CodecStage& stage = codec_.stages[s];
        for (int64_t first = 0; first + codec_.group <= tokens - stage.age; first += codec_.group) {
          std::vector<NaiveKey*> group;
          for (NaiveKey& key : keys)
            if (key.stage == s && key.position >= first && key.position < first + codec_.group) group.push_back(&key);
          code(group, stage);
        }
      }
  }

 private:
  void code(const std::vector<NaiveKey*>& group, const CodecStage& stage) const {
    if (group.empty()) return;
    const int64_t rows = static_cast<int64_t>(group.size()), bytes = row_bytes(stage.keys, shape_.d);
    if (is_by_channel(stage.keys)) {
      std::vector<float> all;
      for (const NaiveKey* key : group) all.insert(all.end(), key->k.begin(), key->k.end());
      std::vector<F16> scale(static_cast<size_t>(shape_.d)), offset(scale.size());
      std::vector<uint8_t> coded(static_cast<size_t>(rows * bytes));
      quantise_channels(all.data(), rows, shape_.d, stage.keys, scale.data(), offset.data(), coded.data());
      const RowRun run{coded.data(), bytes, stage.keys, scale.data(), offset.data()};
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < shape_.d; ++c)
          group[static_cast<size_t>(r)]->k[static_cast<size_t>(c)] = element_of(run, r, shape_.d, c);
    }
    for (NaiveKey* key : group) {
      if (!is_by_channel(stage.keys)) key->k = stored(key->k, stage.keys);
      key->v = stored(key->v, stage.values);
      ++key->stage;
    }
  }

  std::string difference(const KeyView& view, const std::vector<NaiveKey>& keys) const {
    if (view.count() != static_cast<int64_t>(keys.size()))
      return fmt::format("{} of {} keys", view.count(), keys.size());
    int64_t next = 0;
    for (const KeyRun& run : view.runs) {
      if (run.first_slot != next || run.count < 1)
        return fmt::format("a run from slot {} instead of {}", run.first_slot, next);
      for (int64_t i = 0; i < run.count; ++i, ++next) {
        const NaiveKey& key = keys[static_cast<size_t>(next)];
        const bool fresh = key.stage == 0;
        if (run.k_type != (fresh ? codec_.type : codec_.stages[key.stage - 1].keys) ||
            run.v_type != (fresh ? codec_.type : codec_.stages[key.stage - 1].values))
          return fmt::format("another type of slot {}", next);
        if ((view.position.empty() ? next : view.position[static_cast<size_t>(next)]) != key.position)
          return fmt::format("the position of slot {}", next);
        for (int64_t c = 0; c < shape_.d; ++c)
          if (element_of(run.keys(), i, shape_.d, c) != key.k[static_cast<size_t>(c)])
            return fmt::format("key {} of slot {}", c, next);
        for (int64_t c = 0; c < shape_.dv; ++c)
          if (element_of(run.values(), i, shape_.dv, c) != key.v[static_cast<size_t>(c)])
            return fmt::format("value {} of slot {}", c, next);
      }
    }
    return "";
  }

  StoreShape shape_;
  Codec codec_;
  std::vector<std::vector<NaiveKey>> heads_;
};

// Random events on a sequence and its forks: `random` gives any 32 bits. Every store must follow its naive twin.
class StoreWalk {
 public:
  StoreWalk(std::function<std::unique_ptr<Store>(const StoreShape&)> open, const StoreShape& shape,
            std::function<uint32_t()> random)
      : StoreWalk(std::move(open), shape, Codec(shape.codec), std::move(random)) {}
  StoreWalk(std::function<std::unique_ptr<Store>(const StoreShape&)> open, const StoreShape& shape, const Codec& codec,
            std::function<uint32_t()> random)
      : open_(std::move(open)), shape_(shape), codec_(codec), random_(std::move(random)) {
    start();
  }

  // Empty, or what went wrong.
  std::string step() {
    const size_t which = random_() % texts_.size();
    Text& text = texts_[which];
    const uint32_t what = random_() % (codec_.stages.empty() ? 28 : 36);
    if (what < 15) {
      append(text);
    } else if (what < 21) {
      keep(text);
    } else if (what == 21) {
      if (texts_.size() < 4) {
        Text fork{text.store->fork(), text.naive, text.next};
        texts_.push_back(std::move(fork));
      }
    } else if (what == 22) {
      if (texts_.size() < 4) start();
    } else if (what > 23) {
      what < 26 ? cut(text) : what < 28 ? rewrite(text) : settle(text);
    } else if (random_() % 2) {
      text.store->clear();
      text.naive = NaiveStore(shape_, codec_);
      text.next.assign(text.next.size(), 0);
    } else {
      texts_.erase(texts_.begin() + static_cast<int64_t>(which));
      if (texts_.empty()) start();
    }
    for (size_t t = 0; t < texts_.size(); ++t)
      if (std::string found = texts_[t].naive.difference(*texts_[t].store); !found.empty())
        return fmt::format("text {} of {}: {}", t, texts_.size(), found);
    return "";
  }

 private:
  struct Text {
    std::unique_ptr<Store> store;
    NaiveStore naive;
    std::vector<int32_t> next;  // position, of each layer
  };

  void start() {
    texts_.push_back(
        {open_(shape_), NaiveStore(shape_, codec_), std::vector<int32_t>(static_cast<size_t>(shape_.layers))});
  }

  // Rows of one of few texts, so that pages of equal content occur.
  std::vector<float> row(uint32_t text, int layer, int head, int32_t position, int64_t width) const {
    std::vector<float> x(static_cast<size_t>(width));
    uint32_t state = text * 2654435761u + static_cast<uint32_t>(layer * 64 + head) * 40503u +
                     static_cast<uint32_t>(position) * 2246822519u + static_cast<uint32_t>(width);
    for (float& v : x) {
      state = state * 1664525u + 1013904223u;
      v = static_cast<float>(static_cast<int32_t>(state >> 8) - (1 << 23)) * 0x1p-21f;
    }
    return x;
  }

  // Positions go on from where the layer's were: some come again.
  void cut(Text& text) {
    const int layer = static_cast<int>(random_() % static_cast<uint32_t>(shape_.layers));
    int32_t& next = text.next[static_cast<size_t>(layer)];
    next -= static_cast<int32_t>(random_() % (random_() % 3 ? 9u : static_cast<uint32_t>(next) + 1));
    next = std::max(next, 0);
    for (int h = 0; h < shape_.kv_heads; ++h) {
      std::vector<NaiveKey>& keys = text.naive.at(layer, h);
      while (!keys.empty() && keys.back().position >= next) keys.pop_back();
      text.store->cut(layer, h, static_cast<int64_t>(keys.size()));
    }
  }

  void settle(Text& text) {
    const int64_t next = *std::max_element(text.next.begin(), text.next.end());
    const int64_t tokens = next + 1 - static_cast<int64_t>(random_() % 20);
    text.store->settle(tokens);
    text.naive.settle(tokens);
  }

  void append(Text& text) {
    const int layer = static_cast<int>(random_() % static_cast<uint32_t>(shape_.layers));
    int32_t& next = text.next[static_cast<size_t>(layer)];
    int64_t held = 0;
    for (int h = 0; h < shape_.kv_heads; ++h)
      held = std::max(held, static_cast<int64_t>(text.naive.at(layer, h).size()));
    int64_t t = random_() % 5 ? random_() % 8 : 1 + random_() % 200;
    t = std::min(t, 600 - held);
    if (t <= 0) return;
    const uint32_t source = random_() % 3;
    std::vector<int32_t> position;
    for (int64_t i = 0; i < t; ++i) {
      next += random_() % 60 == 0 ? 5 : 0;
      position.push_back(next++);
    }
    std::vector<float> k, v;  // [t, heads, width]
    for (int64_t i = 0; i < t; ++i)
      for (int h = 0; h < shape_.kv_heads; ++h) {
        const std::vector<float> a = row(source, layer, h, position[static_cast<size_t>(i)], shape_.d);
        const std::vector<float> b = row(source, layer, h, position[static_cast<size_t>(i)], shape_.dv);
        k.insert(k.end(), a.begin(), a.end());
        v.insert(v.end(), b.begin(), b.end());
        text.naive.at(layer, h).push_back(
            {position[static_cast<size_t>(i)], stored(a, shape_.codec), stored(b, shape_.codec)});
      }
    auto view = [&](std::vector<float>& rows, int64_t width) {
      View heads = dense_view(rows.data(), DType::kF32, {shape_.kv_heads, t, width});
      heads.stride = {width, shape_.kv_heads * width, 1};
      return heads;
    };
    text.store->append(layer, view(k, shape_.d), view(v, shape_.dv), position);
  }

  void keep(Text& text) {
    const int layer = static_cast<int>(random_() % static_cast<uint32_t>(shape_.layers));
    const int head = static_cast<int>(random_() % static_cast<uint32_t>(shape_.kv_heads));
    std::vector<NaiveKey>& keys = text.naive.at(layer, head);
    std::vector<int64_t> slots;
    std::vector<NaiveKey> kept;
    const uint32_t how = random_() % 5;  // all, the end, the beginning, some, a window after sinks
    const size_t cut = keys.empty() ? 0 : random_() % keys.size();
    for (size_t s = 0; s < keys.size(); ++s)
      if (how == 0 || (how == 1 && s >= cut) || (how == 2 && s < cut) || (how == 3 && random_() % 2) ||
          (how == 4 && (s < 4 || s >= cut / 32 * 32))) {
        slots.push_back(static_cast<int64_t>(s));
        kept.push_back(keys[s]);
      }
    text.store->keep(layer, head, slots);
    keys = kept;
  }

  void rewrite(Text& text) {
    const int layer = static_cast<int>(random_() % static_cast<uint32_t>(shape_.layers));
    const int head = static_cast<int>(random_() % static_cast<uint32_t>(shape_.kv_heads));
    std::vector<NaiveKey>& keys = text.naive.at(layer, head);
    const uint32_t source = 3 + random_() % 2, every = 1 + random_() % 9;
    std::vector<int64_t> slots;
    std::vector<float> values;
    for (size_t s = 0; s < keys.size(); ++s) {
      if (random_() % every != 0) continue;
      const std::vector<float> x = row(source, layer, head, keys[s].position, shape_.dv);
      slots.push_back(static_cast<int64_t>(s));
      values.insert(values.end(), x.begin(), x.end());
      keys[s].v = stored(x, keys[s].stage == 0 ? shape_.codec : codec_.stages[keys[s].stage - 1].values);
    }
    rewrite_values(*text.store, layer, head, slots, values, active_isa(context_));
  }

  std::function<std::unique_ptr<Store>(const StoreShape&)> open_;
  StoreShape shape_;
  Codec codec_;
  Context context_{1};
  std::function<uint32_t()> random_;
  std::vector<Text> texts_;
};

}  // namespace attend::test
