#include "kv/mapping.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <limits>

#include "attend/tensor/error.h"

namespace attend::kv {

int64_t system_page() {
  static const int64_t page = sysconf(_SC_PAGESIZE);
  return page;
}

Mapping::Mapping(int64_t bytes) {
  void* p = MAP_FAILED;
  if (bytes > 0 && bytes < std::numeric_limits<int64_t>::max() - system_page())
    p = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
             -1, 0);
  if (p == MAP_FAILED)
    throw Error(ErrorKind::kMemory, "memory", "bytes", fmt::format("{}", bytes), "of addresses can't be reserved");
  madvise(p, static_cast<size_t>(bytes), MADV_NOHUGEPAGE);
  data_ = static_cast<std::byte*>(p);
  bytes_ = bytes;
}

Mapping::~Mapping() {
  if (data_) munmap(data_, static_cast<size_t>(bytes_));
}

void Mapping::give_back(int64_t begin, int64_t end) {
  if (begin < end) madvise(data_ + begin, static_cast<size_t>(end - begin), MADV_DONTNEED);
}

}  // namespace attend::kv
