#include "attend/tensor/buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

#include "attend/tensor/error.h"

namespace attend {
namespace {

constexpr int64_t kAlignment = 64;
// From here on blocks are whole mappings: growing moves pages, not bytes, and freeing returns them to the system.
constexpr int64_t kMapped = 32 << 10;

int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

[[noreturn]] void fail(int64_t bytes) {
  throw Error(ErrorKind::kMemory, "memory", "bytes", std::to_string(bytes), "can't be allocated");
}

int64_t mapped_size(int64_t bytes) {
  return round_up(bytes, sysconf(_SC_PAGESIZE));
}

void* allocate(int64_t bytes) {
  if (bytes < 0 || bytes > int64_t{1} << 46) fail(bytes);
  if (bytes < kMapped) {
    void* p = std::aligned_alloc(kAlignment, static_cast<size_t>(std::max(kAlignment, round_up(bytes, kAlignment))));
    if (!p) fail(bytes);
    return p;
  }
  void* p = mmap(nullptr, static_cast<size_t>(mapped_size(bytes)), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                 -1, 0);
  if (p == MAP_FAILED) fail(bytes);
  return p;
}

void release(void* p, int64_t bytes) {
  if (!p) return;
  if (bytes < kMapped) {
    std::free(p);
  } else {
    munmap(p, static_cast<size_t>(mapped_size(bytes)));
  }
}

}  // namespace

Buffer::Buffer(int64_t bytes) : data_(bytes ? static_cast<std::byte*>(allocate(bytes)) : nullptr), bytes_(bytes) {}

Buffer::~Buffer() {
  release(data_, bytes_);
}

void Buffer::resize(int64_t bytes) {
  if (bytes == bytes_) return;
  if (bytes_ >= kMapped && bytes >= kMapped) {
    void* p = mremap(data_, static_cast<size_t>(mapped_size(bytes_)), static_cast<size_t>(mapped_size(bytes)),
                     MREMAP_MAYMOVE);
    if (p == MAP_FAILED) fail(bytes);
    data_ = static_cast<std::byte*>(p);
    bytes_ = bytes;
    return;
  }
  Buffer next(bytes);
  if (bytes_ && bytes) std::memcpy(next.data_, data_, static_cast<size_t>(std::min(bytes, bytes_)));
  *this = std::move(next);
}

}  // namespace attend
