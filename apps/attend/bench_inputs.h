#pragma once
// Calls of mechanisms with random inputs, and proofs that they are right.
#include <map>
#include <string>
#include <vector>

#include "attend/tensor/npy.h"
#include "attend/tensor/operator.h"
#include "attend/tensor/registry.h"

namespace attend::app {

struct AttentionCall {
  std::string name, spec;
  int64_t b, hq, hkv, tq, tk, d, dv;
  DType kv_type;                // of keys
  bool cold, backward = false;  // backward: forward and backward, with the parameters that have gradients
  // Backward, in place of what pairs of queries and keys of D and Dv elements need.
  double flops = 0, exps = 0;
  int64_t (*axis)(std::string_view, const Spec&, const Sizes&) = nullptr;  // in place of the entry's
};

// Of the values beside keys of a type.
constexpr DType value_type(DType keys) {
  if (keys == DType::kQ4_C) return DType::kQ4_1;
  return keys == DType::kQ2_C ? DType::kQ2_1 : keys;
}

Sizes sizes_of(const AttentionCall& row);

// Pairs of one head: the entry's own count, or those visible by the options that rows use; without an option, by the
// patterns that the entry covers.
double visible_pairs(const AttentionCall& row, const Entry& entry, const Spec& spec);

// Keys and values of one call as rows that only key views carry.
struct CodedKeys {
  Buffer k, v, groups;
  std::vector<KeyRun> runs;  // [B * Hkv], or the groups of each
  std::vector<KeyView> views;
};

struct CallArrays {
  Array q, out;
  std::vector<Array> k, v;
  std::vector<CodedKeys> coded;                      // in place of k and v, which then hold the same numbers once
  std::map<std::string, Array, std::less<>> others;  // required ports beside q, k and v, of which some have none

  size_t copies() const { return coded.empty() ? k.size() : coded.size(); }
};

// Inputs of one call; `copies` of keys and values.
CallArrays make_arrays(const AttentionCall& row, const Entry& entry, const Spec& spec, int copies);

// What the definition reads, and what the operator does.
Tensors numbers(const CallArrays& a, size_t copy);
Tensors inputs(const CallArrays& a, size_t copy);

// Largest difference from the definition over a sample of queries, or on a text short enough for all of it; `failure`
// says where it is above the entry's bound.
double sampled_error(const AttentionCall& row, const Entry& entry, const Spec& spec, const CallArrays& a,
                     std::string& failure);
double short_error(AttentionCall row, const Entry& entry, const Spec& spec, Context& context, std::string& failure);

// Normal values.
void fill_normal(const View& view, float deviation, uint64_t seed);

}  // namespace attend::app
