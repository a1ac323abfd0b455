// What one full step looked at is read again: by the tokens that follow (Recycled Attention), or by the layers that
// follow (TidalDecode).
#include <algorithm>
#include <cmath>

#include "attend/sparse/selector.h"
#include "attend/tensor/registry.h"
#include "sparse/entries.h"
#include "sparse/largest.h"
#include "sparse/selector_of.h"

namespace attend {
namespace {

// Slots of the `budget` keys that the heads of a group gave most weight in sum, ascending.
std::vector<int64_t> most_weighted(std::span<const std::vector<float>> weights, int64_t budget, Isa isa) {
  const size_t n = weights[0].size();
  std::vector<float> sum(n, 0.0f);
  for (const std::vector<float>& head : weights)
    for (size_t j = 0; j < n; ++j) sum[j] += head[j];
  std::vector<int64_t> slots;
  std::vector<int32_t> order;
  largest(sum, std::min<int64_t>(budget, static_cast<int64_t>(n)), isa, order, slots);
  return slots;
}

struct HeavyKeys {
  std::vector<int64_t> slots;
  int64_t seen = 0;            // keys when they were chosen; all later ones are read, too
  std::vector<int64_t> since;  // how many keys there were at each token that chose since

  void choose(std::span<const std::vector<float>> weights, int64_t budget, Isa isa) {
    slots = most_weighted(weights, budget, isa);
    seen = static_cast<int64_t>(weights[0].size());
    since.clear();
  }
  void read(const KeyView& keys, Selection& selection) const {
    for (int64_t slot : slots) append_range(selection.slots, {slot, slot + 1});
    append_range(selection.slots, {seen, keys.count()});
    selection.index_bytes = static_cast<int64_t>(slots.size() * sizeof(int64_t));
  }
};

class HeavyIndex : public SelectorIndex {
 public:
  explicit HeavyIndex(const SelectorShape& shape) : shape_(shape), heads_(shape) {}

  void update(int layer, int kv_head, const KeyView&, int64_t from) override {
    // Slots that moved are not the ones that were chosen.
    if (HeavyKeys& head = at(layer, kv_head); from < head.seen) head = HeavyKeys();
  }
  void clear() override { heads_.clear(); }
  int64_t bytes() const override {
    int64_t total = 0;
    for (const HeavyKeys& head : heads_)
      total += static_cast<int64_t>((head.slots.capacity() + head.since.capacity()) * sizeof(int64_t));
    return total;
  }

 protected:
  HeavyKeys& at(int layer, int kv_head) { return heads_.at(layer, kv_head); }
  const HeavyKeys& at(int layer, int kv_head) const { return heads_.at(layer, kv_head); }
  const SelectorShape& shape() const { return shape_; }

 private:
  SelectorShape shape_;
  PerHead<HeavyKeys> heads_;
};

struct RecycledOptions {
  int64_t budget, stride;
  double similarity;
};

class RecycledIndex : public HeavyIndex {
 public:
  RecycledIndex(const SelectorShape& shape, const RecycledOptions& options)
      : HeavyIndex(shape), o_(options), queries_(shape) {}
  static int64_t pays_from(const RecycledOptions& options) { return kPayingBudgets * options.budget; }

  void select(int layer, int kv_head, const KeyView& keys, const float* q, Selection& selection) override {
    HeavyKeys& head = at(layer, kv_head);
    if (head.seen > 0) head.since.push_back(keys.count());
    selection.everything = head.seen == 0 || static_cast<int64_t>(head.since.size()) >= o_.stride ||
                           keys.count() <= o_.budget ||
                           (o_.similarity > -1 && cosine(layer, kv_head, q) < o_.similarity);
    if (!selection.everything) head.read(keys, selection);
  }
  bool wants_weights(int) const override { return true; }
  void save(int layer, int kv_head, StateWriter& out) const override {
    const HeavyKeys& head = at(layer, kv_head);
    out.put(head.slots), out.put(head.seen), out.put(head.since);
    if (head.seen > 0) out.put(queries_.at(layer, kv_head));
  }
  void load(int layer, int kv_head, const KeyView& keys, int64_t, StateReader& in) override {
    const int64_t n = keys.count(), width = shape().group * shape().d;
    HeavyKeys head;
    in.get(head.slots, std::min(n, o_.budget));
    head.seen = in.get<int64_t>();
    in.get(head.since, n);
    StateReader::require(head.seen >= 0 && head.seen <= n);
    auto ascend = [](const std::vector<int64_t>& values, int64_t after, int64_t most) {
      for (int64_t value : values) {
        StateReader::require(value > after && value <= most);
        after = value;
      }
    };
    ascend(head.slots, -1, head.seen - 1);
    ascend(head.since, head.seen, n);
    if (head.seen > 0) {
      std::vector<float>& query = queries_.at(layer, kv_head);
      in.get(query, width);
      StateReader::require(static_cast<int64_t>(query.size()) == width);
    }
    at(layer, kv_head) = std::move(head);
  }
  // Not to before the last full step: what was chosen before it is lost.
  bool can_cut(int layer, int kv_head, int64_t count) const override { return at(layer, kv_head).seen <= count; }
  void cut(int layer, int kv_head, int64_t count) override {
    std::vector<int64_t>& since = at(layer, kv_head).since;
    while (!since.empty() && since.back() > count) since.pop_back();
  }
  void weighed(int layer, int kv_head, const float* q, std::span<const std::vector<float>> weights) override {
    at(layer, kv_head).choose(weights, o_.budget, shape().isa);
    queries_.at(layer, kv_head).assign(q, q + shape().group * shape().d);
  }
  void clear() override {
    HeavyIndex::clear();
    queries_.clear();
  }

 private:
  // Of the queries now and at the last full step, the mean over the heads of a group.
  double cosine(int layer, int kv_head, const float* q) {
    const std::vector<float>& before = queries_.at(layer, kv_head);
    double mean = 0;
    for (int g = 0; g < shape().group; ++g) {
      double xy = 0, xx = 0, yy = 0;
      for (int64_t c = g * shape().d; c < (g + 1) * shape().d; ++c) {
        const double x = static_cast<double>(q[c]), y = static_cast<double>(before[static_cast<size_t>(c)]);
        xy += x * y, xx += x * x, yy += y * y;
      }
      mean += xy / std::sqrt(std::max(xx * yy, 1e-300)) / shape().group;
    }
    return mean;
  }

  RecycledOptions o_;
  PerHead<std::vector<float>> queries_;
};

struct TidalOptions {
  int64_t budget, select, correct;
};

class TidalIndex : public HeavyIndex {
 public:
  static constexpr bool kSharesSlots = true;
  TidalIndex(const SelectorShape& shape, const TidalOptions& options) : HeavyIndex(shape), o_(options) {}
  static int64_t pays_from(const TidalOptions& options) { return kPayingBudgets * options.budget; }

  void select(int layer, int kv_head, const KeyView& keys, const float*, Selection& selection) override {
    selection.everything = layer <= o_.select || layer == o_.correct || keys.count() <= o_.budget;
    // Every token chooses anew in these layers; the ones between read what the last of them chose.
    if (selection.everything) return;
    const HeavyKeys& chosen = at(static_cast<int>(chooser(layer)), kv_head);
    selection.everything = chosen.seen != keys.count();
    if (!selection.everything) chosen.read(keys, selection);
  }
  // Every token chooses anew before it reads what was chosen.
  bool can_cut(int, int, int64_t) const override { return true; }
  bool wants_weights(int layer) const override { return layer == o_.select || layer == o_.correct; }
  void weighed(int layer, int kv_head, const float*, std::span<const std::vector<float>> weights) override {
    HeavyKeys& head = at(layer, kv_head);
    head.choose(weights, o_.budget, shape().isa);
    // The newest key is always read.
    if (const int64_t last = head.seen - 1; head.slots.back() != last) head.slots.back() = last;
  }

 private:
  int64_t chooser(int layer) const { return o_.correct > o_.select && layer > o_.correct ? o_.correct : o_.select; }

  TidalOptions o_;
};

constexpr Option kBudget = {"budget", "tokens", "keys that are read again", "1024", OptionType::kInteger, 1, 1e15};
constexpr Option kRecycledOptions[] = {
    kBudget,
    {"stride", "tokens", "every so many tokens one reads everything", "16", OptionType::kInteger, 1, 1e15},
    {"similarity", "", "so does one whose query is less like that of the last such token; -1: none", "-1",
     OptionType::kReal, -1, 1}};
constexpr Option kTidalOptions[] = {
    kBudget,
    {"select", "layer", "up to it layers read everything; it chooses for those after it", "2", OptionType::kInteger, 0,
     1e6},
    {"correct", "layer", "reads everything and chooses again; 0: none does", "9", OptionType::kInteger, 0, 1e6}};
constexpr Paper kRecycledPapers[] = {
    {"Recycled Attention: Efficient inference for long-context language models", "2411.05787", "261"}};
constexpr Paper kTidalPapers[] = {
    {"TidalDecode: Fast and Accurate LLM Decoding with Position Persistent Sparse Attention", "2410.05076", "127"}};

constexpr Entry kEntries[] = {
    {.kind = Kind::kSelector,
     .name = "recycled",
     .room = "sparse",
     .equation =
         "reads the `budget` keys of largest sum over the group of w[i,j], i the last token that read everything,\n"
         "and every key since",
     .summary = "Most tokens read what the last full step looked at most.",
     .options = kRecycledOptions,
     .in = {},
     .out = {},
     .papers = kRecycledPapers,
     .traits = {.exact_for = "texts within the budget", .forms = {}, .patterns = {}, .same_bits = SameBits::kStride},
     .notes =
         "Prompts are read densely. The schedule by similarity compares queries of each kv head, so heads may take "
         "full steps at different tokens.",
     .make = [](const Spec& spec) -> std::unique_ptr<Component> {
       return std::make_unique<SelectorOf<RecycledIndex, RecycledOptions>>(
           RecycledOptions{spec.integer("budget"), spec.integer("stride"), spec.real("similarity")});
     }},
    {.kind = Kind::kSelector,
     .name = "tidal",
     .room = "sparse",
     .equation =
         "layer l reads the `budget` keys of largest sum over the group of w[i,j] in the last choosing layer before l",
     .summary = "Two layers choose for every token what the layers after them read.",
     .options = kTidalOptions,
     .in = {},
     .out = {},
     .papers = kTidalPapers,
     .traits = {.exact_for = "texts within the budget", .forms = {}, .patterns = {}, .same_bits = SameBits::kStride},
     .notes =
         "Algorithm 1; prompts are read densely. Heads choose by group (the authors' code: by query head). Correcting "
         "stored keys now and then by a dense pass is left out.",
     .make = [](const Spec& spec) -> std::unique_ptr<Component> {
       return std::make_unique<SelectorOf<TidalIndex, TidalOptions>>(
           TidalOptions{spec.integer("budget"), spec.integer("select"), spec.integer("correct")});
     }},
};

}  // namespace

void register_recycling(Registry& registry) {
  for (const Entry& entry : kEntries) registry.add(entry);
}

}  // namespace attend
