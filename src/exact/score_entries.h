#pragma once
// The entries of mechanisms that change scores, normalisers or heads, and what these entries share.
#include <vector>

#include "attend/exact/attention_operator.h"
#include "attend/tensor/registry.h"
#include "exact/function_operator.h"
#include "exact/score_bound.h"

namespace attend {

// All of them; register_exact() calls it.
void register_scores(Registry& registry);

void register_affine(Registry& registry);
void register_attendre(Registry& registry);
void register_cat_geometry(Registry& registry);
void register_cog(Registry& registry);
void register_dcmha(Registry& registry);
void register_differential(Registry& registry);
void register_entmax(Registry& registry);
void register_gaam(Registry& registry);
void register_hsa(Registry& registry);
void register_lla(Registry& registry);
void register_lssar(Registry& registry);
void register_mla(Registry& registry);
void register_prflash(Registry& registry);
void register_probabilistic(Registry& registry);
void register_relu(Registry& registry);
void register_reversed(Registry& registry);
void register_sentinel(Registry& registry);
void register_sigmoid(Registry& registry);
void register_sinkhorn(Registry& registry);
void register_softmax1(Registry& registry);
void register_tensor(Registry& registry);

namespace exact {

// Terms that a sum over keys rounds: those of a split, and the folds.
inline double sum_error(int64_t keys) {
  return bound::gamma(std::min<int64_t>(keys, 512) + 6 * (keys / 512 + 1));
}

// Norms as softmax_norms() gives them, of other arrays.
inline bound::SoftmaxNorms norms_of(const Spec& spec, const View& q, const View& k, const View& v) {
  return softmax_norms(spec, {{"q", q}, {"k", k}, {"v", v}});
}

// What one row has to do with, in double: for bounds that depend on more than norms.
struct BoundRow {
  int64_t b, h, i;
  std::vector<double> q;
  std::vector<const double*> keys;  // visible
  std::vector<double> dots;         // q . key
};

// What is added to a score, by the axes of scores; axes of 1 are repeated, and no view adds 0.
inline int64_t bias_index(const View& bias, int64_t b, int64_t h, int64_t i, int64_t j) {
  int64_t at = 0, axis = 0;
  for (const int64_t index : {b, h, i, j}) {
    at = at * bias.shape[axis] + (bias.shape[axis] == 1 ? 0 : index);
    ++axis;
  }
  return at;
}
inline double bias_at(const View& bias, int64_t b, int64_t h, int64_t i, int64_t j) {
  return bias.data ? value_at(bias, bias_index(bias, b, h, i, j)) : 0;
}
// Gradients of scores that one element of a bias gathers.
inline int64_t bias_terms(const Tensors& in) {
  const View q = array(in, "q", "bound"), k = array(in, "k", "bound"), bias = array(in, "bias", "bound");
  return q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] / std::max<int64_t>(1, bias.count());
}

// f(row, D) for every row that sees a key, from ports q, k, kv_lens and q_positions. What it sees are the first keys.
template <class F>
void each_bound_row(const Tensors& in, bool causal, const F& f) {
  const View q = array(in, "q", "bound"), k = array(in, "k", "bound"), lengths = array(in, "kv_lens", "bound"),
             positions = array(in, "q_positions", "bound");
  const int64_t d = q.shape[3], tq = q.shape[2], tk = k.shape[2], heads = q.shape[1], kv = k.shape[1];
  std::vector<double> all(static_cast<size_t>(k.count()));
  for (size_t i = 0; i < all.size(); ++i) all[i] = value_at(k, static_cast<int64_t>(i));
  for (int64_t b = 0; b < q.shape[0]; ++b) {
    const int64_t length = lengths.data ? static_cast<int64_t>(value_at(lengths, b)) : tk;
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < tq; ++i) {
        const int64_t position =
            positions.data ? static_cast<int64_t>(value_at(positions, b * tq + i)) : i + length - tq;
        BoundRow row{b, h, i, {}, {}, {}};
        for (int64_t c = 0; c < d; ++c) row.q.push_back(value_at(q, ((b * heads + h) * tq + i) * d + c));
        for (int64_t j = 0; j < length && (!causal || j <= position); ++j) {
          const double* key = all.data() + ((b * kv + h / (heads / kv)) * tk + j) * d;
          double dot = 0;
          for (int64_t c = 0; c < d; ++c) dot += row.q[static_cast<size_t>(c)] * key[c];
          row.keys.push_back(key);
          row.dots.push_back(dot);
        }
        if (!row.keys.empty()) f(row, d);
      }
  }
}

}  // namespace exact
}  // namespace attend
