#pragma once
// Sums that threads make in one order.
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

namespace attend::exact {

// Counters that let threads add to one place in a fixed order. A task waits for lower tasks only, and those have begun.
class Turns {
 public:
  explicit Turns(int64_t count) : next_(std::make_unique<std::atomic<int32_t>[]>(static_cast<size_t>(count))) {
    for (int64_t i = 0; i < count; ++i) next_[static_cast<size_t>(i)].store(0, std::memory_order_relaxed);
  }
  void wait(int64_t place, int32_t turn) {
    while (next_[static_cast<size_t>(place)].load(std::memory_order_acquire) != turn) std::this_thread::yield();
  }
  void pass(int64_t place) { next_[static_cast<size_t>(place)].fetch_add(1, std::memory_order_release); }

 private:
  std::unique_ptr<std::atomic<int32_t>[]> next_;
};

}  // namespace attend::exact
