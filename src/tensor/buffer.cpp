#include "attend/tensor/buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "attend/tensor/error.h"

namespace attend {
namespace {

constexpr int64_t kAlignment = 64;
// From here on blocks are whole mappings: growing moves pages, not bytes, and freeing returns them to the system.
constexpr int64_t kMapped = 32 << 10;
// From here on mappings begin at large pages, which the system is asked for: rows read here and there would each wait
// for an address to be looked up. What is beyond the last whole one lies on small pages.
constexpr int64_t kLargePage = 2 << 20, kLarge = kLargePage;

int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

[[noreturn]] void fail(int64_t bytes) {
  throw Error(ErrorKind::kMemory, "memory", "bytes", std::to_string(bytes), "can't be allocated");
}

size_t mapped_size(int64_t bytes) {
  return static_cast<size_t>(round_up(bytes, sysconf(_SC_PAGESIZE)));
}

void* map(size_t size, int protection) {
  void* p = mmap(nullptr, size, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return p == MAP_FAILED ? nullptr : p;
}

// Addresses that begin at a large page.
void* map_large(size_t size, int protection) {
  auto* whole = static_cast<std::byte*>(map(size + kLargePage, protection));
  if (!whole) return nullptr;
  const auto skipped = static_cast<size_t>(-reinterpret_cast<uintptr_t>(whole) % kLargePage);
  if (skipped) munmap(whole, skipped);
  munmap(whole + skipped + size, kLargePage - skipped);
  return whole + skipped;
}

void advise(void* p, size_t size) {
  madvise(p, size, MADV_HUGEPAGE);  // may fail: then pages are small
}

void check(int64_t bytes) {
  if (bytes < 0 || bytes > int64_t{1} << 46) fail(bytes);
}

void* allocate(int64_t bytes) {
  check(bytes);
  void* p = nullptr;
  if (bytes < kMapped) {
    p = std::aligned_alloc(kAlignment, static_cast<size_t>(std::max(kAlignment, round_up(bytes, kAlignment))));
  } else if (bytes < kLarge) {
    p = map(mapped_size(bytes), PROT_READ | PROT_WRITE);
  } else {
    p = map_large(mapped_size(bytes), PROT_READ | PROT_WRITE);
    if (p) advise(p, mapped_size(bytes));
  }
  if (!p) fail(bytes);
  return p;
}

void release(void* p, int64_t bytes) {
  if (!p) return;
  if (bytes < kMapped) {
    std::free(p);
  } else {
    munmap(p, mapped_size(bytes));
  }
}

// Pages of a mapping go to where it fits; nullptr if it can't be had.
void* remap(void* p, size_t from, size_t to, bool large) {
  if (from == to) return p;
  void* at = mremap(p, from, to, large ? 0 : MREMAP_MAYMOVE);
  if (at == MAP_FAILED && large)
    if (void* aligned = map_large(to, PROT_NONE)) {
      at = mremap(p, from, to, MREMAP_MAYMOVE | MREMAP_FIXED, aligned);
      if (at == MAP_FAILED) munmap(aligned, to);
    }
  if (at == MAP_FAILED) return nullptr;
  if (large) advise(at, to);
  return at;
}

}  // namespace

Buffer::Buffer(int64_t bytes) : data_(bytes ? static_cast<std::byte*>(allocate(bytes)) : nullptr), bytes_(bytes) {}

Buffer::~Buffer() {
  release(data_, bytes_);
}

int64_t Buffer::held() const {
  return bytes_ < kLarge ? bytes_ : static_cast<int64_t>(mapped_size(bytes_));
}

void Buffer::resize(int64_t bytes) {
  if (bytes == bytes_) return;
  check(bytes);
  if (bytes_ >= kMapped && bytes >= kMapped && (bytes_ < kLarge) == (bytes < kLarge)) {
    void* p = remap(data_, mapped_size(bytes_), mapped_size(bytes), bytes >= kLarge);
    if (!p) fail(bytes);
    data_ = static_cast<std::byte*>(p);
    bytes_ = bytes;
    return;
  }
  Buffer next(bytes);
  if (bytes_ && bytes) std::memcpy(next.data_, data_, static_cast<size_t>(std::min(bytes, bytes_)));
  *this = std::move(next);
}

}  // namespace attend
