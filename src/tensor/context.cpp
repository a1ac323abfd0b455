#include "attend/tensor/context.h"

#include <omp.h>

#include "attend/tensor/error.h"

namespace attend {

std::byte* Scratch::reserve(int64_t bytes) {
  if (buffer_.bytes() < bytes) {
    buffer_ = Buffer();
    buffer_ = Buffer(bytes);
  }
  return buffer_.data();
}

Context::Context(int thread_count)
    : threads(thread_count > 0 ? thread_count : omp_get_num_procs()), scratch(static_cast<size_t>(threads)) {}

void Context::throw_if_stopped() const {
  if (stop.stop_requested()) throw Error(ErrorKind::kCancelled, "stopped");
}

}  // namespace attend
