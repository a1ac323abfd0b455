#pragma once
// Which instruction sets this machine can run, by what processor and operating system report (CPUID and saved state;
// AT_HWCAP on AArch64), and which one a call uses.
#include <span>
#include <string>
#include <string_view>

#include "attend/tensor/context.h"
#include "attend/tensor/isa.h"

namespace attend {

struct IsaInfo {
  Isa isa;
  std::string_view description, needs;
  bool usable;
  std::string why_not;  // empty if usable
};

// Every instruction set of Isa, in its order.
std::span<const IsaInfo> isa_list();

// The one a call uses: context.isa, else ATTEND_ISA, else the best usable. Throws Error(kUnsupported) for one that is
// unknown or not usable here: never a fallback.
Isa active_isa(const Context& context);

}  // namespace attend
