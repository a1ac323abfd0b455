#pragma once
// Options of rotary position embeddings; see attend/exact/rope.h for what they mean together.
#include <cstdint>
#include <string_view>

namespace attend {

enum class RopeScaling { kNone, kLinear, kNtk, kDynamicNtk, kYarn, kLlama3, kLongRope };
inline constexpr std::string_view kRopeScalings[] = {"none", "linear", "ntk", "dynamic", "yarn", "llama3", "longrope"};

struct RopeOptions {
  int64_t dims = 0;          // rotated elements of a head, its first ones, even; 0: all
  double base = 10000;       // pair i turns by base^(-2i / dims) a token before scaling
  bool interleaved = false;  // pairs (x[2i], x[2i + 1]) instead of (x[i], x[i + dims / 2])
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1;         // by how much the context grows, at least 1
  int64_t original = 0;      // tokens that the model was trained on; needed by dynamic, yarn, llama3 and longrope
  double magnitude = 0;      // factor on rotated queries and keys; 0: what the scaling says (1 but for yarn, longrope)
  double extrapolation = 1;  // yarn: share of the ramp between interpolated and extrapolated frequencies
  double beta_fast = 32;     // yarn: turns within the trained context above which a pair is not interpolated
  double beta_slow = 1;      // yarn: turns below which it is interpolated wholly
  double low_factor = 1;     // llama3: a pair that turns less often within the trained context is interpolated wholly
  double high_factor = 4;    // llama3: one that turns more often is not
};

// Where a query stands for sinks that lie further back than its window: at its position in the text, or right behind
// the window, as if what lies between had never been written.
enum class RopePositions { kText, kCache };
inline constexpr std::string_view kRopePositions[] = {"text", "cache"};

struct RopeAttentionOptions {
  bool causal = false;
  double scale = 0;    // 0: 1/sqrt(D)
  int64_t window = 0;  // tokens, counting the query's own; 0: no limit
  int64_t sinks = 0;   // tokens at the start that a window keeps visible
  RopePositions positions = RopePositions::kText;
  RopeOptions rope = {};
};

}  // namespace attend
