#include "attend/tensor/parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace attend::internal {
namespace {

constexpr int kMostThreads = 1024;

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");  // `yield` takes no time on most processors
#else
  std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

// While it lives, denormals count as zero on this thread. On Intel's processors each vector with one costs over a hundred
// cycles otherwise: a softmax over scores that differ by 87 or more is full of them.
class DenormalsAreZero {
 public:
#if defined(__x86_64__)
  DenormalsAreZero() : before_(_mm_getcsr()) {
    _mm_setcsr(before_ | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON);
  }
  ~DenormalsAreZero() {
    _mm_setcsr(before_);
  }
#else
  DenormalsAreZero() {}
#endif
  DenormalsAreZero(const DenormalsAreZero&) = delete;
  DenormalsAreZero& operator=(const DenormalsAreZero&) = delete;

 private:
#if defined(__x86_64__)
  unsigned before_;
#endif
};

// How long a thread waits busily before it sleeps: longer than what lies between two loops of a model, so that helpers
// are there when the next one begins.
class Patience {
 public:
  bool exhausted() {
    pause();
    if (++turns_ % kTurnsALook) return false;
    const Clock::time_point now = Clock::now();
    if (turns_ == kTurnsALook) begin_ = now;
    return now - begin_ > std::chrono::microseconds(100);
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int kTurnsALook = 64;
  int turns_ = 0;
  Clock::time_point begin_;
};

// One job at a time. `state_` holds the job's number, whether helpers may join, and how many have: a helper is inside a
// job only between joining and leaving, and a job's fields change only while it is closed and empty.
class Pool {
 public:
  static Pool& instance() {
    static Pool pool;
    return pool;
  }

  bool run(int threads, int64_t count, void (*task)(const void*, int64_t, int), const void* self) {
    std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
    if (!lock) return false;
    grow(threads - 1);
    task_ = task;
    self_ = self;
    count_ = count;
    threads_ = threads;
    next_.store(0, std::memory_order_relaxed);
    state_.store((state_.load(std::memory_order_relaxed) + kOneJob) | kOpen, std::memory_order_release);
    state_.notify_all();
    work(0);
    state_.fetch_and(~kOpen, std::memory_order_acq_rel);
    Patience patience;
    for (uint32_t state; (state = state_.load(std::memory_order_acquire)) & kJoined;)
      if (patience.exhausted()) state_.wait(state, std::memory_order_acquire);
    return true;
  }

 private:
  static constexpr uint32_t kJoined = 0x7ff, kOpen = 0x800, kOneJob = 0x1000;

  ~Pool() {
    stop_.store(true, std::memory_order_relaxed);
    state_.fetch_add(kOneJob, std::memory_order_release);
    state_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
  }

  void grow(int helpers) {
    while (static_cast<int>(helpers_.size()) < helpers) {
      const int worker = static_cast<int>(helpers_.size()) + 1;
      try {
        helpers_.emplace_back([this, worker] { help(worker); });
      } catch (const std::system_error&) {
        return;  // fewer helpers do the same work
      }
    }
  }

  void work(int worker) {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) task_(self_, i, worker);
  }

  void help(int worker) {
    const DenormalsAreZero denormals;
    uint32_t seen = 0;  // number of the last job
    while (!stop_.load(std::memory_order_relaxed)) {
      uint32_t state = state_.load(std::memory_order_acquire);
      Patience patience;
      while (state / kOneJob == seen) {
        if (patience.exhausted()) state_.wait(state, std::memory_order_acquire);
        state = state_.load(std::memory_order_acquire);
        if (stop_.load(std::memory_order_relaxed)) return;
      }
      bool joined = false;
      while ((state & kOpen) && !joined)
        joined = state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel, std::memory_order_acquire);
      seen = state / kOneJob;
      if (!joined) continue;
      if (worker < threads_) work(worker);
      const uint32_t left = state_.fetch_sub(1, std::memory_order_acq_rel);
      if ((left & kJoined) == 1 && !(left & kOpen)) state_.notify_all();
    }
  }

  std::mutex busy_;
  std::vector<std::thread> helpers_;
  std::atomic<bool> stop_ = false;
  alignas(64) std::atomic<uint32_t> state_ = 0;
  alignas(64) std::atomic<int64_t> next_ = 0;
  void (*task_)(const void*, int64_t, int) = nullptr;
  const void* self_ = nullptr;
  int64_t count_ = 0;
  int threads_ = 0;
};

}  // namespace

void run_parallel(int threads, int64_t count, void (*task)(const void* self, int64_t index, int worker),
                  const void* self) {
  const DenormalsAreZero denormals;
  threads = static_cast<int>(std::min<int64_t>({threads, count, kMostThreads}));
  if (threads > 1 && Pool::instance().run(threads, count, task, self)) return;
  for (int64_t i = 0; i < count; ++i) task(self, i, 0);
}

}  // namespace attend::internal
