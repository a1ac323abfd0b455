#pragma once
// What runs of several policies share.
#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "attend/lm/ensemble.h"
#include "attend/simd/row_ops.h"

namespace attend {

inline constexpr size_t kMostRuns = 16;  // each holds a row of logits

using Clock = std::chrono::steady_clock;

inline double seconds(Clock::duration span) {
  return std::chrono::duration<double>(span).count();
}

// What sessions report of their own prompts, told as a part of the whole.
struct Whole : Progress {
  explicit Whole(Context& c) : context(c), outer(std::exchange(c.progress, this)) {}
  ~Whole() override { context.progress = outer; }
  Whole(const Whole&) = delete;

  void update(std::string_view, int64_t now, int64_t) override { tell(now); }
  void tell(int64_t now) {
    if (outer) outer->update(what, done + now, total);
  }

  Context& context;
  Progress* outer;
  std::string what;
  int64_t done = 0, total = 0;
};

// Whether what a token reads is known only once it was decoded.
bool selects(const Readings& policy);

// The most likely tokens after what a session has read, at most `count`, fewer where the text or the context ends.
std::vector<int32_t> greedy_tokens(Ensemble& session, int64_t count, const Tokenizer& tokenizer, const RowOps& ops,
                                   Context& context);

}  // namespace attend
