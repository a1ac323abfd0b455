#pragma once
// Memory of this process that is in use.
#include <unistd.h>

#include <cstdint>
#include <fstream>

namespace attend::test {

// Sanitizers keep what was freed, and shadows of it: what a process holds then says nothing.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kTellsMemory = false;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
inline constexpr bool kTellsMemory = false;
#else
inline constexpr bool kTellsMemory = true;
#endif
#else
inline constexpr bool kTellsMemory = true;
#endif

inline int64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  int64_t total = 0, resident = 0;
  file >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

}  // namespace attend::test
