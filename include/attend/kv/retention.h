#pragma once
// Which keys stay in a store.
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "attend/tensor/isa.h"
#include "attend/tensor/key_view.h"
#include "attend/tensor/operator.h"

namespace attend {

enum class TokenClass : uint8_t { kOther, kSpecial, kPunctuation };

// What queries to come are expected to be: normal, with this mean and covariance [d, d], turned to their positions.
struct ExpectedQuery {
  std::vector<float> mean, covariance;
};

// What a retention sees of one layer and kv head when it acts.
struct Held {
  const KeyView& keys;
  int64_t d, dv;          // elements of a key and of a value
  int64_t next_position;  // of the next token
  int layer = 0, layers = 1;
  int kv_head = 0, kv_heads = 1;
  // For each query head of the layer, by slot, what was asked for of the weights that the observed queries gave to each
  // key (attend/exact/weight_statistics.h): sums, the largest, how many queries attended to it, the position of the
  // last that did (-1: none). Empty what was not; a head's entries may end before its newest keys, which met no query.
  std::span<const std::vector<float>> weights = {}, largest = {};
  std::span<const std::vector<int32_t>> times = {}, newest = {};
  std::span<const ExpectedQuery> expected = {};  // of each query head of the layer; empty if not asked for
  float scale = 0;                               // of products of queries and keys
  int64_t observed_from = 0;                     // position of the first of these queries
  std::span<const TokenClass> classes = {};      // of all tokens so far, by position; empty where no plan is
  Isa isa = Isa::kAvx2;

  // Those of the query heads that read this kv head.
  template <class T>
  std::span<const T> own(std::span<const T> heads) const {
    const size_t group = heads.size() / static_cast<size_t>(kv_heads);
    return heads.subspan(static_cast<size_t>(kv_head) * group, group);
  }
  int64_t position(int64_t slot) const {
    return keys.position.empty() ? slot : keys.position[static_cast<size_t>(slot)];
  }
};

inline constexpr int64_t kEveryQuery = std::numeric_limits<int64_t>::max();

// Statistics of weights; `attended`: see WeightPlaces.
struct WantedStatistics {
  bool sums = true, largest = false, times = false, newest = false;
  float attended = 1;
};

// Expected queries are wanted for the next `ahead` positions (0: not wanted), from those of all positions but the
// first.
struct WantedQueries {
  int64_t ahead = 0, skip = 0;
};

struct Retention : Component {
  // Acts when the number of tokens seen is a multiple of this, and at the prompt's end; 0: only there.
  virtual int64_t stride() const = 0;

  // Of how many of the newest queries before it acts Held knows the weights, at most those since it acted last;
  // kEveryQuery: of all that a key ever met.
  virtual int64_t observes() const { return 0; }
  // Which statistics of them.
  virtual WantedStatistics statistics() const { return {}; }
  virtual WantedQueries queries() const { return {}; }

  // Slots to keep, ascending.
  virtual void choose(const Held& held, std::vector<int64_t>& slots) const = 0;

  // Whether keys that go leave something of their values in others: merge() is then called before they do.
  virtual bool merges() const { return false; }
  // Keys other than `kept` (slots, ascending) are about to go. Changes `values` [keys, dv], by slot; those of kept keys
  // are stored again where they changed.
  virtual void merge(const Held& held, std::span<const int64_t> kept, std::span<float> values) const {
    (void)held, (void)kept, (void)values;
  }

  // Keys a head from which a decoded token costs no more under it than with exact attention over all of them, weighing
  // and dropping included, with heads of 64 or more (`attend bench kv/NAME-pays` holds it against that); 0: none is
  // known.
  virtual int64_t pays_from() const { return 0; }

  // True if only keys that no later query can see are dropped: then it may act at any time without changing a result.
  virtual bool lossless() const { return false; }
};

// What retentions that rank keys have in common.
struct RankingOptions {
  int64_t budget;  // keys a head keeps when it acts; until it acts again, as many as it is told join them
  int64_t stride;
  int64_t sinks;   // first tokens of the text that stay whatever their score
  int64_t recent;  // newest tokens that do
};

// Keeps the keys of highest score: sinks first, then recent tokens, then the best; of equal ones the newest.
struct Ranking : Retention {
  explicit Ranking(const RankingOptions& options) : options_(options) {}

  int64_t stride() const final { return options_.stride; }
  int64_t budget() const { return options_.budget; }
  void choose(const Held& held, std::vector<int64_t>& slots) const final;

  // Scores by slot: infinite for sinks, the largest float for recent tokens.
  void rank(const Held& held, std::vector<float>& scores) const;

 protected:
  const RankingOptions& options() const { return options_; }

  // Scores of all keys, by slot. A NaN counts as the lowest.
  virtual void score(const Held& held, std::span<float> scores) const = 0;

 private:
  RankingOptions options_;
};

// Slots of the `budget` highest scores, ascending; of equal scores the higher slots. O(n).
void keep_best(std::span<const float> scores, int64_t budget, std::vector<int64_t>& slots);

// Keeps what `mechanism` (which must outlive it) can still see: Operator::needed_from. Lossless.
std::unique_ptr<Retention> make_implied_retention(const Operator& mechanism);

// Slots of `keys` whose positions lie in [range.begin, range.end): a half-open range of slots. O(log n).
KeyRange slots_in(const KeyView& keys, const KeyRange& range);

}  // namespace attend
