#pragma once
// What both passes of hierarchical self-attention share: the tree, and one query head's way up it.
#include <span>
#include <vector>

#include "exact/problem.h"
#include "exact/rows.h"

namespace attend::exact {

// A tree with its children by parent.
struct Tree {
  std::span<const int32_t> parent;
  std::vector<int64_t> tokens;       // [nodes]: leaves under a node
  std::vector<int64_t> first_child;  // [nodes + 1]: into `children`
  std::vector<int32_t> children;
  int64_t nodes = 0, leaves = 0, widest = 1;

  int64_t width(int64_t node) const {
    return first_child[static_cast<size_t>(node) + 1] - first_child[static_cast<size_t>(node)];
  }
  const int32_t* child(int64_t node) const { return children.data() + first_child[static_cast<size_t>(node)]; }
};

// Throws Error(kArgument).
Tree make_tree(std::span<const int32_t> parents, int64_t tokens);
// Of queries and keys as many as `parents` has tokens. Throws Error(kArgument).
Problem check_hsa(const Qkv& in, double scale);

// One query head at a time; everything it needs was allocated before. Arrays are by node.
class HeadTree {
 public:
  HeadTree(const Problem& p, const Tree& tree, const DenseKernels& kernels);

  // Means, energies, and what each node takes from its siblings.
  void ascend(int64_t b, int64_t h);
  // What the tokens take from all nodes above them.
  void descend(int64_t b, int64_t h, const View& out);

 protected:
  static constexpr int64_t kRows = 16;  // children whose scores are in memory at a time

  // The children of a node side by side; then scores of its children [first, first + rows) with all, their own energies
  // in place of scores with themselves.
  void gather_children(int64_t node);
  void score_children(int64_t node, int64_t first, int64_t rows);
  float share(int64_t child, int64_t node) const {
    return static_cast<float>(t_.tokens[static_cast<size_t>(child)]) /
           static_cast<float>(t_.tokens[static_cast<size_t>(node)]);
  }

  const Problem& p_;
  const Tree& t_;
  const DenseKernels& kernels_;
  float *q_, *k_, *v_;                    // means; q scaled
  float *u_, *phi_, *stay_;               // taken from siblings; energy; share of the own tokens
  float *panels_, *gq_, *gk_, *gv_, *s_;  // of the children of one node

 private:
  void average(int64_t node);
  void attend_children(int64_t node);
  double attend_child(int64_t node, float* s, int64_t width, int64_t a);

  Buffer memory_;
};

}  // namespace attend::exact
