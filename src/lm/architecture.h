#pragma once
// What the files of architectures share: reading hyperparameters, and the table of architectures.
#include <string>
#include <string_view>

#include "attend/lm/graph.h"

namespace attend {

// Hyperparameters under an architecture's prefix, and limits that bound every allocation that follows from them.
struct Hyperparameters {
  const Gguf& file;
  std::string prefix;  // "llama."

  int64_t integer(std::string_view key, int64_t min, int64_t max) const;
  int64_t integer(std::string_view key, int64_t min, int64_t max, int64_t fallback) const;
  double real(std::string_view key, double min, double max) const;
  double real(std::string_view key, double min, double max, double fallback) const;
  // Throws Error(kUnsupported) if the key is there and not 0.
  void require_zero(std::string_view key) const;
  [[noreturn]] void contradiction(const std::string& what) const;
};

struct Dimensions {
  int64_t layers, context, width, feed_forward, vocabulary, heads, kv_heads, d, dv;
  double epsilon;
};

// The dimensions that every transformer has. `d` and `dv` default to width / heads. Checked for range and for heads
// that divide by kv heads.
Dimensions read_dimensions(const Hyperparameters& hyper);

inline constexpr double kLeastBase = 1.000001;  // of rotary frequencies

// Rotary embeddings as `plain` with the file's base, scaling and divisors: keys rope.freq_base and rope.scaling.*,
// tensors rope_freqs and rope_factors_short and _long. Throws Error(kUnsupported) for a scaling that is not known.
Rotary read_rotary(const Hyperparameters& hyper, RopeOptions plain);

std::string layer_tensor(int64_t layer, std::string_view name);  // "blk.3.attn_q.weight"

struct Architecture {
  std::string_view name;
  Graph (*make)(const Gguf&);
};

Graph make_llama(const Gguf& file);
Graph make_gemma3(const Gguf& file);

}  // namespace attend
