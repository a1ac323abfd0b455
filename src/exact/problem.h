#pragma once
// One checked call of softmax attention: sizes, keys and per-query positions, whatever form the arguments came in.
#include <string_view>
#include <vector>

#include "attend/exact/softmax.h"
#include "exact/keys.h"
#include "exact/visibility.h"

namespace attend::exact {

struct Problem {
  int64_t batch, heads, kv_heads, group, queries, d, dv;
  float scale, softcap;
  SoftmaxOptions options;
  Variant variant;
  View q, bias, sink_logits;     // bias with stride 0 where it is broadcast
  std::vector<Keys> keys;        // [batch * kv_heads]
  std::vector<int64_t> lengths;  // [batch]: one past the position of the last key
  View q_positions, documents;

  int64_t position(int64_t b, int64_t i) const {
    return q_positions.data ? *q_positions.at<int32_t>({b, i}) : i + lengths[static_cast<size_t>(b)] - queries;
  }
  bool softmax() const {
    return variant.normalizer == Normalizer::kSoftmax || variant.normalizer == Normalizer::kSignedSoftmax;
  }
  // Positions of the document that holds `position`.
  KeyRange document(int64_t b, int64_t position) const;
};

// Throws Error(kArgument).
Problem check(const Qkv& in, const SoftmaxOptions& options, std::string_view op, const Variant& variant = {});
void check_outputs(const Problem& problem, const Qkv& in, const AttnOut& out, std::string_view op);
// `view` must be f32, in the shape of `like`, its last axis dense.
void check_like(const View& view, const View& like, std::string_view name, std::string_view op);
void require_apart(std::string_view op, std::string_view a_name, const View& a, std::string_view b_name, const View& b);
void check_gradients(const Problem& problem, const Qkv& in, const AttnOut& forward, const AttnOutGrad& grad_out,
                     const AttnGrad& grad_in, std::string_view op);
void check_outputs(int64_t batch, int64_t heads, int64_t queries, int64_t dv, const AttnOut& out, std::string_view op);

}  // namespace attend::exact
