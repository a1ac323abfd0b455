#pragma once
// The definition of attention in several geometries (see attend/exact/cat_geometry.h) in double precision.
#include <memory>

#include "attend/exact/cat_geometry_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_cat_geometry_reference(const CatGeometryOptions& options);

}  // namespace attend
