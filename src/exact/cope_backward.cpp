// Gradients of CoPE by rows: counts are sums of gates from the end of a row, so their gradients are sums from its start.
#include <vector>

#include "attend/simd/hook_math.h"
#include "attend/simd/isa.h"
#include "exact/cope_check.h"
#include "exact/row_backward.h"
#include "exact/score_gradients.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "cope";
constexpr int64_t kTogether = 8;  // rows that meet the embeddings at once

// One row of n scores and of products g, where z are its products with the embeddings.
struct CountedRow {
  const DenseKernels& kernels;
  float *s, *g;
  int64_t n;
  float d_lse;
  const float* z;
  float* dz;  // [positions]: zeros before
  int64_t positions;
  float *gate, *count;  // room for n numbers

  // Scores with positions in s.
  [[gnu::always_inline]] inline void add_positions() const {
    const float last = static_cast<float>(positions - 1);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) gate[j] = hook_sigmoid(s[j]);
    float sum = 0;
    for (int64_t j = n - 1; j >= 0; --j) count[j] = sum += gate[j];
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const float p = count[j] < last ? count[j] : last;
      const int32_t below = static_cast<int32_t>(p), above = below + (p > static_cast<float>(below));
      const float part = p - static_cast<float>(below);
      s[j] += (1 - part) * z[below] + part * z[above];
    }
  }

  // Gradients of scores with positions, in g, to those of the scores and, in dz, of the products.
  [[gnu::always_inline]] inline void pull() const {
    const float last = static_cast<float>(positions - 1);
    float sum = 0;  // of the gradients of counts up to here, each of which holds this gate
    for (int64_t j = 0; j < n; ++j) {
      const float p = count[j] < last ? count[j] : last, d = g[j];
      const int32_t below = static_cast<int32_t>(p), above = below + (p > static_cast<float>(below));
      const float part = p - static_cast<float>(below);
      dz[below] += (1 - part) * d;
      dz[above] += part * d;
      sum += count[j] < last ? d * (z[above] - z[below]) : 0.0f;
      g[j] = d + gate[j] * (1 - gate[j]) * sum;
    }
  }
};
struct AddPositions {
  const CountedRow& row;
  [[gnu::always_inline]] inline void run() const { row.add_positions(); }
};
struct PullCounts {
  const CountedRow& row;
  [[gnu::always_inline]] inline void run() const { row.pull(); }
};

// Of one thread: products with the embeddings, their gradients and these turned; numbers of keys.
struct Numbers {
  std::vector<float> z, dz, across, gate, count;
};

}  // namespace

void cope_attention_backward(const Qkv& in, const View& embeddings, const CopeOptions& options,
                             const AttnOutGrad& grad_out, const CopeGrad& grad_in, Context& context) {
  const exact::Problem p = exact::check_cope(in, embeddings, options, {});
  exact::check_row_gradients(kOp, p, in, grad_out, {grad_in.q, grad_in.k, grad_in.v},
                             {{"embeddings", grad_in.embeddings, embeddings}});
  const Isa isa = active_isa(context);
  const DenseKernels& kernels = dense_kernels(isa);
  const int64_t positions = embeddings.shape[0], padded = exact::padded_keys(positions), keys = in.k.shape[2];
  auto floats = [](int64_t n) { return std::vector<float>(static_cast<size_t>(n), 0.0f); };
  std::vector<float> rows_of_e = floats(positions * p.d), panels = floats(padded * p.d),
                     d_embeddings = floats(grad_in.embeddings.data ? p.heads * positions * p.d : 0);
  for (int64_t e = 0; e < positions; ++e) std::copy_n(embeddings.at<float>({e}), p.d, rows_of_e.data() + e * p.d);
  for (int64_t e = 0; e < positions; e += kPanelKeys)
    kernels.pack(DType::kF32, rows_of_e.data() + e * p.d, p.d, std::min<int64_t>(kPanelKeys, positions - e), p.d,
                 panels.data() + e * p.d);
  std::vector<Numbers> scratch(static_cast<size_t>(context.threads));
  for (Numbers& w : scratch) {
    for (std::vector<float>* x : {&w.z, &w.dz, &w.across}) *x = floats(kTogether * padded);
    for (std::vector<float>* x : {&w.gate, &w.count}) *x = floats(exact::padded_keys(keys));
  }
  auto rule = [&](const exact::RowBlock& x) {
    Numbers& w = scratch[static_cast<size_t>(x.worker)];
    for (int64_t first = 0; first < x.count; first += kTogether) {
      const int64_t count = std::min(kTogether, x.count - first);
      const float* q = x.q + first * p.d;  // with the scale
      for (int64_t e = 0; e < positions; e += kPanelKeys)
        kernels.dots(q, p.d, count, p.d, panels.data() + e * p.d, w.z.data() + e, padded);
      std::fill(w.dz.begin(), w.dz.end(), 0.0f);
      for (int64_t r = 0; r < count; ++r) {
        const int64_t at = first + r;
        const CountedRow row{kernels,
                             x.s + at * x.stride,
                             x.g + at * x.stride,
                             x.ends[at],
                             grad_out.lse.data ? *grad_out.lse.at<float>({x.b, x.h, x.first + at}) : 0.0f,
                             w.z.data() + r * padded,
                             w.dz.data() + r * padded,
                             positions,
                             w.gate.data(),
                             w.count.data()};
        exact::run_under(isa, AddPositions{row});
        exact::run_under(isa, exact::SoftmaxSlopes{kernels, row.s, row.g, row.n, row.d_lse});
        exact::run_under(isa, PullCounts{row});
      }
      kernels.add_rows(w.dz.data(), padded, count, positions, rows_of_e.data(), p.d, p.d, x.dq + first * p.d, p.d);
      if (d_embeddings.empty()) continue;
      exact::turn_rows(w.dz.data(), padded, count, positions, w.across.data());
      kernels.add_rows(w.across.data(), count, positions, count, q, p.d, p.d,
                       d_embeddings.data() + x.h * positions * p.d, p.d);
    }
  };
  exact::backward_rows(p, {grad_out.out, grad_out.lse, grad_in.q, grad_in.k, grad_in.v}, keys, true, context, rule);
  for (int64_t e = 0; grad_in.embeddings.data && e < positions; ++e) {
    float* to = grad_in.embeddings.at<float>({e});
    std::fill_n(to, p.d, 0.0f);
    for (int64_t h = 0; h < p.heads; ++h)
      for (int64_t c = 0; c < p.d; ++c) to[c] += d_embeddings[static_cast<size_t>((h * positions + e) * p.d + c)];
  }
}

}  // namespace attend
