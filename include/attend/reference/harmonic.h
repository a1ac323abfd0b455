#pragma once
// The definition of rotary attention with a harmonic series over distances (see attend/exact/harmonic.h) in double
// precision.
#include <memory>

#include "attend/exact/harmonic_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_harmonic_reference(const HarmonicOptions& options);

}  // namespace attend
