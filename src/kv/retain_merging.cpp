// Retentions whose dropped keys leave something of their values in the keys that stay.
#include <algorithm>

#include "kv/entries.h"
#include "kv/ranking_entry.h"

namespace attend {
namespace {

struct Cam : Ranking {
  Cam(const RankingOptions& ranking, int64_t merge, int64_t seed)
      : Ranking(ranking), merge_(merge), seed_(static_cast<uint64_t>(seed)) {}

  int64_t observes() const override { return kEveryQuery; }
  void score(const Held& held, std::span<float> scores) const override { kv::mean_over_group(held, scores); }
  bool merges() const override { return true; }

  // As if keys went one by one, the oldest first: all that come after one are still there.
  void merge(const Held& held, std::span<const int64_t> kept, std::span<float> values) const override {
    const int64_t count = held.keys.count();
    std::vector<float> weights(static_cast<size_t>(count));
    kv::mean_over_group(held, weights);
    auto next_kept = kept.begin();
    for (int64_t slot = 0; slot + 1 < count; ++slot) {
      if (next_kept != kept.end() && *next_kept == slot) {
        ++next_kept;
        continue;
      }
      const int64_t end = std::min(count, slot + 1 + merge_);
      float sum = 0;
      for (int64_t j = slot + 1; j < end; ++j) sum += weights[static_cast<size_t>(j)];
      const float mean = sum / static_cast<float>(end - slot - 1);
      // draw < weight / mean, where a mean of 0 lets any weight above it through
      if (!(draw(held, slot) * mean < weights[static_cast<size_t>(slot)])) continue;
      const float* from = values.data() + slot * held.dv;
      for (int64_t j = slot + 1; j < end; ++j)
        for (int64_t c = 0; c < held.dv; ++c)
          values[static_cast<size_t>(j * held.dv + c)] += from[c] / static_cast<float>(merge_);
    }
  }

 private:
  // Uniform in [0, 1), of a counter: the same however a text is cut, and after a state was loaded.
  float draw(const Held& held, int64_t slot) const {
    uint64_t x = seed_;
    for (const int64_t part : {int64_t{held.layer}, int64_t{held.kv_head}, held.position(slot)})
      x = mix(x + static_cast<uint64_t>(part));
    return static_cast<float>(x >> 40) * 0x1p-24f;
  }
  static uint64_t mix(uint64_t x) {  // splitmix64
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
  }

  int64_t merge_;
  uint64_t seed_;
};

constexpr Option kCamOptions[] = {
    kv::budget_option(),
    kv::stride_option("256"),
    kv::sinks_option(),
    {"recent", "tokens", "newest tokens that always stay; 0: the budget without the sinks", "0", OptionType::kInteger,
     0, kv::kMostTokens},
    {"merge", "tokens", "the next keys that share a dropped key's value", "32", OptionType::kInteger, 1, 1 << 20},
    {"seed", "", "of the draws", "0", OptionType::kInteger, 0, kv::kMostTokens},
};
constexpr Paper kCamPapers[] = {{"CaM: Cache Merging for Memory-efficient LLMs Inference", "", ""}};

constexpr Entry kEntries[] = {
    {.kind = Kind::kRetention,
     .name = "cam",
     .room = "kv",
     .equation =
         "v[t] += b[j] v[j] / merge for the next `merge` keys t after a key j that goes, the oldest j first;\n"
         "P(b[j] = 1) = min(1, w[j] / mean of these w[t]), else b[j] = 0;  w[j] = sum over queries i of w[i,j],\n"
         "the mean over the heads that read j",
     .summary = "Merges values of dropped keys into those of the next keys; keeps sinks and the newest.",
     .options = kCamOptions,
     .in = {},
     .out = {},
     .papers = kCamPapers,
     .traits = {.exact_for = "texts within the budget", .forms = {}, .patterns = {}, .same_bits = SameBits::kStride},
     .notes =
         "The authors' codes act after each token (stride=1): one draws with the newest query's weights, one with "
         "their sums so far and `merge` of 16, as here; both keep sinks and the newest tokens. With a smaller "
         "`recent`, "
         "keys of most weight stay beside these, as under h2o. Values of keys that go pass on what was merged into "
         "them. Draws are a function of seed, layer, kv head and position.",
     .make = [](const Spec& spec) -> std::unique_ptr<Component> {
       RankingOptions options = kv::ranking_options(spec);
       if (options.recent == 0) options.recent = std::max<int64_t>(0, options.budget - options.sinks);
       return std::make_unique<Cam>(options, spec.integer("merge"), spec.integer("seed"));
     }},
};

}  // namespace

void register_merging_retentions(Registry& registry) {
  for (const Entry& entry : kEntries) registry.add(entry);
}

}  // namespace attend
