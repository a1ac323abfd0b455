#pragma once
// What the entries of retentions that rank keys share.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "attend/kv/retention.h"
#include "attend/tensor/registry.h"

namespace attend::kv {

inline constexpr double kMostTokens = 1e15;

constexpr Option budget_option(std::string_view fallback = "1024") {
  return {"budget", "tokens", "keys that a head keeps when it acts", fallback, OptionType::kInteger, 0, kMostTokens};
}
// Where a method acts at the prompt's end alone, as its paper has it, `fallback` is "0".
constexpr Option stride_option(std::string_view fallback) {
  return {"stride",
          "tokens",
          "acts each time so many tokens were seen, and at the prompt's end; 0: only there",
          fallback,
          OptionType::kInteger,
          0,
          kMostTokens};
}
constexpr Option sinks_option(std::string_view fallback = "4") {
  return {"sinks", "tokens",   "first tokens of the text that always stay", fallback, OptionType::kInteger,
          0,       kMostTokens};
}
constexpr Option recent_option(std::string_view fallback) {
  return {"recent", "tokens", "newest tokens that always stay", fallback, OptionType::kInteger, 0, kMostTokens};
}

// The options above as the spec has them.
inline RankingOptions ranking_options(const Spec& spec) {
  return {.budget = spec.integer("budget"),
          .stride = spec.integer("stride"),
          .sinks = spec.integer("sinks"),
          .recent = spec.integer("recent")};
}

// Of what a head holds at most, so many times: keys from which the retentions that were measured pay.
inline int64_t paying_keys(const RankingOptions& options) {
  return 4 * (options.budget + options.stride);
}

// Means over the query heads that read a kv head, of the sums that each key got.
inline void mean_over_group(const Held& held, std::span<float> scores) {
  const std::span<const std::vector<float>> group = held.own(held.weights);
  std::fill(scores.begin(), scores.end(), 0.0f);
  for (const std::vector<float>& head : group)
    for (size_t j = 0; j < std::min(scores.size(), head.size()); ++j)
      scores[j] += head[j] / static_cast<float>(group.size());
}

}  // namespace attend::kv
