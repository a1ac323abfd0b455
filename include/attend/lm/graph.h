#pragma once
// A model as data: named activations, weights, and the list of operations that run over rows of them. Every operation
// works on each row alone (attention through the store), so a result does not depend on how rows were grouped.
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "attend/exact/rope_options.h"
#include "attend/lm/gguf.h"

namespace attend {

struct Slot {  // an activation: f32 [rows, width]
  std::string_view name;
  int64_t width;
};

struct MatrixRef {  // a weight matrix of n output rows and k columns
  std::string tensor;
  int64_t n, k;
};

struct VectorRef {
  std::string tensor;
  int64_t n;
};

// Rotary position embedding (attend/exact/rope.h).
struct Rotary {
  RopeOptions options;                      // dims is set
  std::string short_factors, long_factors;  // tensors of divisors, one a pair; empty: none
};

struct AttentionLayer {
  int heads, kv_heads;
  int64_t d, dv;
  double scale;
  int64_t window;  // tokens that a query sees, its own included; 0: all
  int rotary;
};

enum class Activation { kSilu, kGelu };

// Members named x, q, .. are indices of slots; matrix, vector, rotary and layer of the graph's lists.
namespace op {
struct Embed {  // x = row `token` of the matrix
  int matrix, x;
};
struct Scale {  // x *= factor
  int x;
  float factor;
};
struct RmsNorm {  // y = norm of each of `groups` equal parts of x
  int x, vector, y, groups;
  double epsilon;
};
struct Product {  // each y = matrix * x
  struct Output {
    int matrix, y;
  };
  int x;
  std::vector<Output> outputs;
};
struct Rotate {  // each of `heads` parts of x by its row's position, unless the layer's mechanism does
  int x, heads, layer;
};
struct Attend {  // k and v go into the store, then out = attention of q over it
  int q, k, v, out, layer;
};
struct Gate {  // x = activation(x) * y
  int x, y;
  Activation activation;
};
struct Add {  // x += y
  int x, y;
};
struct SelectRows {  // from here on only the rows whose output is wanted
  std::vector<int> slots;
};
}  // namespace op

using Operation = std::variant<op::Embed, op::Scale, op::RmsNorm, op::Product, op::Rotate, op::Attend, op::Gate,
                               op::Add, op::SelectRows>;

struct Graph {
  std::string architecture, name;
  int64_t vocabulary = 0, context = 0, width = 0;
  std::vector<Slot> slots;
  std::vector<MatrixRef> matrices;
  std::vector<VectorRef> vectors;
  std::vector<Rotary> rotaries;
  std::vector<AttentionLayer> layers;
  std::vector<Operation> operations;
  int output_slot = 0, output_matrix = 0;  // logits = matrix * slot

  int add_slot(std::string_view slot_name, int64_t slot_width);
  int add_matrix(std::string tensor, int64_t n, int64_t k);
  int add_vector(std::string tensor, int64_t n);
};

// The graph of a file, all hyperparameters checked for range, against each other and against the shapes of all tensors.
// Throws Error(kUnsupported) naming an unknown architecture or a feature that is not implemented, Error(kFile) for
// contradictions, and for tensors that are missing or that the graph does not use.
Graph make_graph(const Gguf& file);

std::vector<std::string_view> supported_architectures();

}  // namespace attend
