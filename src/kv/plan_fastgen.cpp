// FastGen: each head keeps the kinds of keys that give its attention back, as profiling found.
#include <fmt/format.h>

#include <array>
#include <cmath>

#include "attend/kv/head_gates.h"
#include "attend/kv/plan.h"
#include "attend/tensor/error.h"
#include "attend/tensor/text.h"
#include "kv/entries.h"
#include "kv/ranking_entry.h"

namespace attend {
namespace {

// Each level keeps what the one before does, and more.
enum Level { kSpecialTokens, kPunctuation, kFrequent, kLocal, kWhole };

struct Shares {
  double local, frequent;
  int64_t stride;
};

struct Hybrid : Retention {
  Hybrid(Level up_to, const Shares& of) : level(up_to), shares(of) {}

  int64_t stride() const override { return shares.stride; }
  int64_t observes() const override { return level >= kFrequent ? kEveryQuery : 0; }
  void choose(const Held& held, std::vector<int64_t>& slots) const override {
    const int64_t n = held.keys.count();
    std::vector<bool> kept(static_cast<size_t>(n), false);
    for (int64_t slot = 0; slot < n; ++slot) {
      const TokenClass kind = held.classes[static_cast<size_t>(held.position(slot))];
      kept[static_cast<size_t>(slot)] =
          kind == TokenClass::kSpecial || (level >= kPunctuation && kind == TokenClass::kPunctuation);
    }
    auto tokens = [&](double share) { return std::llround(share * static_cast<double>(held.next_position)); };
    if (level >= kFrequent) {
      std::vector<float> scores(static_cast<size_t>(n));
      kv::mean_over_group(held, scores);
      keep_best(scores, tokens(shares.frequent), slots);
      for (int64_t slot : slots) kept[static_cast<size_t>(slot)] = true;
    }
    if (level >= kLocal)
      for (int64_t slot = slots_in(held.keys, {held.next_position - tokens(shares.local), kNoEnd}).begin; slot < n;
           ++slot)
        kept[static_cast<size_t>(slot)] = true;
    slots.clear();
    for (int64_t slot = 0; slot < n; ++slot)
      if (kept[static_cast<size_t>(slot)]) slots.push_back(slot);
  }

  Level level;
  Shares shares;
};

class FastGen : public Plan {
 public:
  FastGen(HeadGates gates, const Shares& shares)
      : gates_(std::move(gates)),
        hybrids_{Hybrid(kSpecialTokens, shares), Hybrid(kPunctuation, shares), Hybrid(kFrequent, shares),
                 Hybrid(kLocal, shares)} {
    for (double gate : gates_.gates)
      if (gate != HeadGates::kNone && gate * 4 != std::floor(gate * 4))
        throw Error(ErrorKind::kSpec, "fastgen", "plan", fmt::format("a gate of {}", gate),
                    "must hold multiples of 1/4: levels, as attend fit fastgen writes them");
  }

  void check(std::string_view model, int layers, int kv_heads) const override {
    require_model(gates_, "fastgen", model, layers, kv_heads);
  }

  const Retention* retention(int layer, int kv_head) const override {
    const double gate = gates_.gate(layer, kv_head);
    const int level = gate == HeadGates::kNone ? kWhole : static_cast<int>(gate * 4);
    return level == kWhole ? nullptr : &hybrids_[static_cast<size_t>(level)];
  }

 private:
  HeadGates gates_;
  std::array<Hybrid, kWhole> hybrids_;
};

constexpr Option kOptions[] = {
    {"plan",
     "file",
     "levels of the model's heads, as attend fit fastgen writes them",
     "",
     OptionType::kText,
     0,
     0,
     {},
     true},
    {"local", "share", "of the tokens so far, the newest, that level 3 keeps", "0.3", OptionType::kReal, 0, 1},
    {"frequent", "share", "of the tokens so far, those that got most weight, that levels 2 and 3 keep", "0.3",
     OptionType::kReal, 0, 1},
    kv::stride_option("256")};
constexpr Paper kPapers[] = {
    {"Model Tells You What to Discard: Adaptive KV Cache Compression for LLMs", "2310.01801", "125"}};

constexpr Entry kEntry = {
    .kind = Kind::kPlan,
    .name = "fastgen",
    .room = "kv",
    .equation =
        "level 0 keeps special tokens, 1 punctuation too, 2 the keys of most weight so far too, 3 the newest\n"
        "too, 4 everything; the level of a head is the lowest that gives back a share T of its attention",
    .summary = "Each head keeps the kinds of tokens that it attends to, as profiling found.",
    .options = kOptions,
    .in = {},
    .out = {},
    .papers = kPapers,
    .traits = {.exact_for = "heads of level 4", .forms = {}, .patterns = {}, .same_bits = SameBits::kStride},
    .notes =
        "Levels are a gate of 0, 1/4, 1/2, 3/4 and 1 in the file. The paper profiles every prompt at its end; here "
        "attend fit fastgen profiles a text once for a model, one level for the query heads that share a kv head. "
        "The paper acts after each token (stride=1). Punctuation is that of ASCII.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      if (spec.text("plan").empty()) throw Error(ErrorKind::kSpec, "fastgen", "plan", "", "must name a file");
      return std::make_unique<FastGen>(
          read_head_gates(spec.text("plan")),
          Shares{.local = spec.real("local"), .frequent = spec.real("frequent"), .stride = spec.integer("stride")});
    }};

}  // namespace

void register_fastgen(Registry& registry) {
  registry.add(kEntry);
}

}  // namespace attend
