#pragma once
// Options of attention in several geometries; see attend/exact/cat_geometry.h.

namespace attend {

struct CatGeometryOptions {
  bool causal = false;
  double scale = 0;         // of the Euclidean dot products; 0: 1/sqrt(D)
  double beta = 0;          // of the distances in curved spaces, at least 0; 0: |scale| as applied
  double hyperbolic = 1;    // curvature of the hyperbolic space is -hyperbolic; 0 (flat) or 1e-12..1e12
  double spherical = 1;     // curvature of the sphere; 0 (flat) or 1e-12..1e12
  bool squared = false;     // half the squared distance instead of the distance
  bool directions = false;  // points of the sphere are directions of queries and keys, whatever their length
};

}  // namespace attend
