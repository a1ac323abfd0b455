// DuoAttention: heads that need their whole context keep it, all others keep sinks and recent tokens.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "attend/kv/head_gates.h"
#include "attend/kv/plan.h"
#include "attend/tensor/error.h"
#include "kv/entries.h"
#include "kv/ranking_entry.h"

namespace attend {
namespace {

struct Streaming : Retention {
  Streaming(int64_t first, int64_t newest, int64_t every) : sinks(first), recent(newest), acts_every(every) {}

  int64_t stride() const override { return acts_every; }
  void choose(const Held& held, std::vector<int64_t>& slots) const override {
    const KeyRange first = slots_in(held.keys, {0, sinks});
    const KeyRange newest =
        slots_in(held.keys, {std::max(sinks, held.next_position - recent), std::max(sinks, held.next_position)});
    slots.resize(static_cast<size_t>(first.end + newest.end - newest.begin));
    std::iota(slots.begin(), slots.begin() + first.end, int64_t{0});
    std::iota(slots.begin() + first.end, slots.end(), newest.begin);
  }

  int64_t sinks, recent, acts_every;
};

class Duo : public Plan {
 public:
  Duo(HeadGates gates, double share, double threshold, const Streaming& streaming)
      : gates_(std::move(gates)), streaming_(streaming), whole_(gates_.gates.size(), false) {
    std::vector<size_t> order;
    for (size_t i = 0; i < gates_.gates.size(); ++i) {
      whole_[i] = gates_.gates[i] == HeadGates::kNone;
      if (!whole_[i]) order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return gates_.gates[a] > gates_.gates[b]; });
    size_t kept = static_cast<size_t>(std::llround(share * static_cast<double>(order.size())));
    if (threshold > 0)
      kept = static_cast<size_t>(
          std::count_if(order.begin(), order.end(), [&](size_t i) { return gates_.gates[i] >= threshold; }));
    for (size_t i = 0; i < kept; ++i) whole_[order[i]] = true;
  }

  void check(std::string_view model, int layers, int kv_heads) const override {
    require_model(gates_, "duo", model, layers, kv_heads);
  }

  const Retention* retention(int layer, int kv_head) const override {
    return whole_[static_cast<size_t>(layer * gates_.kv_heads + kv_head)] ? nullptr : &streaming_;
  }

 private:
  HeadGates gates_;
  Streaming streaming_;
  std::vector<bool> whole_;
};

constexpr Option kOptions[] = {
    {"plan",
     "file",
     "gates of the model's heads, as attend fit duo writes them",
     "",
     OptionType::kText,
     0,
     0,
     {},
     true},
    {"share", "share", "of the kv heads, those of the largest gates, that keep their whole context", "0.5",
     OptionType::kReal, 0, 1},
    {"threshold", "", "instead of a share: heads with a gate of at least this keep it; 0: as the share says", "0",
     OptionType::kReal, 0, 1},
    kv::sinks_option("64"),
    kv::recent_option("256"),
    kv::stride_option("256")};
constexpr Paper kPapers[] = {
    {"DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads", "2410.10819", "221"}};
constexpr std::string_view kAliases[] = {"DuoAttentionPress"};

constexpr Entry kEntry = {
    .kind = Kind::kPlan,
    .name = "duo",
    .room = "kv",
    .equation = "a head keeps j  <=>  its gate is among the largest  or  j < sinks  or  j is among the newest `recent`",
    .summary = "Retrieval heads keep their whole context, all others sinks and recent tokens alone.",
    .options = kOptions,
    .in = {},
    .out = {},
    .papers = kPapers,
    .traits = {.exact_for = "texts within sinks + recent", .forms = {}, .patterns = {}, .same_bits = SameBits::kStride},
    .notes =
        "Section 2.4: a prompt is read in chunks of `stride`, after which streaming heads drop what is old; a query "
        "sees its whole chunk. While decoding, the paper drops a key a token (stride=1). A policy's retention acts "
        "on retrieval heads. Of equal gates those of lower layers count as larger. Layers with a window of the "
        "model's own stay as they are.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      if (spec.text("plan").empty()) throw Error(ErrorKind::kSpec, "duo", "plan", "", "must name a file");
      return std::make_unique<Duo>(read_head_gates(spec.text("plan")), spec.real("share"), spec.real("threshold"),
                                   Streaming(spec.integer("sinks"), spec.integer("recent"), spec.integer("stride")));
    },
    .aliases = kAliases};

}  // namespace

void register_duo(Registry& registry) {
  registry.add(kEntry);
}

}  // namespace attend
