#pragma once
// Arrays to and from other libraries by DLPack (the plain DLManagedTensor of version 0.x), without a copy. Needs
// dlpack/dlpack.h; attend/attend.h does not include this header.
#include <dlpack/dlpack.h>

#include "attend/tensor/npy.h"
#include "attend/tensor/view.h"

namespace attend {

// A view of memory that `tensor` describes; valid as long as that is. Strides carry over; none means row-major.
// Throws Error(kUnsupported) for memory that is not the CPU's, an element type that DType lacks, or over six axes;
// Error(kArgument) for a negative axis, or null data with elements.
View from_dlpack(const DLTensor& tensor);

// Hands the array over: the receiver calls deleter once. Throws Error(kMemory), and Error(kArgument) for a type that no
// array has.
DLManagedTensor* to_dlpack(Array array);

}  // namespace attend
