// Pyramid: less for each layer than for the one before. AdaKV: more for heads whose weights are spread.
#include <algorithm>
#include <limits>

#include "attend/kv/allocator.h"
#include "attend/tensor/error.h"
#include "kv/entries.h"

namespace attend {
namespace {

// Keys that stay whatever they score: sinks and recent tokens.
int64_t fixed_keys(std::span<const float> scores) {
  return std::count_if(scores.begin(), scores.end(), [](float s) { return s >= std::numeric_limits<float>::max(); });
}

struct Pyramid : Allocator {
  explicit Pyramid(double beta) : beta_(beta) {}

  void share(const LayerScores& scores, std::span<int64_t> budgets) const override {
    for (size_t h = 0; h < budgets.size(); ++h) {
      const int64_t fixed = std::min(fixed_keys(scores.heads[h]), scores.budget), free = scores.budget - fixed;
      // An arithmetic sequence over layers whose mean is the budget.
      const double last = static_cast<double>(free) / beta_, first = 2 * static_cast<double>(free) - last;
      const double step = scores.layers > 1 ? (first - last) / (scores.layers - 1) : 0;
      const double own = scores.layers > 1 ? first - step * scores.layer : static_cast<double>(free);
      budgets[h] = fixed + static_cast<int64_t>(own);
    }
  }

 private:
  double beta_;
};

struct AdaKv : Allocator {
  explicit AdaKv(double floor) : floor_(floor) {}

  void share(const LayerScores& scores, std::span<int64_t> budgets) const override {
    // Of what all heads may keep beyond their fixed keys, `floor` is shared equally and the rest goes to the best
    // scores of any head.
    struct Scored {
      float score;
      size_t head;
    };
    std::vector<Scored> candidates;
    int64_t free = 0;
    for (size_t h = 0; h < budgets.size(); ++h) {
      const std::vector<float>& own = scores.heads[h];
      budgets[h] = std::min(fixed_keys(own), scores.budget);
      free += scores.budget - budgets[h];
      for (float s : own)
        if (s < std::numeric_limits<float>::max()) candidates.push_back({s, h});
    }
    const int64_t count = std::min(free, static_cast<int64_t>(candidates.size()));
    std::stable_sort(candidates.begin(), candidates.end(),
                     [](const Scored& a, const Scored& b) { return a.score > b.score; });
    std::vector<int64_t> best(budgets.size(), 0);
    for (int64_t i = 0; i < count; ++i) ++best[candidates[static_cast<size_t>(i)].head];
    for (size_t h = 0; h < budgets.size(); ++h) {
      const double equal = static_cast<double>(scores.budget - budgets[h]);
      budgets[h] += static_cast<int64_t>(floor_ * equal + (1 - floor_) * static_cast<double>(best[h]));
    }
  }

 private:
  double floor_;
};

constexpr Option kPyramidOptions[] = {
    {"beta", "", "the last layer keeps a beta-th of the mean", "20", OptionType::kReal, 1, 1e6}};
constexpr Option kAdaOptions[] = {
    {"floor", "share", "of the budget that every head gets in any case", "0.2", OptionType::kReal, 0, 1}};
constexpr Paper kPyramidPapers[] = {
    {"PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling", "2406.02069", "099"}};
constexpr Paper kAdaPapers[] = {
    {"Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM "
     "Inference",
     "2407.11550", ""}};
constexpr std::string_view kPyramidAliases[] = {"PyramidKVPress"};
constexpr std::string_view kAdaAliases[] = {"AdaKVPress"};

constexpr Entry kEntries[] = {
    {.kind = Kind::kAllocator,
     .name = "pyramid",
     .room = "kv",
     .equation =
         "budget[l] = fixed + first - l (first - last) / (L - 1),  last = free / beta,  first = 2 free - last,\n"
         "free = budget - fixed, fixed the keys that stay whatever they score",
     .summary = "Gives lower layers more of the budget and higher ones less.",
     .options = kPyramidOptions,
     .in = {},
     .out = {},
     .papers = kPyramidPapers,
     .traits = {.exact_for = "texts within the last layer's budget", .forms = {}, .patterns = {}},
     .notes = "Goes with a retention that ranks keys; the paper's is snapkv.",
     .make = [](const Spec& spec) -> std::unique_ptr<Component> {
       return std::make_unique<Pyramid>(spec.real("beta"));
     },
     .aliases = kPyramidAliases},
    {.kind = Kind::kAllocator,
     .name = "adakv",
     .room = "kv",
     .equation = "budget[h] = fixed + floor * free + (1 - floor) * (keys of h among the best sum of free of the layer)",
     .summary = "Shares a layer's budget out among its heads by where the best scores are.",
     .options = kAdaOptions,
     .in = {},
     .out = {},
     .papers = kAdaPapers,
     .traits = {.exact_for = "texts within the floor's share of the budget", .forms = {}, .patterns = {}},
     .notes = "Algorithm 1 with the safeguard of section 3.3. Goes with a retention whose scores compare across heads: "
              "snapkv, h2o.",
     .make = [](const Spec& spec) -> std::unique_ptr<Component> { return std::make_unique<AdaKv>(spec.real("floor")); },
     .aliases = kAdaAliases},
};

}  // namespace

void register_allocators(Registry& registry) {
  for (const Entry& entry : kEntries) registry.add(entry);
}

}  // namespace attend
