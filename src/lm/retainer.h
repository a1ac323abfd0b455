#pragma once
// Who stays in a session's store: acts for the mechanism (what nobody can see any more goes) and for the policy's plan,
// allocator and retention, and observes the weights that they ask for.
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "attend/kv/allocator.h"
#include "attend/kv/plan.h"
#include "attend/kv/retention.h"
#include "attend/kv/store.h"
#include "attend/lm/graph.h"
#include "attend/tensor/registry.h"
#include "attend/tensor/state_bytes.h"
#include "query_moments.h"

namespace attend {

class Retainer {
 public:
  // `mechanisms`: of each layer; they must outlive it. Throws Error(kSpec), Error(kUnsupported).
  Retainer(const Graph& graph, const Policy& policy, const Registry& registry,
           std::span<const Operator* const> mechanisms);

  // Tokens after which a retention acts next, beyond `position`; kNoEnd: none does.
  int64_t next_act(int64_t position) const;

  // What follows `position` is about to run, in a prompt that ends at `prompt_end`; kNoEnd: in none.
  void expect_act(int64_t position, int64_t prompt_end);

  // What of the policy wants to know the weights of decoded tokens, if anything does.
  std::optional<Kind> observer_of_decoding() const {
    if (observing_stride_ > 0) return Kind::kPlan;
    if (retention_ && (retention_->observes() > 0 || queries_.ahead > 0) && retention_->stride() > 0)
      return Kind::kRetention;
    return std::nullopt;
  }
  // The first position whose queries are to be observed in a layer; kNoEnd: none.
  int64_t observed_from(int layer) const;
  // Those of [queries.begin, queries.end) are about to be gathered.
  void observing(const KeyRange& queries);
  // Where statistics of their weights go, long enough for the keys that the store holds.
  WeightPlaces places(int layer, std::span<const KeyView> keys);

  // Whether it is the queries of a layer that are observed, before they are turned; then each comes here, in ascending
  // order. Threads may share out heads.
  bool wants_queries(int layer) const { return queries_.ahead > 0 && governed(layer); }
  void add_query(int layer, int64_t head, std::span<const float> q) {
    moments_[static_cast<size_t>(layer)][static_cast<size_t>(head)].add(q);
  }
  // The angles of the model's rotary embeddings, by their index in the graph.
  void turn_by(std::function<const RopeAngles&(int)> angles) { angles_ = std::move(angles); }

  // Whether classes of tokens are wanted, in the order of tokens.
  bool reads_classes() const { return plan_ != nullptr; }
  void read(TokenClass next) { classes_.push_back(next); }

  // `position` tokens were seen. What the codec wants coded anew is, after retentions acted. True if keys were
  // dropped, or are other than before.
  bool act(Store& store, int64_t position, bool prompt_end, Isa isa);

  // Throws Error(kUnsupported) unless tokens from `position` on can go as if they had never been read.
  void check_truncates(int64_t position) const;
  // They went from the store.
  void truncate(const Store& store, int64_t position);

  // What it knows beside the keys of the store, and back, after `position` tokens. Throws Error(kFile).
  void save(StateWriter& out) const;
  void load(const Store& store, int64_t position, StateReader& in);

  void clear();

 private:
  // Layers with a window of the model's own hold little: they are left alone.
  bool governed(int layer) const;
  const Retention* retention_of(int layer, int kv_head) const;
  void act_on_layer(Store& store, int layer, int64_t position, bool prompt_end, bool look, Isa isa);
  void keep(Store& store, int layer, int kv_head, const std::vector<int64_t>& slots, int64_t position);
  // As keep(), where `retention` chose the slots: what it merges of the values of other keys is stored first.
  void merge_and_keep(const Retention& retention, Store& store, int layer, int kv_head,
                      const std::vector<int64_t>& slots, int64_t position, Isa isa);
  void forget_weights();
  void expect_queries(int layer, int64_t position, Isa isa);
  Held held(const KeyView& keys, int layer, int kv_head, int64_t position, Isa isa) const;

  const Graph& graph_;
  std::vector<std::unique_ptr<Retention>> implied_;  // of each layer; null: nothing is ever out of sight
  std::unique_ptr<Plan> plan_;
  std::unique_ptr<Allocator> allocator_;
  std::unique_ptr<Retention> retention_;
  const Ranking* ranking_ = nullptr;  // retention_, if it is one
  std::vector<int64_t> strides_;
  int64_t observed_until_ = kNoEnd;  // the next act of retention_
  int64_t settling_stride_ = 0;      // of the codec; 0: keys stay as they were stored
  int64_t settled_at_ = 0;           // the last time that some did not
  // Of the plan's retentions that observe, all of them every query: whether there are any, how often they act.
  bool plan_observes_ = false, plan_observed_ = false;
  int64_t observing_stride_ = 0;
  std::vector<TokenClass> classes_;
  int64_t acted_at_ = 0, looked_at_ = 0;
  int64_t final_at_ = 0;          // where keys went, or a retention chose: nothing before it can be undone
  KeyRange observed_ = kNothing;  // queries whose weights the statistics hold
  static constexpr KeyRange kNothing = {kNoEnd, 0};
  struct Statistics {  // of each query head of a layer, by slot
    std::vector<std::vector<float>> sums, largest;
    std::vector<std::vector<int32_t>> times, newest;

    // f(heads, what a key has before its first query) for each statistic.
    template <class Self, class F>
    static void each(Self& of, F f) {
      f(of.sums, 0.0f), f(of.largest, 0.0f), f(of.times, 0), f(of.newest, -1);
    }
  };
  WantedStatistics wanted_{.sums = false};
  WantedQueries queries_;
  std::vector<std::vector<QueryMoments>> moments_;  // of each layer and query head
  std::vector<ExpectedQuery> expected_;             // of the layer that acts
  std::function<const RopeAngles&(int)> angles_;
  std::vector<Statistics> statistics_;  // of each layer
  std::vector<KeyStatistics> places_;
  std::vector<int64_t> slots_;
  bool dropped_ = false;
};

}  // namespace attend
