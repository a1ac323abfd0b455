#pragma once
// Mean and covariance of what a query head has asked, and what they become when queries are turned to the positions
// that come next.
#include <cstdint>
#include <span>
#include <vector>

#include "attend/exact/rope.h"
#include "attend/kv/retention.h"
#include "attend/tensor/state_bytes.h"

namespace attend {

// Sums in double, in the order of queries, so that their bits depend on no chunk.
class QueryMoments {
 public:
  explicit QueryMoments(int64_t d) : sum_(static_cast<size_t>(d)), square_(static_cast<size_t>(d * d)) {}

  // A query before it is turned.
  void add(std::span<const float> q);
  void clear();

  // Turned by the mean of the rotations that `cosine` and `sine`, one a pair, hold.
  void expect(std::span<const double> cosine, std::span<const double> sine, bool interleaved, ExpectedQuery& to) const;

  void save(StateWriter& out) const;
  void load(StateReader& in);

 private:
  int64_t count_ = 0;
  std::vector<double> sum_, square_;  // square_: of elements a >= b, at a * d + b
};

// Means over positions [first, first + count) of the cosines and sines of each pair.
void mean_rotation(const RopeAngles& angles, int64_t first, int64_t count, Isa isa, std::vector<double>& cosine,
                   std::vector<double>& sine);

}  // namespace attend
