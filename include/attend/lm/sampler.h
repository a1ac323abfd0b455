#pragma once
// Choosing the next token from logits, and stopping at strings.
#include <cstdint>
#include <deque>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace attend {

struct SamplerOptions {
  double temperature = 0;      // 0: greedy
  int64_t top_k = 40;          // most likely tokens that stay; 0: all
  double top_p = 0.95;         // fewest tokens whose probabilities reach it stay; 1: all
  double min_p = 0.05;         // tokens at least this share of the most likely one stay; 0: all
  double repeat_penalty = 1;   // divides positive and multiplies negative logits of recent tokens; 1: off
  int64_t repeat_window = 64;  // recent tokens
  uint64_t seed = 0;
};

// Order: repetition penalty, top-k, top-p, min-p, temperature, draw. Probabilities for top-p and min-p are taken before
// the temperature. Greedy takes the largest logit after the penalty, the lowest id among equals. A draw takes 53 bits
// of std::mt19937_64(seed), so that one seed gives one text everywhere.
class Sampler {
 public:
  // Throws Error(kArgument) for options out of range.
  explicit Sampler(const SamplerOptions& options);

  // Tells it of a token of the text so far.
  void accept(int32_t id);

  // Throws Error(kArgument) if no logit is a number. Cost O(vocabulary).
  int32_t sample(std::span<const float> logits);

 private:
  SamplerOptions options_;
  std::mt19937_64 random_;
  std::deque<int32_t> recent_;
  struct Candidate {
    int32_t id;
    float logit;
    double weight;
  };
  std::vector<Candidate> candidates_;
};

// Passes text through until a stop string appears, also one that arrives in pieces. Text from the stop string on is
// never given out; text that may yet become one is held back.
class StopStrings {
 public:
  explicit StopStrings(std::vector<std::string> stops);  // empty strings are ignored

  std::string push(std::string_view text);  // what may be shown
  std::string finish();                     // what was held back, if no stop string came
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace attend
