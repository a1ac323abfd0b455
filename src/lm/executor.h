#pragma once
// Runs the operations of a graph over rows of activations.
#include <span>
#include <vector>

#include "attend/kv/store.h"
#include "attend/lm/model.h"
#include "attend/simd/row_ops.h"
#include "attend/tensor/operator.h"
#include "retainer.h"
#include "selective_reader.h"
#include "trial.h"

namespace attend {

class Executor {
 public:
  // For texts of at most `context` tokens; `mechanisms` of each layer, which must outlive it.
  Executor(const LanguageModel& model, int64_t context, std::span<const Operator* const> mechanisms);

  // What a session's policy does beside its mechanisms.
  struct Policies {
    Store& store;
    Retainer& retainer;
    SelectiveReader* reader;  // null: every token reads every key
    Trial* trial;             // null: what is observed is summed at once
    bool decoding;            // the reader chooses; in a prompt it only follows the keys
  };

  // Feeds tokens at positions first, first + 1, .. through the model; keys go into the store. Returns the output
  // activations of the last `wanted` tokens, [wanted, width], valid until the next call.
  View run(std::span<const int32_t> ids, int64_t first, int64_t wanted, const Policies& policies, Context& context);

  // Sums the weights of the first `count` tokens that were on trial; the store holds no later ones.
  void observe(const Trial& trial, int64_t count, const Policies& policies, Context& context);

 private:
  struct Step;

  void run(const op::Embed&, Step&);
  void run(const op::Scale&, Step&);
  void run(const op::RmsNorm&, Step&);
  void run(const op::Product&, Step&);
  void run(const op::Rotate&, Step&);
  void run(const op::Attend&, Step&);
  void run(const op::Gate&, Step&);
  void run(const op::Add&, Step&);
  void run(const op::SelectRows&, Step&);

  void observe(const op::Attend&, const Tensors& in, Step&);
  void observe(int layer, int64_t first_query, const Tensors& in, const View& lse, const Policies&, Context&);
  // Of a layer, q [1, heads, rows, d] turned to positions from `first` on.
  void add_queries(int layer, int64_t first, const View& q, Retainer&, Context&);
  std::span<const KeyView> close_up(int layer, std::span<const KeyView> keys);
  void reserve(int64_t rows);
  int64_t width(int slot) const { return model_.graph().slots[static_cast<size_t>(slot)].width; }
  float* row(int slot, int64_t r) { return slots_[static_cast<size_t>(slot)].as<float>() + r * width(slot); }

  const LanguageModel& model_;
  int64_t context_;
  std::span<const Operator* const> mechanisms_;
  std::vector<char> by_position_;  // of layers: whether what a key gets there depends on positions
  int64_t capacity_ = 0;           // rows
  std::vector<Buffer> slots_;
  std::vector<Buffer> cosine_, sine_;  // of each rotary, [rows, pairs]
  std::vector<int32_t> positions_;
  std::vector<KeyView> keys_, closed_up_;
  std::vector<int32_t> every_position_;       // 0, 1, ..
  std::vector<float> lse_;                    // [heads, rows]
  std::vector<const PackedWeight*> weights_;  // of one product, with its outputs and their row strides
  std::vector<float*> outputs_;
  std::vector<int64_t> widths_;
};

}  // namespace attend
