#pragma once
// Rotary options as entries offer them.
#include "attend/exact/rope.h"
#include "attend/tensor/operator.h"

namespace attend::exact {

inline constexpr Option kBase = {"base", "",  "pair i turns by base^(-2i / dims) a token", "10000", OptionType::kReal,
                                 1.0001, 1e15};
inline constexpr Option kInterleaved = {"interleaved",
                                        "",
                                        "pairs are (x[2i], x[2i + 1]) instead of (x[i], x[i + dims / 2])",
                                        "false",
                                        OptionType::kFlag,
                                        0,
                                        0};
inline constexpr Option kDims = {
    "dims", "", "rotated elements of a head, its first ones, even; 0 means all", "0", OptionType::kInteger, 0, 512};
inline constexpr Option kScaling = {
    "scaling", "", "how frequencies stretch over a longer context", "none", OptionType::kText,
    0,         0,  "none|linear|ntk|dynamic|yarn|llama3|longrope"};
inline constexpr Option kFactor = {"factor", "", "by how much the context grows", "1", OptionType::kReal, 1, 1e6};
inline constexpr Option kOriginal = {
    "original", "tokens", "context that the model was trained on", "4096", OptionType::kInteger, 2, 1e12};
inline constexpr Option kMagnitude = {
    "magnitude", "", "factor on rotated queries and keys; 0 means what the scaling says", "0", OptionType::kReal,
    0,           1e6};
inline constexpr Option kExtrapolation = {
    "extrapolation", "", "yarn: share of the ramp between the frequencies", "1", OptionType::kReal, 0, 1};
inline constexpr Option kBetaFast = {
    "beta_fast", "turns", "yarn: faster pairs are not interpolated", "32", OptionType::kReal, 1e-6, 1e6};
inline constexpr Option kBetaSlow = {
    "beta_slow", "turns", "yarn: slower pairs are interpolated wholly", "1", OptionType::kReal, 1e-6, 1e6};
inline constexpr Option kLowFactor = {
    "low_factor", "turns", "llama3: slower pairs are interpolated wholly", "1", OptionType::kReal, 1e-6, 1e6};
inline constexpr Option kHighFactor = {
    "high_factor", "turns", "llama3: faster pairs are not interpolated", "4", OptionType::kReal, 1e-6, 1e6};

// All of them, in a list of options.
#define ATTEND_ROTARY_OPTIONS                                                                          \
  exact::kDims, exact::kBase, exact::kInterleaved, exact::kScaling, exact::kFactor, exact::kOriginal,  \
      exact::kMagnitude, exact::kExtrapolation, exact::kBetaFast, exact::kBetaSlow, exact::kLowFactor, \
      exact::kHighFactor

// The rotary options that a completed spec has.
RopeOptions rope_options(const Spec& spec);

// Of options with dims set, whose frequencies don't depend on the text's length.
RopeTable divided_table(const RopeOptions& options, std::span<const float> divisors);
[[noreturn]] void refuse_divisors(std::string_view op);

// Why heads of d elements can't be rotated so, empty if they can.
std::string_view rope_refuses(const RopeOptions& options, int64_t d);

}  // namespace attend::exact
