#pragma once
// The definition of attention to blocks drawn by their distance (see attend/exact/prflash.h) in double precision.
#include <memory>

#include "attend/exact/prflash_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_prflash_reference(const PrFlashOptions& options);

}  // namespace attend
