#pragma once
// A graph cut into parts that can be run again: what a backward pass needs inside of a part is recomputed from the
// activations that the part begins with (Chen et al. 2016, arXiv:1604.06174).
#include <vector>

#include "attend/lm/graph.h"

namespace attend {

struct Segment {
  size_t begin, end;      // operations
  std::vector<int> live;  // slots that `begin` or later operations read before they are written, ascending
};

// Cut where least is live, so that each part but the last has one Attend at least. O(operations * slots).
std::vector<Segment> segments(const Graph& graph);

}  // namespace attend
