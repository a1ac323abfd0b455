// Any file of head gates: read or refused with attend::Error; what is read is written and read back to the same gates.
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "attend/kv/head_gates.h"
#include "attend/tensor/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const attend::HeadGates gates = attend::parse_head_gates({reinterpret_cast<const char*>(data), size}, "fuzz");
    const attend::HeadGates again = attend::parse_head_gates(attend::to_json(gates), "again");
    if (again.layers != gates.layers || again.kv_heads != gates.kv_heads) std::abort();
    for (size_t i = 0; i < gates.gates.size(); ++i)
      if (std::fabs(again.gates[i] - gates.gates[i]) > 1e-4) std::abort();
  } catch (const attend::Error&) {
  }
  return 0;
}
