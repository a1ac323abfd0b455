#pragma once
// How definitions read their arguments: elements as doubles, keys as arrays or as runs with positions.
#include <initializer_list>
#include <string_view>

#include "attend/tensor/operator.h"

namespace attend::reference {

// An element as a double; axes of 1 are repeated.
double element(const View& v, std::initializer_list<int64_t> index);
void store(const View& v, std::initializer_list<int64_t> index, double x);  // into f64 or f32

// Throws Error(kArgument) where it is missing; `optional` gives a view without data instead.
const View& required(const Tensors& t, std::string_view name);
View optional(const Tensors& t, std::string_view name);

// The keys that a query head reads. Where values are quantised rows, port `dv` has as many elements as one of them.
struct Keys {
  Keys(const Tensors& in, int64_t b, int64_t query_head, int64_t query_heads, int64_t batches);

  double k(int64_t slot, int64_t c) const { return get(false, slot, c); }
  double v(int64_t slot, int64_t c) const { return get(true, slot, c); }
  int64_t position(int64_t slot) const {
    return runs && !runs->position.empty() ? runs->position[static_cast<size_t>(slot)] : slot;
  }

  int64_t batch = 0, head = 0, count = 0;  // head: of the keys

 private:
  double get(bool value, int64_t slot, int64_t c) const;
  View k_, v_;
  const KeyView* runs = nullptr;
  int64_t d_ = 0, dv_ = 0;  // of quantised rows
};

// Position of query i of batch entry b: from port `q_positions`, else such that the last query sits on the last key.
int64_t query_position(const Tensors& in, int64_t b, int64_t i);

// What `infer` says of a mechanism with softmax attention's outputs: `out` [B, Hq, Tq, Dv] and `lse` [B, Hq, Tq], f64.
// Where the keys are views, the number Dv is the length of a port `dv`.
std::map<std::string, TensorSpec, std::less<>> attention_outputs(const Tensors& in);

}  // namespace attend::reference
