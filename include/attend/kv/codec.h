#pragma once
// How stored keys and values are coded.
#include "attend/tensor/dtype.h"
#include "attend/tensor/operator.h"

namespace attend {

// Made by registry entries of Kind::kCodec.
struct Codec : Component {
  explicit Codec(DType element) : type(element) {}
  DType type;  // rounded to nearest even, or in quantised blocks (attend/tensor/quantised_row.h)
};

}  // namespace attend
