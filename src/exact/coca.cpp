#include "attend/exact/coca.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "attend/exact/rope.h"
#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "exact/parameter.h"
#include "exact/problem.h"
#include "exact/tasks.h"
#include "exact/widen.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "coca";

// [B, H, T, D] where each pair holds (length(a, b), 0) of x's, to be rotated.
template <class F>
void lengths(const View& x, bool interleaved, Context& context, float* y, F length) {
  const int64_t heads = x.shape[1], rows = x.shape[2], d = x.shape[3], half = d / 2;
  const Isa isa = active_isa(context);
  constexpr int64_t kRows = 64;
  const int64_t parts = (rows + kRows - 1) / kRows;
  exact::run_tasks(context, x.shape[0] * heads * parts, [&](int64_t task, Context&) {
    const int64_t head = task / parts;
    std::vector<float> row(static_cast<size_t>(d));
    for (int64_t t = task % parts * kRows; t < std::min(rows, (task % parts + 1) * kRows); ++t) {
      exact::widen(x, head / heads * x.stride[0] + head % heads * x.stride[1] + t * x.stride[2], d, isa, row.data());
      float* to = y + (head * rows + t) * d;
      for (int64_t p = 0; p < half; ++p) {
        const int64_t first = interleaved ? 2 * p : p, second = interleaved ? 2 * p + 1 : p + half;
        to[first] = length(row[static_cast<size_t>(first)], row[static_cast<size_t>(second)]);
        to[second] = 0;
      }
    }
  });
}

class Collinear {
 public:
  Collinear(const Qkv& in, const CocaOptions& options)
      : p(exact::check(in, {.causal = options.causal, .scale = options.scale}, kOp)),
        in_(in),
        interleaved_(options.interleaved),
        angles_(table(p.d, in.k.shape[2], options)),
        positions_(static_cast<size_t>(p.batch * p.queries)) {
    for (int64_t b = 0; b < p.batch; ++b)
      for (int64_t i = 0; i < p.queries; ++i)
        positions_[static_cast<size_t>(b * p.queries + i)] = static_cast<int32_t>(p.position(b, i));
  }

  // The arguments with what the scores are dot products of, in memory of the context.
  Qkv turned(Context& context) {
    const int64_t keys = in_.k.shape[2];
    float* q = exact::kept_floats(context, 0, in_.q.count());
    float* k = exact::kept_floats(context, 1, in_.k.count());
    lengths(in_.q, interleaved_, context, q, [](float a, float b) { return a * a + b * b; });
    lengths(in_.k, interleaved_, context, k, [](float a, float b) {
      const float mean = (a + b) / 2;
      return mean < 0 ? 0 : mean;  // a NaN stays
    });
    Qkv turned = in_;
    turned.q = dense_view(q, DType::kF32, {p.batch, p.heads, p.queries, p.d});
    turned.k = dense_view(k, DType::kF32, {p.batch, p.kv_heads, keys, p.d});
    rope_rotate(turned.q, positions(), angles_, interleaved_, turned.q, context);
    rope_rotate(turned.k, {}, angles_, interleaved_, turned.k, context);
    return turned;
  }

  // Gradients of these to those of queries and keys, in place.
  void turn_back(const View& q, const View& k, Context& context) const {
    if (q.data) pull(in_.q, positions_.data(), context, q, [](float& a, float& b, float d) { a *= 2 * d, b *= 2 * d; });
    if (k.data) pull(in_.k, nullptr, context, k, [](float& a, float& b, float d) { a = b = a + b > 0 ? d / 2 : 0; });
  }

  const exact::Problem p;

 private:
  static RopeTable table(int64_t d, int64_t keys, const CocaOptions& options) {
    if (d % 2) throw Error(ErrorKind::kArgument, kOp, "D", fmt::format("{}", d), "must be even");
    return rope_table({.base = options.base}, d, keys);
  }

  View positions() { return dense_view(positions_.data(), DType::kI32, {p.batch, p.queries}); }

  // slope(a, b, d): the pair to its gradients, from that of its length.
  template <class F>
  void pull(const View& x, const int32_t* positions, Context& context, const View& grad, F slope) const {
    const int64_t heads = x.shape[1], rows = x.shape[2], d = x.shape[3], half = d / 2;
    const Isa isa = active_isa(context);
    exact::run_tasks(context, x.shape[0] * heads, [&](int64_t task, Context&) {
      const int64_t b = task / heads, h = task % heads;
      std::vector<float> row(static_cast<size_t>(d)), cosine(static_cast<size_t>(half)), sine(cosine);
      for (int64_t t = 0; t < rows; ++t) {
        const int32_t position = positions ? positions[b * rows + t] : static_cast<int32_t>(t);
        angles_.fill(&position, 1, row_ops(isa), cosine.data(), sine.data());
        exact::widen(x, b * x.stride[0] + h * x.stride[1] + t * x.stride[2], d, isa, row.data());
        float* to = grad.at<float>({b, h, t});
        for (int64_t pair = 0; pair < half; ++pair) {
          const int64_t first = interleaved_ ? 2 * pair : pair, second = interleaved_ ? 2 * pair + 1 : pair + half;
          const size_t at = static_cast<size_t>(pair);
          float first_x = row[static_cast<size_t>(first)], second_x = row[static_cast<size_t>(second)];
          slope(first_x, second_x, cosine[at] * to[first] + sine[at] * to[second]);
          to[first] = first_x, to[second] = second_x;
        }
      }
    });
  }

  const Qkv& in_;
  bool interleaved_;
  RopeAngles angles_;
  std::vector<int32_t> positions_;
};

}  // namespace

void coca_attention(const Qkv& in, const CocaOptions& options, const AttnOut& out, Context& context) {
  exact::require_arrays(kOp, in);
  Collinear pairs(in, options);
  exact::check_outputs(pairs.p, in, out, kOp);
  softmax_attention(pairs.turned(context), pairs.p.options, out, context);
}

void coca_attention_backward(const Qkv& in, const CocaOptions& options, const AttnOut& forward,
                             const AttnOutGrad& grad_out, const AttnGrad& grad_in, Context& context) {
  exact::require_arrays(kOp, in);
  Collinear pairs(in, options);
  exact::check_gradients(pairs.p, in, forward, grad_out, grad_in, kOp);
  softmax_attention_backward(pairs.turned(context), pairs.p.options, forward, grad_out, grad_in, context);
  pairs.turn_back(grad_in.q, grad_in.k, context);
}

}  // namespace attend
