#include "retainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "attend/kv/codec.h"
#include "attend/kv/rewrite_values.h"
#include "attend/simd/key_rows.h"
#include "attend/tensor/error.h"

namespace attend {
namespace {

// Lossless retentions act once this many tokens have passed: keys are then moved rarely, and little is held in vain.
constexpr int64_t kLookEvery = 32;

bool sees_everything(const Operator& mechanism) {
  const std::vector<KeyRange> needed = mechanism.needed_from(std::numeric_limits<int32_t>::max());
  return needed.size() == 1 && needed[0] == KeyRange{0, kNoEnd};
}

[[noreturn]] void refuse(const Spec& spec, std::string_view rule) {
  throw Error(ErrorKind::kUnsupported, "policy", spec.name, "", rule);
}

bool acts(const Retention& retention, int64_t position, bool prompt_end) {
  return prompt_end || (retention.stride() > 0 && position % retention.stride() == 0);
}

// Of `stride`, beyond `position`; none of 0.
int64_t next_multiple(int64_t stride, int64_t position) {
  return stride > 0 ? (position / stride + 1) * stride : kNoEnd;
}

}  // namespace

Retainer::Retainer(const Graph& graph, const Policy& policy, const Registry& registry,
                   std::span<const Operator* const> mechanisms)
    : graph_(graph), statistics_(graph.layers.size()) {
  for (const Operator* mechanism : mechanisms)
    implied_.push_back(sees_everything(*mechanism) ? nullptr : make_implied_retention(*mechanism));
  if (const auto& spec = policy[Kind::kRetention]) {
    retention_ = registry.make<Retention>(*spec);
    ranking_ = dynamic_cast<const Ranking*>(retention_.get());
    for (size_t layer = 0; layer < mechanisms.size(); ++layer)
      if (retention_->observes() > 0 && governed(static_cast<int>(layer)) && !mechanisms[layer]->gives_weights())
        refuse(*spec,
               fmt::format("ranks keys by their weights, which {} does not give", policy[Kind::kMechanism]->name));
    if (!retention_->lossless()) strides_.push_back(retention_->stride());
    if (retention_->observes() > 0) wanted_ = retention_->statistics();
    queries_ = retention_->queries();
    for (size_t layer = 0; layer < mechanisms.size() && queries_.ahead > 0; ++layer)
      if (governed(static_cast<int>(layer)) && mechanisms[layer]->turns())
        refuse(*spec, fmt::format("expects queries that the model's own rotary embeddings turn, which {} replaces",
                                  policy[Kind::kMechanism]->name));
  }
  if (const auto& spec = policy[Kind::kAllocator]) {
    allocator_ = registry.make<Allocator>(*spec);
    if (!ranking_) refuse(*spec, "shares out the budget of a retention that ranks keys: name one, such as snapkv");
  }
  if (const auto& spec = policy[Kind::kPlan]) {
    plan_ = registry.make<Plan>(*spec);
    plan_->check(graph.name, static_cast<int>(graph.layers.size()), graph.layers.front().kv_heads);
    for (int layer = 0; layer < static_cast<int>(graph.layers.size()); ++layer)
      for (int h = 0; h < graph.layers[static_cast<size_t>(layer)].kv_heads; ++h)
        if (const Retention* own = plan_->retention(layer, h); own && governed(layer)) {
          strides_.push_back(own->stride());
          if (own->observes() == 0) continue;
          plan_observes_ = true;
          observing_stride_ = std::max(observing_stride_, own->stride());
          if (!mechanisms[static_cast<size_t>(layer)]->gives_weights())
            refuse(*spec,
                   fmt::format("ranks keys by their weights, which {} does not give", policy[Kind::kMechanism]->name));
        }
    if (plan_observes_ && retention_ && retention_->observes() > 0 && retention_->observes() != kEveryQuery)
      refuse(*spec, fmt::format("needs the weights of every query, where {} looks at the newest alone",
                                policy[Kind::kRetention]->name));
  }
  if (const auto& spec = policy[Kind::kCodec]) {
    settling_stride_ = registry.make<Codec>(*spec)->stride;
    if (settling_stride_ > 0) strides_.push_back(settling_stride_);
  }
  std::sort(strides_.begin(), strides_.end());
  strides_.erase(std::unique(strides_.begin(), strides_.end()), strides_.end());
  wanted_.sums |= plan_observes_;
  for (size_t layer = 0; layer < statistics_.size(); ++layer) {
    const size_t heads = static_cast<size_t>(graph.layers[layer].heads);
    auto& moments = moments_.emplace_back();
    if (wants_queries(static_cast<int>(layer))) moments.resize(heads, QueryMoments(graph.layers[layer].d));
    if (wanted_.sums) statistics_[layer].sums.resize(heads);
    if (wanted_.largest) statistics_[layer].largest.resize(heads);
    if (wanted_.times) statistics_[layer].times.resize(heads);
    if (wanted_.newest) statistics_[layer].newest.resize(heads);
  }
}

bool Retainer::governed(int layer) const {
  return graph_.layers[static_cast<size_t>(layer)].window == 0;
}

const Retention* Retainer::retention_of(int layer, int kv_head) const {
  if (!governed(layer)) return nullptr;
  const Retention* planned = plan_ ? plan_->retention(layer, kv_head) : nullptr;
  return planned ? planned : retention_.get();
}

int64_t Retainer::next_act(int64_t position) const {
  int64_t next = kNoEnd;
  for (int64_t stride : strides_) next = std::min(next, next_multiple(stride, position));
  return next;
}

void Retainer::expect_act(int64_t position, int64_t prompt_end) {
  if (retention_) observed_until_ = std::min(prompt_end, next_multiple(retention_->stride(), position));
  plan_observed_ = plan_observes_ && (prompt_end != kNoEnd || observing_stride_ > 0);
}

int64_t Retainer::observed_from(int layer) const {
  if (plan_observed_ && governed(layer)) return 0;
  const int64_t queries = retention_ ? retention_->observes() : 0;
  if (wants_queries(layer) && observed_until_ != kNoEnd) return queries_.skip;
  if (queries == 0 || observed_until_ == kNoEnd || !governed(layer)) return kNoEnd;
  return queries == kEveryQuery ? 0 : std::max(acted_at_, observed_until_ - queries);
}

void Retainer::observing(const KeyRange& queries) {
  observed_ = {std::min(observed_.begin, queries.begin), std::max(observed_.end, queries.end)};
}

WeightPlaces Retainer::places(int layer, std::span<const KeyView> keys) {
  Statistics& own = statistics_[static_cast<size_t>(layer)];
  const size_t heads = static_cast<size_t>(graph_.layers[static_cast<size_t>(layer)].heads);
  const size_t group = heads / keys.size();
  Statistics::each(own, [&](auto& all, auto first) {
    for (size_t h = 0; h < all.size(); ++h) all[h].resize(static_cast<size_t>(keys[h / group].count()), first);
  });
  auto place = [](auto& all, size_t h) { return all.empty() ? nullptr : all[h].data(); };
  places_.clear();
  for (size_t h = 0; h < heads; ++h)
    places_.push_back({place(own.sums, h), place(own.largest, h), place(own.times, h), place(own.newest, h)});
  return {places_, wanted_.attended};
}

bool Retainer::act(Store& store, int64_t position, bool prompt_end, Isa isa) {
  dropped_ = false;
  // Before a budget is shared out, or keys are coded with one another, too: those out of sight must have no part in it,
  // whenever the last look was.
  const bool look = prompt_end || position - looked_at_ >= kLookEvery || next_act(position - 1) == position;
  if (look) looked_at_ = position;
  for (int layer = 0; layer < static_cast<int>(graph_.layers.size()); ++layer)
    act_on_layer(store, layer, position, prompt_end, look, isa);
  if (retention_ && acts(*retention_, position, prompt_end)) {
    acted_at_ = position;
    if (retention_->observes() != kEveryQuery && queries_.ahead == 0 && !plan_observes_) forget_weights();
  }
  if (settling_stride_ > 0 && position % settling_stride_ == 0 && store.settle(position)) {
    settled_at_ = position;
    return true;
  }
  return dropped_;
}

void Retainer::act_on_layer(Store& store, int layer, int64_t position, bool prompt_end, bool look, Isa isa) {
  const int kv_heads = graph_.layers[static_cast<size_t>(layer)].kv_heads;
  if (const Retention* implied = implied_[static_cast<size_t>(layer)].get(); implied && look)
    for (int h = 0; h < kv_heads; ++h) {
      implied->choose(held(store.keys(layer, h), layer, h, position, isa), slots_);
      keep(store, layer, h, slots_, position);
    }
  if (wants_queries(layer) && acts(*retention_, position, prompt_end)) expect_queries(layer, position, isa);
  // All heads choose before any key goes: a retention may look at the weights of the whole layer.
  std::vector<int> acting;
  std::vector<std::vector<int64_t>> kept;
  std::vector<std::vector<float>> scores;  // of heads whose budget the allocator gives
  for (int h = 0; h < kv_heads; ++h) {
    const Retention* retention = retention_of(layer, h);
    if (!retention || !(retention->lossless() ? look : acts(*retention, position, prompt_end))) continue;
    if (!retention->lossless()) final_at_ = position;
    acting.push_back(h);
    const KeyView keys = store.keys(layer, h);
    const Held own = held(keys, layer, h, position, isa);
    if (allocator_ && retention == ranking_) {
      ranking_->rank(own, scores.emplace_back());
      kept.emplace_back();
    } else {
      retention->choose(own, kept.emplace_back());
    }
  }
  if (!scores.empty()) {
    std::vector<int64_t> budgets(scores.size());
    allocator_->share({layer, static_cast<int>(graph_.layers.size()), ranking_->budget(), scores}, budgets);
    size_t next = 0;
    for (size_t i = 0; i < acting.size(); ++i)
      if (retention_of(layer, acting[i]) == ranking_) {
        keep_best(scores[next], budgets[next], kept[i]);
        ++next;
      }
  }
  for (size_t i = 0; i < acting.size(); ++i)
    merge_and_keep(*retention_of(layer, acting[i]), store, layer, acting[i], kept[i], position, isa);
}

void Retainer::merge_and_keep(const Retention& retention, Store& store, int layer, int kv_head,
                              const std::vector<int64_t>& slots, int64_t position, Isa isa) {
  const KeyView keys = store.keys(layer, kv_head);
  if (!retention.merges() || static_cast<int64_t>(slots.size()) == keys.count())
    return keep(store, layer, kv_head, slots, position);
  const Held own = held(keys, layer, kv_head, position, isa);
  const size_t width = static_cast<size_t>(own.dv);
  std::vector<float> before(static_cast<size_t>(keys.count()) * width);
  read_values(keys, 0, keys.count(), own.dv, isa, before.data());
  std::vector<float> values = before;
  retention.merge(own, slots, values);
  std::vector<int64_t> changed;  // slots that they will have
  std::vector<float> rows;
  for (size_t i = 0; i < slots.size(); ++i) {
    const size_t first = static_cast<size_t>(slots[i]) * width;
    if (std::memcmp(&values[first], &before[first], width * sizeof(float)) == 0) continue;
    changed.push_back(static_cast<int64_t>(i));
    rows.insert(rows.end(), &values[first], &values[first] + width);
  }
  keep(store, layer, kv_head, slots, position);
  rewrite_values(store, layer, kv_head, changed, rows, isa);
}

void Retainer::expect_queries(int layer, int64_t position, Isa isa) {
  const int rotary = graph_.layers[static_cast<size_t>(layer)].rotary;
  std::vector<double> cosine, sine;
  mean_rotation(angles_(rotary), position, queries_.ahead, isa, cosine, sine);
  const std::vector<QueryMoments>& heads = moments_[static_cast<size_t>(layer)];
  expected_.resize(heads.size());
  for (size_t h = 0; h < heads.size(); ++h)
    heads[h].expect(cosine, sine, graph_.rotaries[static_cast<size_t>(rotary)].options.interleaved, expected_[h]);
}

Held Retainer::held(const KeyView& keys, int layer, int kv_head, int64_t position, Isa isa) const {
  const AttentionLayer& l = graph_.layers[static_cast<size_t>(layer)];
  Held held{.keys = keys, .d = l.d, .dv = l.dv, .next_position = position};
  held.layer = layer;
  held.layers = static_cast<int>(graph_.layers.size());
  held.kv_head = kv_head;
  held.kv_heads = l.kv_heads;
  held.isa = isa;
  held.classes = classes_;
  const Statistics& own = statistics_[static_cast<size_t>(layer)];
  held.weights = own.sums;
  held.largest = own.largest;
  held.times = own.times;
  held.newest = own.newest;
  held.observed_from = observed_from(layer);
  if (wants_queries(layer)) held.expected = expected_;
  held.scale = static_cast<float>(l.scale);
  return held;
}

void Retainer::keep(Store& store, int layer, int kv_head, const std::vector<int64_t>& slots, int64_t position) {
  const int64_t count = store.keys(layer, kv_head).count();
  if (static_cast<int64_t>(slots.size()) == count) return;
  store.keep(layer, kv_head, slots);
  dropped_ = true;
  final_at_ = position;
  Statistics::each(statistics_[static_cast<size_t>(layer)], [&](auto& all, auto first) {
    const size_t group = all.size() / static_cast<size_t>(graph_.layers[static_cast<size_t>(layer)].kv_heads);
    for (size_t h = static_cast<size_t>(kv_head) * group; h < (static_cast<size_t>(kv_head) + 1) * group; ++h) {
      if (all[h].empty()) continue;
      all[h].resize(static_cast<size_t>(count), first);
      for (size_t i = 0; i < slots.size(); ++i) all[h][i] = all[h][static_cast<size_t>(slots[i])];
      all[h].resize(slots.size());
    }
  });
}

void Retainer::check_truncates(int64_t position) const {
  auto refuse = [&](std::string_view why, int64_t least) {
    throw Error(ErrorKind::kUnsupported, "truncate", "position", std::to_string(position),
                fmt::format("{}: at most back to {}", why, least));
  };
  if (position < final_at_) refuse("keys were dropped", final_at_);
  if (position < settled_at_) refuse("keys were coded anew", settled_at_);
  if (position < observed_.end && position > observed_.begin)
    refuse("weights of the tokens were added up", observed_.end);
}

void Retainer::truncate(const Store& store, int64_t position) {
  if (position <= observed_.begin) forget_weights();
  for (size_t layer = 0; layer < statistics_.size(); ++layer)
    Statistics::each(statistics_[layer], [&](auto& all, auto) {
      const size_t group = all.size() / static_cast<size_t>(graph_.layers[layer].kv_heads);
      for (size_t h = 0; h < all.size(); ++h) {
        const int64_t count = store.keys(static_cast<int>(layer), static_cast<int>(h / group)).count();
        all[h].resize(std::min(all[h].size(), static_cast<size_t>(count)));
      }
    });
  if (reads_classes()) classes_.resize(std::min(classes_.size(), static_cast<size_t>(position)));
  looked_at_ = std::min(looked_at_, position);
  acted_at_ = std::min(acted_at_, position);
}

void Retainer::save(StateWriter& out) const {
  for (int64_t value : {acted_at_, looked_at_, final_at_, settled_at_, observed_.begin, observed_.end}) out.put(value);
  out.put(classes_);
  for (const Statistics& layer : statistics_)
    Statistics::each(layer, [&](auto& all, auto) {
      for (const auto& head : all) out.put(head);
    });
  for (const auto& layer : moments_)
    for (const QueryMoments& head : layer) head.save(out);
}

void Retainer::load(const Store& store, int64_t position, StateReader& in) {
  for (int64_t* value : {&acted_at_, &looked_at_, &final_at_, &settled_at_, &observed_.begin, &observed_.end})
    *value = in.get<int64_t>();
  for (int64_t at : {acted_at_, looked_at_, final_at_, settled_at_, observed_.end})
    StateReader::require(at >= 0 && at <= position);
  StateReader::require(observed_ == kNothing || (observed_.begin >= 0 && observed_.begin < observed_.end));
  in.get(classes_, position);
  StateReader::require(static_cast<int64_t>(classes_.size()) == (reads_classes() ? position : 0));
  for (TokenClass c : classes_) StateReader::require(c <= TokenClass::kPunctuation);
  for (size_t layer = 0; layer < statistics_.size(); ++layer)
    Statistics::each(statistics_[layer], [&](auto& all, auto) {
      const size_t group = all.size() / static_cast<size_t>(graph_.layers[layer].kv_heads);
      for (size_t h = 0; h < all.size(); ++h)
        in.get(all[h], store.keys(static_cast<int>(layer), static_cast<int>(h / group)).count());
    });
  for (auto& layer : moments_)
    for (QueryMoments& head : layer) head.load(in);
}

void Retainer::forget_weights() {
  for (Statistics& layer : statistics_)
    Statistics::each(layer, [](auto& all, auto) {
      for (auto& head : all) head.clear();
    });
  for (auto& layer : moments_)
    for (QueryMoments& head : layer) head.clear();
  observed_ = kNothing;
}

void Retainer::clear() {
  forget_weights();
  observed_until_ = kNoEnd;
  classes_.clear();
  acted_at_ = looked_at_ = final_at_ = settled_at_ = 0;
}

}  // namespace attend
