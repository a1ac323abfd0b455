#pragma once
// What a call runs with: threads, instruction set, scratch memory, cancellation, progress.
#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <string_view>
#include <vector>

#include "attend/tensor/buffer.h"
#include "attend/tensor/isa.h"

namespace attend {

// Told how far long work has come. Calls come from the calling thread.
struct Progress {
  virtual ~Progress() = default;
  virtual void update(std::string_view what, int64_t done, int64_t total) = 0;
};

// Scratch memory of one thread, kept between calls.
class Scratch {
 public:
  // At least `bytes` bytes, 64-byte aligned, uninitialised; valid until the next call. Throws Error(kMemory).
  std::byte* reserve(int64_t bytes);
  int64_t bytes() const { return buffer_.bytes(); }

 private:
  Buffer buffer_;
};

struct Context {
  explicit Context(int threads = 0);  // 0: one per core that this process may use

  int threads;
  std::optional<Isa> isa;  // none: ATTEND_ISA, else the best usable one
  std::stop_token stop;
  Progress* progress = nullptr;
  std::vector<Scratch> scratch;  // one per thread and one shared; grown before a parallel loop

  void throw_if_stopped() const;  // Error(kCancelled)
};

}  // namespace attend
