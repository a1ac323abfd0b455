// Any bytes as a list of token ids: no id is negative, or the list is refused with attend::Error.
#include <cstdint>
#include <cstdlib>

#include "attend/lm/ids.h"
#include "attend/tensor/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    for (int32_t id : attend::parse_ids({reinterpret_cast<const char*>(data), size}, "fuzzed")) {
      if (id < 0) std::abort();
    }
  } catch (const attend::Error&) {
  }
  return 0;
}
