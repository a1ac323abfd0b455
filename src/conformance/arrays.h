#pragma once
// Random inputs and guarded outputs for the conformance suite.
#include <random>
#include <string>
#include <vector>

#include "attend/tensor/npy.h"
#include "attend/tensor/operator.h"

namespace attend::conformance {

std::string text_of(const Sizes& sizes);

enum class Layout { kDense, kStrided };  // kStrided: heads inside tokens, rows padded, base misaligned by one element

// An array in memory of its own. Everything outside its elements is filled with a pattern that `intact` compares.
class Guarded {
 public:
  Guarded(DType type, int rank, const Shape& shape, Layout layout);
  const View& view() const { return view_; }
  bool intact() const;  // nothing outside the elements was written

 private:
  std::vector<std::byte> bytes_, before_;
  std::vector<uint8_t> element_;  // whether a byte belongs to one
  View view_;
};

using Random = std::mt19937_64;

// Normal values of the given deviation, or a port's own rule: its range, lengths, positions, documents.
void fill(const View& view, const Port& port, const Sizes& sizes, double deviation, Random& random);
void store(const View& view, int64_t index, double value);  // row-major index

// The slice [first, first + count) of a view along an axis of its port ("Tq"); the whole view where it has none.
View part(const View& view, const Port& port, std::string_view axis, int64_t first, int64_t count);

// A byte-wise comparison of the elements of two views of one shape; -1 if equal, else the first index that differs.
int64_t first_difference(const View& a, const View& b);

}  // namespace attend::conformance
