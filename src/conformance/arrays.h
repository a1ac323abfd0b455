#pragma once
// Random inputs and guarded outputs for the conformance suite.
#include <map>
#include <random>
#include <string>
#include <vector>

#include "attend/tensor/npy.h"
#include "attend/tensor/operator.h"

namespace attend::conformance {

// Sizes by the axis names that ports use.
struct Sizes {
  int64_t b = 1, hq = 1, hkv = 1, tq = 1, tk = 1, d = 1, dv = 1;
  std::string text() const;
  int64_t axis(std::string_view name) const;  // throws Error(kUnsupported) for a name it does not know
};

enum class Layout { kDense, kStrided };  // kStrided: heads inside tokens, rows padded, base misaligned by one element

// An array in memory of its own. Everything outside its elements is filled with a pattern that `intact` compares.
class Guarded {
 public:
  Guarded(DType type, int rank, const Shape& shape, Layout layout);
  const View& view() const { return view_; }
  bool intact() const;  // nothing outside the elements was written

 private:
  std::vector<std::byte> bytes_, before_;
  std::vector<bool> element_;
  View view_;
};

using Random = std::mt19937_64;

// Normal values of the given deviation, or a port's own rule: lengths, positions, documents.
void fill(const View& view, std::string_view port, const Sizes& sizes, double deviation, Random& random);
void store(const View& view, int64_t index, double value);  // row-major index

// Port shape "B Hq Tq D" as numbers.
Shape shape_of(std::string_view port_shape, const Sizes& sizes, int& rank);

// A byte-wise comparison of the elements of two views of one shape; -1 if equal, else the first index that differs.
int64_t first_difference(const View& a, const View& b);

}  // namespace attend::conformance
