#pragma once
// Memory for tables that are read at random: on large pages where the system has them, or each read would look up a
// page, too.
#include <sys/mman.h>

#include <cstdlib>
#include <new>
#include <vector>

namespace attend {

template <class T>
struct LargePages {
  using value_type = T;
  static constexpr size_t kPage = 2 << 20;

  LargePages() = default;
  template <class U>
  LargePages(const LargePages<U>&) {}

  T* allocate(size_t n) {
    const size_t bytes = n * sizeof(T), align = bytes < kPage ? 64 : kPage, whole = (bytes + align - 1) / align * align;
    void* p = std::aligned_alloc(align, whole);
    if (!p) throw std::bad_alloc();
    if (bytes >= kPage) madvise(p, whole, MADV_HUGEPAGE);  // only advice: may fail
    return static_cast<T*>(p);
  }
  void deallocate(T* p, size_t) { std::free(p); }
  bool operator==(const LargePages&) const { return true; }
};

template <class T>
using LargeVector = std::vector<T, LargePages<T>>;

}  // namespace attend
