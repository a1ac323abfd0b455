// Retentions: a token decoded over what one keeps, observed and added and now and then acted on as in a model, beside a
// token over all keys.
//
// Keys, values and queries are normal, so that what is kept stands anywhere in the text, but for the newest: the most
// gaps that a budget can have. Layers take turns, so that each comes from memory; they act at different tokens, so that
// every call has its share. The error is |out - exact| / |exact| of the first layer.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "attend/exact/softmax.h"
#include "attend/exact/weight_statistics.h"
#include "attend/kv/retention.h"
#include "attend/kv/store.h"
#include "attend/simd/isa.h"
#include "attend/tensor/npy.h"
#include "attend/tensor/registry.h"
#include "bench.h"
#include "bench_inputs.h"

namespace attend::app {
namespace {

constexpr int64_t kHeads = 8, kKvHeads = 2, kGroup = kHeads / kKvHeads;
constexpr int64_t kRows = 512;     // rows that keys and values are taken from in turn
constexpr int64_t kObserved = 32;  // queries of the prompt that are, at most

struct Rows {
  Array k, v, q;
  explicit Rows(int64_t d)
      : k(make_array(DType::kF32, 3, {kKvHeads, kRows, d})),
        v(make_array(DType::kF32, 3, {kKvHeads, kRows, d})),
        q(make_array(DType::kF32, 4, {1, kHeads, kObserved, d})) {
    fill_normal(k.view, 1, 1), fill_normal(v.view, 1, 2), fill_normal(q.view, 2, 3);
  }
  static View part(const View& all, int64_t first, int64_t count) {
    View view = all;
    const int axis = all.rank - 2;
    view.data = static_cast<float*>(all.data) + first * all.stride[axis];
    view.shape[axis] = count;
    return view;
  }
};

// The layers of a text in a store, read whole or under a retention.
class Text {
 public:
  Text(const Rows& rows, int layers, int64_t n, int64_t d, const Retention* retention, Context& context)
      : rows_(rows),
        d_(d),
        n_(n),
        layers_(layers),
        retention_(retention),
        context_(context),
        store_(make_contiguous_store({.layers = layers, .kv_heads = kKvHeads, .d = d, .dv = d, .codec = DType::kF16})),
        lse_(make_array(DType::kF32, 3, {1, kHeads, kObserved})),
        scratch_(make_array(DType::kF32, 4, {1, kHeads, kObserved, d})),
        sums_(static_cast<size_t>(layers), std::vector<std::vector<float>>(kHeads)),
        next_(static_cast<size_t>(layers), n) {
    for (int layer = 0; layer < layers; ++layer) {
      for (int64_t t = 0; t < n; t += kRows) append(layer, t, std::min(kRows, n - t), (t / kRows + layer) % 7);
      if (!retention) continue;
      const int64_t queries = std::min(kObserved, retention->observes());
      if (queries > 0) attend_to(layer, kObserved - queries, queries, scratch_.view, true);
      act(layer);
    }
    for (int h = 0; h < kKvHeads; ++h) base_.push_back(store_->keys(0, h).count());
  }

  // A token of a layer, the `turn`-th. Every retention's stride, layers act, one after another.
  void step(int layer, int64_t turn, const View& out) {
    const int64_t position = next_[static_cast<size_t>(layer)]++;
    append(layer, position, 1, turn % kRows);
    attend_to(layer, turn % kObserved, 1, out, observed(layer, turn));
    if (retention_ && retention_->stride() > 0 && until_act(layer, turn) == 0) act(layer);
  }
  // What came since the prompt goes, where no retention takes it.
  void rewind() {
    if (retention_ && retention_->stride() > 0) return;
    for (int layer = 0; layer < layers_; ++layer) {
      for (int h = 0; h < kKvHeads; ++h) store_->cut(layer, h, base_[static_cast<size_t>(h)]);
      next_[static_cast<size_t>(layer)] = n_;
    }
  }
  double bytes() const {  // read of a layer for a token
    double total = 0;
    for (int h = 0; h < kKvHeads; ++h) total += static_cast<double>(2 * store_->keys(0, h).count() * d_ * 2);
    return total;
  }

 private:
  // Tokens after this one until the layer acts.
  int64_t until_act(int layer, int64_t turn) const {
    const int64_t stride = retention_->stride();
    return (layer * stride / layers_ + stride - 1 - turn % stride) % stride;
  }
  bool observed(int layer, int64_t turn) const {
    if (!retention_ || retention_->stride() == 0) return false;
    return retention_->observes() > until_act(layer, turn);
  }

  void append(int layer, int64_t first, int64_t count, int64_t row) {
    const int64_t from = std::min(row, kRows - count);
    positions_.resize(static_cast<size_t>(count));
    std::iota(positions_.begin(), positions_.end(), static_cast<int32_t>(first));
    store_->append(layer, Rows::part(rows_.k.view, from, count), Rows::part(rows_.v.view, from, count), positions_);
  }

  void attend_to(int layer, int64_t query, int64_t count, const View& out, bool observe) {
    keys_.clear();
    for (int h = 0; h < kKvHeads; ++h) keys_.push_back(store_->keys(layer, h));
    std::vector<int32_t> at(static_cast<size_t>(count));
    std::iota(at.begin(), at.end(), static_cast<int32_t>(next_[static_cast<size_t>(layer)] - count));
    const Qkv in{.q = Rows::part(rows_.q.view, query, count),
                 .keys = keys_,
                 .dv = d_,
                 .q_positions = dense_view(at.data(), DType::kI32, {1, count})};
    const AttnOut result{.out = Rows::part(out, 0, count), .lse = lse_of(count)};
    if (!observe) return softmax_attention(in, {.causal = true}, {.out = result.out}, context_);
    places_.clear();
    for (size_t h = 0; h < static_cast<size_t>(kHeads); ++h) {
      std::vector<float>& sums = sums_[static_cast<size_t>(layer)][h];
      sums.resize(static_cast<size_t>(keys_[h / static_cast<size_t>(kGroup)].count()));
      places_.push_back({.sum = sums.data()});
    }
    attend_and_add_weights(in, {.causal = true}, result, {places_}, context_);
  }
  View lse_of(int64_t count) const {
    View view = lse_.view;
    view.shape[2] = count;
    return view;
  }

  void act(int layer) {
    auto& sums = sums_[static_cast<size_t>(layer)];
    std::vector<std::vector<int64_t>> kept(kKvHeads);
    for (int h = 0; h < kKvHeads; ++h) {
      const KeyView keys = store_->keys(layer, h);
      retention_->choose({.keys = keys,
                          .d = d_,
                          .dv = d_,
                          .next_position = next_[static_cast<size_t>(layer)],
                          .layer = layer,
                          .layers = layers_,
                          .kv_head = h,
                          .kv_heads = kKvHeads,
                          .weights = sums,
                          .isa = active_isa(context_)},
                         kept[static_cast<size_t>(h)]);
    }
    for (int h = 0; h < kKvHeads; ++h) {
      const std::vector<int64_t>& slots = kept[static_cast<size_t>(h)];
      store_->keep(layer, h, slots);
      for (int64_t g = h * kGroup; g < (h + 1) * kGroup; ++g) {
        std::vector<float>& own = sums[static_cast<size_t>(g)];
        if (retention_->observes() != kEveryQuery) {
          own.clear();
          continue;
        }
        for (size_t i = 0; i < slots.size(); ++i) own[i] = own[static_cast<size_t>(slots[i])];
        own.resize(slots.size());
      }
    }
  }

  const Rows& rows_;
  int64_t d_, n_;
  int layers_;
  const Retention* retention_;
  Context& context_;
  std::unique_ptr<Store> store_;
  Array lse_, scratch_;
  std::vector<std::vector<std::vector<float>>> sums_;  // of layers and query heads
  std::vector<int64_t> next_;                          // positions, of layers
  std::vector<int64_t> base_;                          // keys of heads after the prompt
  std::vector<int32_t> positions_;
  std::vector<KeyView> keys_;
  std::vector<KeyStatistics> places_;
};

BenchResult run_retention(const std::string& spec, int64_t n, int64_t d, Limits& limits, Context& context) {
  const auto retention = registry().make<Retention>(registry().complete(parse_spec(spec)));
  // What is kept of all layers is beyond the caches, too.
  const int layers = copies_beyond_caches(4.0 * static_cast<double>(kKvHeads * std::min<int64_t>(n, 1024) * d));
  const int64_t tokens = std::max<int64_t>(1, (retention->stride() + layers - 1) / layers);
  const Rows rows(d);
  Text kept(rows, layers, n, d, retention.get(), context), whole(rows, layers, n, d, nullptr, context);
  const Array out = make_array(DType::kF32, 4, {1, kHeads, 1, d}), want = make_array(DType::kF32, 4, {1, kHeads, 1, d});
  int64_t turn = 0, plain_turn = 0;
  auto run = [&](Text& text, int64_t& at, const View& to) {
    for (int64_t t = 0; t < tokens; ++t, ++at)
      for (int layer = layers - 1; layer >= 0; --layer) text.step(layer, at, to);
    text.rewind();
  };
  run(kept, turn, out.view), run(whole, plain_turn, want.view);
  BenchResult result{};
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < out.view.count(); ++i) {
    const double x = value_at(out.view, i), y = value_at(want.view, i);
    difference += (x - y) * (x - y), norm += y * y;
  }
  result.error = std::sqrt(difference / norm);
  result.bytes = kept.bytes();
  result.flops = result.bytes / 2 * kGroup;
  const double steps = static_cast<double>(tokens * layers);
  measure(
      result, [&] { run(kept, turn, out.view); }, [&] { return steps * result.bytes / limits.reads(); }, context,
      [&] { run(whole, plain_turn, want.view); });
  for (double* x : {&result.seconds.low, &result.seconds.median, &result.seconds.high}) *x /= steps;
  return result;
}

}  // namespace

std::vector<BenchRow> retention_rows() {
  std::vector<BenchRow> rows;
  for (const Entry* entry : registry().entries()) {
    if (entry->kind != Kind::kRetention) continue;
    const std::string name(entry->name);
    const int64_t n = registry().make<Retention>(registry().complete(parse_spec(name)))->pays_from();
    if (n == 0) continue;
    for (int64_t d : {64, 128})
      rows.push_back({fmt::format("kv/{}-pays-d{}", name, d),
                      name,
                      "f16",
                      {{"Hq", kHeads}, {"Hkv", kKvHeads}, {"Tq", 1}, {"Tk", n}, {"D", d}},
                      true,
                      [=](Limits& limits, Context& context) { return run_retention(name, n, d, limits, context); }});
  }
  return rows;
}

}  // namespace attend::app
