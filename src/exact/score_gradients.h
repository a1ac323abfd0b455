#pragma once
// Gradients of scores, a few queries at a time, for the parameters of what mechanisms add to scores: the backward pass
// is run once more over some rows, with a bias of zeros whose gradient they are.
#include <algorithm>
#include <initializer_list>
#include <span>
#include <string_view>
#include <vector>

#include "attend/exact/softmax.h"
#include "attend/tensor/parallel.h"
#include "exact/problem.h"

namespace attend::exact {

struct BackwardCall {
  const Qkv& in;  // arrays, checked
  const SoftmaxOptions& options;
  const AttnOut& forward;
  const AttnOutGrad& grad_out;
  const Variant& variant;  // hooks that don't depend on the batch entry
};

struct ParameterGradient {
  std::string_view name;
  View gradient, parameter;
};
// A gradient has the shape of its parameter, which must be given, and lies apart from all else. Throws
// Error(kArgument).
void check_parameter_gradients(std::string_view op, const BackwardCall& call, const AttnGrad& grad_in,
                               std::span<const ParameterGradient> parameters);
inline void check_parameter_gradients(std::string_view op, const BackwardCall& call, const AttnGrad& grad_in,
                                      std::initializer_list<ParameterGradient> parameters) {
  check_parameter_gradients(op, call, grad_in, std::span(parameters.begin(), parameters.size()));
}

// What the backward pass by rows (exact/row_backward.h) takes: the gradient of out, or of lse where the mechanism has
// one, and gradients as above. Throws Error(kArgument).
void check_row_gradients(std::string_view op, const Problem& p, const Qkv& in, const AttnOutGrad& grad_out,
                         const AttnGrad& grad_in, std::vector<ParameterGradient> parameters);

// Positions of the queries of batch entry b.
std::vector<int32_t> positions_of(const BackwardCall& call, int64_t b);

// Gradients of the scores of queries [first, first + rows) of batch entry b, [Hq, rows, Tk] dense, 0 where a key is
// not seen.
void score_gradients(const BackwardCall& call, int64_t b, int64_t first, int64_t rows,
                     const std::vector<int32_t>& positions, std::vector<float>& to, Context& context);

// f(head, position, gradients [Tk], which it may change) for every query; of one head in ascending order of batch entry
// and query, heads at the same time. Memory: 96 rows of Hq * Tk floats, at most 64 MiB. `f` must not throw.
template <class F>
void each_score_gradient(const BackwardCall& call, Context& context, const F& f) {
  const int64_t heads = call.in.q.shape[1], queries = call.in.q.shape[2], keys = call.in.k.shape[2];
  if (keys == 0) return;
  const int64_t step = std::clamp<int64_t>((int64_t{1} << 24) / std::max<int64_t>(1, heads * keys), 1, 96);
  std::vector<float> gradients;
  for (int64_t b = 0; b < call.in.q.shape[0]; ++b) {
    const std::vector<int32_t> positions = positions_of(call, b);
    for (int64_t first = 0; first < queries; first += step) {
      const int64_t rows = std::min(step, queries - first);
      score_gradients(call, b, first, rows, positions, gradients, context);
      parallel_for(context.threads, heads, [&](int64_t h, int) {
        for (int64_t r = 0; r < rows; ++r)
          f(h, positions[static_cast<size_t>(first + r)], gradients.data() + (h * rows + r) * keys);
      });
    }
  }
}

}  // namespace attend::exact
