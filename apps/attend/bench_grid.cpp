// Short sequences: the fused kernel beside a product, a softmax and a product, each over all heads before the next.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "attend/exact/attention_operator.h"
#include "attend/simd/dense.h"
#include "attend/simd/isa.h"
#include "attend/tensor/parallel.h"
#include "bench.h"
#include "bench_inputs.h"

namespace attend::app {
namespace {

constexpr int64_t kBatch = 32, kHeads = 12, kWidth = 64;

// Scores of all heads lie in memory between the steps, as they do for a library of matrix products.
class Unfused {
 public:
  Unfused(int64_t tokens, bool causal, Context& context)
      : tokens_(tokens),
        causal_(causal),
        context_(context),
        kernels_(dense_kernels(active_isa(context))),
        stride_(tokens < kPanelKeys ? tokens : (tokens + kPanelKeys - 1) / kPanelKeys * kPanelKeys),
        scores_(kBatch * kHeads * tokens * stride_ * 4) {
    for (int t = 0; t < context.threads; ++t) panels_.emplace_back(kWidth * kPanelKeys * 4);
  }

  void operator()(const View& q, const View& k, const View& v, const View& out) {
    auto head_of = [](const View& x, int64_t i) { return x.at<float>({i / kHeads, i % kHeads}); };
    each_head([&](int64_t i, int worker) {
      multiply(head_of(q, i), head_of(k, i), scores(i), panels_[static_cast<size_t>(worker)].as<float>());
    });
    each_head([&](int64_t i, int) { normalise(scores(i)); });
    each_head([&](int64_t i, int) {
      float* to = head_of(out, i);
      std::fill_n(to, tokens_ * kWidth, 0.0f);
      kernels_.add_rows(scores(i), stride_, tokens_, tokens_, head_of(v, i), kWidth, kWidth, to, kWidth);
    });
  }

 private:
  template <class F>
  void each_head(F f) {
    parallel_for(context_.threads, kBatch * kHeads, f);
  }
  float* scores(int64_t head) const { return scores_.as<float>() + head * tokens_ * stride_; }

  // Texts that don't fill a panel multiply as rows of weights with "values", the transposed keys: no column is wasted.
  void multiply(const float* q, const float* k, float* s, float* panel) const {
    for (int64_t first = 0; first < tokens_; first += kPanelKeys) {
      const int64_t keys = std::min<int64_t>(kPanelKeys, tokens_ - first);
      kernels_.pack(DType::kF32, k + first * kWidth, kWidth, keys, kWidth, panel);
      if (tokens_ >= kPanelKeys) {
        kernels_.dots(q, kWidth, tokens_, kWidth, panel, s + first, stride_);
      } else {
        std::fill_n(s, tokens_ * stride_, 0.0f);
        kernels_.add_rows(q, kWidth, tokens_, kWidth, panel, kPanelKeys, tokens_, s, stride_);
      }
    }
  }

  void normalise(float* s) const {
    constexpr float kScale = 0.125f;  // 1 / sqrt(64)
    for (int64_t i = 0; i < tokens_; ++i, s += stride_) {
      const int64_t seen = causal_ ? i + 1 : tokens_;
      for (int64_t j = 0; j < seen; ++j) s[j] *= kScale;
      float largest = 0;
      const float inverse = 1 / kernels_.exponentials(s, seen, &largest);
      for (int64_t j = 0; j < seen; ++j) s[j] *= inverse;
      std::fill(s + seen, s + tokens_, 0.0f);
    }
  }

  int64_t tokens_;
  bool causal_;
  Context& context_;
  const DenseKernels& kernels_;
  int64_t stride_;
  Buffer scores_;
  std::vector<Buffer> panels_;  // one a thread
};

BenchResult run(const AttentionCall& row, bool causal, Limits& limits, Context& context) {
  const Entry& entry = registry().at("softmax");
  const Spec spec = registry().complete(parse_spec(row.spec));
  const auto op = registry().make<Operator>(spec);
  const CallArrays a = make_arrays(row, entry, spec, 1);
  auto fused = [&] { op->forward(inputs(a, 0), {{"out", a.out.view}}, Form::kAny, context); };
  Unfused separate(row.tq, causal, context);
  const Array other = make_array(DType::kF32, 4, a.out.view.shape);
  auto unfused = [&] { separate(a.q.view, a.k[0].view, a.v[0].view, other.view); };
  fused();
  unfused();
  BenchResult result{};
  const double pairs = visible_pairs(row, entry, spec) * static_cast<double>(row.b * row.hq);
  result.flops = pairs * 4 * kWidth;
  result.bytes = static_cast<double>(4 * row.b * row.hq * row.tq * row.d * 4);
  result.error = sampled_error(row, entry, spec, a, result.failure);
  for (int64_t i = 0; i < other.view.count(); ++i)
    if (!(std::abs(other.view.as<float>()[i] - a.out.view.as<float>()[i]) <= 1e-4f))
      result.failure = "the separate products give something else";
  if (!result.failure.empty()) return result;
  measure(
      result, fused,
      [&] {
        return result.flops / std::max(limits.multiply_adds(), limits.multiply_adds()) +
               pairs / std::max(limits.exponentials(), limits.exponentials());
      },
      context, unfused);
  return result;
}

}  // namespace

std::vector<BenchRow> grid_rows() {
  std::vector<BenchRow> rows;
  for (const bool causal : {false, true})
    for (const int64_t tokens : {16, 32, 64, 128, 256}) {
      const AttentionCall call{fmt::format("exact/grid-{}-t{}", causal ? "causal" : "full", tokens),
                               causal ? "softmax:causal=true" : "softmax",
                               kBatch,
                               kHeads,
                               kHeads,
                               tokens,
                               tokens,
                               kWidth,
                               kWidth,
                               DType::kF32,
                               false};
      rows.push_back({call.name,
                      call.spec + ", beside separate products",
                      "f32",
                      {{"B", kBatch},
                       {"Hq", kHeads},
                       {"Hkv", kHeads},
                       {"Tq", tokens},
                       {"Tk", tokens},
                       {"D", kWidth},
                       {"Dv", kWidth}},
                      false,
                      [call, causal](Limits& limits, Context& context) { return run(call, causal, limits, context); }});
    }
  return rows;
}

}  // namespace attend::app
