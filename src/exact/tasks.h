#pragma once
// Parallel tasks that call the library themselves.
#include <algorithm>
#include <exception>
#include <vector>

#include "attend/tensor/context.h"
#include "attend/tensor/parallel.h"

namespace attend::exact {

// f(index, own) for every index in [0, count), `own` a context of one thread that no other task uses meanwhile. The
// first error of a worker ends its tasks and is thrown here. Throws Error(kCancelled).
template <class F>
void run_tasks(Context& context, int64_t count, const F& f) {
  const size_t threads = static_cast<size_t>(context.threads);
  std::vector<Context> own;
  own.reserve(threads);
  for (size_t t = 0; t < threads; ++t) own.emplace_back(1).isa = context.isa;
  std::vector<std::exception_ptr> errors(threads);
  parallel_for(context.threads, count, [&](int64_t index, int worker) {
    const size_t w = static_cast<size_t>(worker);
    if (errors[w] || context.stop.stop_requested()) return;
    try {
      f(index, own[w]);
    } catch (...) {
      errors[w] = std::current_exception();
    }
  });
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
  context.throw_if_stopped();
}

// Memory that the context keeps between calls, apart from what kernels use; `index` tells apart what one call needs at
// once. Uninitialised, never null.
inline float* kept_floats(Context& context, int index, int64_t floats) {
  const size_t at = static_cast<size_t>(context.threads) + 1 + static_cast<size_t>(index);
  if (context.scratch.size() <= at) context.scratch.resize(at + 1);
  return reinterpret_cast<float*>(context.scratch[at].reserve(std::max<int64_t>(1, floats) * 4));
}

}  // namespace attend::exact
