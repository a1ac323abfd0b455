#pragma once
// A model with a gate on every kv head, for fits of plans: weights are frozen, gates have gradients.
//
//   a[i] = g[h] full[i] + (1 - g[h]) streaming[i]     for the query heads that read kv head h of a layer
//   full      softmax attention over all keys that query i sees
//   streaming the same over sinks and a window: keys j < sinks and i - recent < j <= i
//
// Source   Xiao et al. 2024, arXiv:2410.10819, section 2.2. Differs from the authors' code, where full[i] comes from a
//          second run of the model without gates; here, as in the paper, both see the same queries, keys and values.
// Cost     forward: that of the model, and of streaming attention. backward: as much as three forwards, one of them
//          to recompute activations. Memory: the transposed matrices as f32; for each token the residual stream a
//          layer (with d_model 576, 30 layers: 69 kB) and the activations of one layer.
// Numerics f32 accumulation. What a product rounds (activations that meet quantised weights) counts as not rounded in
//          the gradient. Bits don't depend on threads.
#include <functional>
#include <memory>
#include <span>

#include "attend/exact/softmax.h"
#include "attend/lm/model.h"

namespace attend {

class GatedModel {
 public:
  // Throws Error(kArgument) for a negative number of sinks and less than 1 recent token.
  GatedModel(std::shared_ptr<const LanguageModel> model, int64_t sinks, int64_t recent);
  ~GatedModel();
  GatedModel(const GatedModel&) = delete;
  GatedModel& operator=(const GatedModel&) = delete;

  // Whether a layer's gates do anything: those with a window of the model's own have none.
  bool gated(int layer) const;

  // Runs a text from an empty cache without gates and shows queries, keys (turned to their positions) and values of
  // every layer, [1, heads, tokens, size], and how the model attends. Throws Error(kArgument) as forward().
  using Observer = std::function<void(int layer, const Qkv& in, const SoftmaxOptions& options)>;
  void observe(std::span<const int32_t> ids, const Observer& observer, Context& context);

  // Runs a text from an empty cache and returns the output activations of its last `wanted` tokens, [wanted, width],
  // valid until the next call. `gates` [layers, kv heads]; none: the model as it is. Throws Error(kArgument) for
  // tokens, gates or `wanted` that don't fit the model or the text, Error(kMemory), Error(kCancelled).
  View forward(std::span<const int32_t> ids, std::span<const float> gates, int64_t wanted, Context& context);

  // Gradients of a loss with respect to the gates of the last forward(), given those with respect to its result, dense
  // [wanted, width]. Gates of layers without get 0. Throws Error(kArgument) if there was no forward() with gates.
  void backward(const View& d_result, std::span<double> d_gates, Context& context);

 private:
  class Run;
  std::unique_ptr<Run> run_;
};

}  // namespace attend
