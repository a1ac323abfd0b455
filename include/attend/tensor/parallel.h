#pragma once
// Loops shared by threads. Helpers of one process-wide pool join the calling thread if they come in time: a call waits
// for tasks that a helper has begun, never for a helper that the system has not run yet. On a busy machine it is then
// as fast as the calling thread alone, where a barrier of OpenMP waits for every thread's turn.
#include <cstdint>

namespace attend {

namespace internal {
void run_parallel(int threads, int64_t count, void (*task)(const void* self, int64_t index, int worker),
                  const void* self);
}  // namespace internal

// f(index, worker) once for every index in [0, count), in ascending order of their beginning; worker is in [0, threads)
// and no two calls with one worker overlap. f must not throw. What tasks write is visible after the call. A call from
// inside a task, or while another thread uses the pool, runs on the calling thread alone. A fork and join takes about a
// microsecond. On x86-64 denormals count as zero in tasks.
template <class F>
void parallel_for(int threads, int64_t count, const F& f) {
  internal::run_parallel(
      threads, count,
      [](const void* self, int64_t index, int worker) { (*static_cast<const F*>(self))(index, worker); }, &f);
}

}  // namespace attend
