// Any text: parsed or refused with attend::Error; what parses is written and parsed back to the same specs.
#include <cstdint>
#include <cstdlib>

#include "attend/tensor/error.h"
#include "attend/tensor/spec.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    std::string joined;
    const std::vector<attend::Spec> specs = attend::parse_specs(text);
    for (const attend::Spec& spec : specs) joined += (joined.empty() ? "" : "+") + attend::to_string(spec);
    if (attend::parse_specs(joined) != specs) std::abort();
  } catch (const attend::Error&) {
  }
  try {
    for (const std::string& policy : attend::split_policies(text)) attend::parse_specs(policy);
  } catch (const attend::Error&) {
  }
  return 0;
}
