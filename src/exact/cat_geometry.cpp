#include "attend/exact/cat_geometry.h"

#include <fmt/format.h>

#include "attend/simd/dense.h"
#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "exact/geometries.h"
#include "exact/parameter.h"
#include "exact/tasks.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "cat-geometry";

void check_options(const CatGeometryOptions& o) {
  auto refuse = [](std::string_view name, double got, std::string_view rule) {
    throw Error(ErrorKind::kArgument, kOp, name, fmt::format("{}", got), rule);
  };
  if (!(o.beta >= 0 && o.beta <= 1e30)) refuse("beta", o.beta, "must be in 0..1e30");
  for (const auto& [name, c] : {std::pair{"hyperbolic", o.hyperbolic}, {"spherical", o.spherical}})
    if (!(c == 0 || (c >= 1e-12 && c <= 1e12))) refuse(name, c, "must be 0 or in 1e-12..1e12");
  if (o.directions && o.spherical == 0) refuse("spherical", 0, "must be above 0 for directions");
}

class Geometries {
 public:
  Geometries(const Qkv& in, const exact::Problem& problem, const View& routing, const CatGeometryOptions& options,
             const View& out, Context& context)
      : in_(in), p_(problem), routing_(routing), o_(options), out_(out), context_(context) {}

  void run() {
    branch_ = dense_view(exact::kept_floats(context_, 0, p_.batch * p_.heads * p_.queries * p_.dv), DType::kF32,
                         {p_.batch, p_.heads, p_.queries, p_.dv});
    bool first = true;
    for (int64_t g = 0; g < exact::kGeometries; ++g) {
      if (!routing_.taken(p_, g)) continue;
      if (g == 0) softmax_attention(in_, {.causal = o_.causal, .scale = o_.scale}, {branch_}, context_);
      if (g > 0) curved(g);
      add(g, first);
      first = false;
    }
    if (first) add(-1, true);
  }

 private:
  // out += routing * branch, or = for the first.
  void add(int64_t g, bool first) {
    parallel_for(context_.threads, p_.batch * p_.heads, [&](int64_t task, int) {
      const int64_t b = task / p_.heads, h = task % p_.heads;
      for (int64_t i = 0; i < p_.queries; ++i) {
        float* to = out_.at<float>({b, h, i});
        if (first) std::fill_n(to, p_.dv, 0.0f);
        const float w = g < 0 ? 0.0f : routing_(b, h, i, g);
        if (w == 0) continue;
        const float* from = branch_.at<float>({b, h, i});
        for (int64_t c = 0; c < p_.dv; ++c) to[c] += w * from[c];
      }
    });
  }

  void curved(int64_t g) {
    exact::with_geometry(o_, p_.d, g, [&](exact::Space space, double c, const auto& score, const auto&) {
      const exact::Lifted lifted = exact::lift_all(in_, p_, space, c, context_);
      Qkv in = in_;
      in.q = lifted.q, in.k = lifted.k;
      const Hook hook = make_hook(score);
      softmax_attention(in, {.causal = o_.causal, .scale = 1}, {branch_}, context_, {.score = &hook});
    });
  }

  const Qkv& in_;
  const exact::Problem& p_;
  exact::Routing routing_;
  const CatGeometryOptions& o_;
  const View& out_;
  Context& context_;
  View branch_;
};

}  // namespace

namespace exact {

Lifted lift_all(const Qkv& in, const Problem& p, Space space, double c, Context& context) {
  const int64_t width = p.d + 2, keys = in.k.shape[2];
  const DenseKernels& kernels = dense_kernels(active_isa(context));
  const Lifted to{dense_view(kept_floats(context, 1, p.batch * p.heads * p.queries * width), DType::kF32,
                             {p.batch, p.heads, p.queries, width}),
                  dense_view(kept_floats(context, 2, p.batch * p.kv_heads * keys * width), DType::kF32,
                             {p.batch, p.kv_heads, keys, width})};
  parallel_for(context.threads, p.batch * p.heads, [&](int64_t task, int) {
    const int64_t b = task / p.heads, h = task % p.heads;
    for (int64_t i = 0; i < p.queries; ++i)
      lift(in.q.at<float>({b, h, i}), p.d, space, c, false, to.q.at<float>({b, h, i}));
  });
  parallel_for(context.threads, p.batch * p.kv_heads, [&](int64_t task, int) {
    const int64_t b = task / p.kv_heads, h = task % p.kv_heads;
    for (int64_t j = 0; j < keys; ++j) {
      float* row = to.k.at<float>({b, h, j});
      const int64_t from = (b * in.k.stride[0] + h * in.k.stride[1] + j * in.k.stride[2]) * size_of(in.k.type);
      kernels.widen(in.k.type, in.k.as<char>() + from, 0, 1, p.d, row, 0);
      lift(row, p.d, space, c, true, row);
    }
  });
  return to;
}

Problem check_geometry(const Qkv& in, const View& routing, const CatGeometryOptions& options, const AttnOut& out) {
  check_options(options);
  require_arrays(kOp, in);
  const Problem p = check(in, {.causal = options.causal, .scale = options.scale}, kOp);
  if (p.d > 510) throw Error(ErrorKind::kArgument, kOp, "D", fmt::format("{}", p.d), "must be at most 510");
  check_outputs(p, in, out, kOp);
  const View& r = routing;
  auto axis = [&](int a, int64_t n) { return r.data && r.rank == 4 && r.shape[a] == 1 ? 1 : n; };
  check_parameter(
      kOp, {"routing", r, {axis(0, p.batch), axis(1, p.heads), axis(2, p.queries), kGeometries}, "[B, Hq, Tq, 3]"},
      out);
  return p;
}

}  // namespace exact

void cat_geometry_attention(const Qkv& in, const View& routing, const CatGeometryOptions& options, const View& out,
                            Context& context) {
  const exact::Problem p = exact::check_geometry(in, routing, options, {out});
  context.throw_if_stopped();
  if (p.batch == 0 || p.heads == 0 || p.queries == 0) return;
  Geometries(in, p, routing, options, out, context).run();
}

}  // namespace attend
