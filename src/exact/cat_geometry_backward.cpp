#include "attend/exact/cat_geometry.h"

#include <vector>

#include "attend/simd/dense.h"
#include "attend/simd/isa.h"
#include "attend/tensor/parallel.h"
#include "exact/dense_rows.h"
#include "exact/geometries.h"
#include "exact/score_gradients.h"
#include "exact/tasks.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "cat-geometry";

class GeometryGradients {
 public:
  GeometryGradients(const Qkv& in, const exact::Problem& problem, const View& routing,
                    const CatGeometryOptions& options, const View& grad_out, const CatGeometryGrad& grad_in,
                    Context& context)
      : in_(in), p_(problem), routing_(routing), o_(options), d_out_(grad_out), to_(grad_in), context_(context) {}

  void run() {
    for (const View* grad : {&to_.q, &to_.k, &to_.v, &to_.routing}) exact::clear_rows(*grad);
    const int64_t rows = p_.batch * p_.heads * p_.queries, keys = p_.batch * p_.kv_heads * in_.k.shape[2];
    auto floats = [&](int index, int64_t n, const View& like, int64_t width) {
      const Shape& s = like.shape;
      return dense_view(exact::kept_floats(context_, index, n * width), DType::kF32, {s[0], s[1], s[2], width});
    };
    branch_ = floats(0, rows, in_.q, p_.dv);
    lse_ = dense_view(exact::kept_floats(context_, 3, rows), DType::kF32, {p_.batch, p_.heads, p_.queries});
    loss_ = floats(4, rows, in_.q, p_.dv);
    for (int64_t g = 0; g < exact::kGeometries; ++g) {
      const bool taken = routing_.taken(p_, g);
      if (!taken && !to_.routing.data) continue;
      const int64_t width = g == 0 ? p_.d : p_.d + 2;
      dq_ = floats(5, to_.q.data ? rows : 0, in_.q, width);
      dk_ = floats(6, to_.k.data ? keys : 0, in_.k, width);
      dv_ = floats(7, to_.v.data ? keys : 0, in_.v, p_.dv);
      if (g == 0) {
        attend(in_, {.causal = o_.causal, .scale = o_.scale}, {}, g, taken);
        if (taken)
          gather([](const float*, int64_t d, bool, const float* from, float* to) {
            for (int64_t e = 0; e < d; ++e) to[e] += from[e];
          });
      } else {
        curved(g, taken);
      }
    }
  }

 private:
  void curved(int64_t g, bool taken) {
    exact::with_geometry(o_, p_.d, g, [&](exact::Space space, double c, const auto& score, const auto& slope) {
      const exact::Lifted lifted = exact::lift_all(in_, p_, space, c, context_);
      Qkv in = in_;
      in.q = lifted.q, in.k = lifted.k;
      const Hook hook = make_hook(score), slope_hook = make_hook(slope);
      attend(in, {.causal = o_.causal, .scale = 1}, {.score = &hook, .score_slope = &slope_hook}, g, taken);
      if (taken)
        gather([&](const float* x, int64_t d, bool key, const float* from, float* to) {
          exact::add_lift_gradient(x, d, space, c, key, from, to);
        });
    });
  }

  // The branch, the gradients of its weights, and those of its queries, keys and values.
  void attend(const Qkv& in, const SoftmaxOptions& options, const Variant& variant, int64_t g, bool taken) {
    softmax_attention(in, options, {branch_, lse_}, context_, variant);
    weigh(g);
    if (!taken) return;
    softmax_attention_backward(
        in, options, {branch_, lse_}, {.out = loss_},
        {.q = to_.q.data ? dq_ : View{}, .k = to_.k.data ? dk_ : View{}, .v = to_.v.data ? dv_ : View{}}, context_,
        variant);
  }

  // The gradient of out, times this branch's weights, and the branch's part in the gradient of the weights.
  void weigh(int64_t g) {
    View dots = lse_;
    dots.data = exact::kept_floats(context_, 8, p_.batch * p_.heads * p_.queries);
    parallel_for(context_.threads, p_.batch * p_.heads, [&](int64_t task, int) {
      const int64_t b = task / p_.heads, h = task % p_.heads;
      for (int64_t i = 0; i < p_.queries; ++i) {
        const float w = routing_(b, h, i, g), *from = d_out_.at<float>({b, h, i}), *out = branch_.at<float>({b, h, i});
        float *to = loss_.at<float>({b, h, i}), sum = 0;
        for (int64_t c = 0; c < p_.dv; ++c) {
          to[c] = w == 0 ? 0.0f : w * from[c];
          sum += from[c] * out[c];
        }
        *dots.at<float>({b, h, i}) = sum;
      }
    });
    const View& to = to_.routing;
    for (int64_t b = 0; to.data && b < p_.batch; ++b)
      for (int64_t h = 0; h < p_.heads; ++h)
        for (int64_t i = 0; i < p_.queries; ++i)
          *to.at<float>({to.shape[0] == 1 ? 0 : b, to.shape[1] == 1 ? 0 : h, to.shape[2] == 1 ? 0 : i, g}) +=
              *dots.at<float>({b, h, i});
  }

  // add(x, D, whether a key, gradient of lifted x, gradient of x) for all queries and keys; and the values' gradients.
  template <class Add>
  void gather(const Add& add) {
    const DenseKernels& kernels = dense_kernels(active_isa(context_));
    parallel_for(context_.threads, to_.q.data ? p_.batch * p_.heads : 0, [&](int64_t task, int) {
      const int64_t b = task / p_.heads, h = task % p_.heads;
      for (int64_t i = 0; i < p_.queries; ++i)
        add(in_.q.at<float>({b, h, i}), p_.d, false, dq_.at<float>({b, h, i}), to_.q.at<float>({b, h, i}));
    });
    std::vector<float> rows(static_cast<size_t>(context_.threads * p_.d));
    parallel_for(context_.threads, p_.batch * p_.kv_heads, [&](int64_t task, int worker) {
      const int64_t b = task / p_.kv_heads, h = task % p_.kv_heads;
      float* key = rows.data() + worker * p_.d;
      for (int64_t j = 0; j < in_.k.shape[2]; ++j) {
        if (to_.k.data) {
          const int64_t from = (b * in_.k.stride[0] + h * in_.k.stride[1] + j * in_.k.stride[2]) * size_of(in_.k.type);
          kernels.widen(in_.k.type, in_.k.as<char>() + from, 0, 1, p_.d, key, 0);
          add(key, p_.d, true, dk_.at<float>({b, h, j}), to_.k.at<float>({b, h, j}));
        }
        for (int64_t c = 0; to_.v.data && c < p_.dv; ++c)
          *to_.v.at<float>({b, h, j, c}) += *dv_.at<float>({b, h, j, c});
      }
    });
  }

  const Qkv& in_;
  const exact::Problem& p_;
  exact::Routing routing_;
  const CatGeometryOptions& o_;
  const View& d_out_;
  const CatGeometryGrad& to_;
  Context& context_;
  View branch_, lse_, loss_, dq_, dk_, dv_;
};

}  // namespace

void cat_geometry_attention_backward(const Qkv& in, const View& routing, const CatGeometryOptions& options,
                                     const View& grad_out, const CatGeometryGrad& grad_in, Context& context) {
  const exact::Problem p = exact::check_geometry(in, routing, options, {grad_out});
  exact::check_row_gradients(kOp, p, in, {.out = grad_out}, {grad_in.q, grad_in.k, grad_in.v},
                             {{"routing", grad_in.routing, routing}});
  context.throw_if_stopped();
  GeometryGradients(in, p, routing, options, grad_out, grad_in, context).run();
}

}  // namespace attend
