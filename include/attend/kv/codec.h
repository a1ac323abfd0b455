#pragma once
// How stored keys and values are coded.
#include <cstdint>
#include <utility>
#include <vector>

#include "attend/tensor/dtype.h"
#include "attend/tensor/operator.h"

namespace attend {

// How keys and values of an age lie.
struct CodecStage {
  int64_t age;         // tokens: those that came at least so long before the text's end
  DType keys, values;  // keys by channel have scales and offsets for each group
};

// Made by registry entries of Kind::kCodec.
struct Codec : Component {
  explicit Codec(DType element) : type(element) {}
  Codec(DType element, std::vector<CodecStage> later, int64_t in_a_group, int64_t every)
      : type(element), stages(std::move(later)), group(in_a_group), stride(every) {}

  DType type;  // rounded to nearest even, or in quantised blocks (attend/tensor/quantised_row.h)

  // What becomes of keys when they are old, in ascending age. They are coded anew in groups, of the positions from one
  // multiple of `group` to the next, when the number of tokens seen is a multiple of `stride`: what a query reads then
  // depends on the text alone.
  std::vector<CodecStage> stages;
  int64_t group = 0, stride = 0;

  bool quantises() const { return is_quantised(type) || !stages.empty(); }
};

}  // namespace attend
