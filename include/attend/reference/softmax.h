#pragma once
// The definition of softmax attention (attend/exact/softmax.h states it) in double precision: plain loops over all
// pairs. Cost Hq * Tq * Tk * (D + Dv) multiply-adds; inputs of any float type, f64 included; outputs f64.
#include <memory>

#include "attend/exact/softmax_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_softmax_reference(const SoftmaxOptions& options);

}  // namespace attend
