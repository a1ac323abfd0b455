#include "attend/exact/mla.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "attend/simd/dense.h"
#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "exact/score_gradients.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "mla";

[[noreturn]] void refuse(std::string_view argument, std::string_view got, std::string_view rule) {
  throw Error(ErrorKind::kArgument, kOp, argument, got, rule);
}

void check_weights(std::string_view name, const View& w, int64_t heads) {
  if (!w.data) refuse(name, "null", "must be given");
  if (w.type != DType::kF32) refuse(fmt::format("{} type", name), name_of(w.type), "must be f32");
  if (w.rank != 3 || w.shape[0] != heads || w.shape[1] < 1 || w.shape[2] < 1)
    refuse(name, to_string(w), fmt::format("must have 3 axes, the first of them {} heads", heads));
  if (w.shape[2] > 1 && w.stride[2] != 1)
    refuse(fmt::format("{} innermost stride", name), fmt::format("{}", w.stride[2]), "must be 1");
}

// A checked call, and attention of all heads to the cache.
class Absorbed {
 public:
  Absorbed(const MlaIn& in, const MlaOptions& options) : in_(in) {
    // The checks of softmax attention for what is as there: q, the cache's rank, type and strides, lengths, positions.
    if (in.q.rank != 4 || in.q.type != DType::kF32) refuse("q", to_string(in.q), "must be [B, Hq, Tq, D] of f32");
    if (in.cache.rank != 4 || in.cache.shape[1] != 1)
      refuse("cache", to_string(in.cache), "must be [B, 1, Tk, R + rope]");
    batch = in.q.shape[0], heads = in.q.shape[1], queries = in.q.shape[2];
    const int64_t d = in.q.shape[3];
    if (options.rope < 0 || options.rope >= d)
      refuse("rope", fmt::format("{}", options.rope), fmt::format("must be in 0..{}", d - 1));
    check_weights("w_uk", in.w_uk, heads);
    check_weights("w_uv", in.w_uv, heads);
    plain = d - options.rope, rank = in.w_uk.shape[2], dv = in.w_uv.shape[1], width = rank + options.rope;
    if (in.w_uk.shape[1] != plain) refuse("w_uk", to_string(in.w_uk), fmt::format("must be [Hq, {}, R]", plain));
    if (in.w_uv.shape[2] != rank) refuse("w_uv", to_string(in.w_uv), fmt::format("must be [Hq, Dv, {}]", rank));
    if (in.cache.shape[3] != width) refuse("cache", to_string(in.cache), fmt::format("must be [B, 1, Tk, {}]", width));
    if (dv > 512) refuse("Dv", fmt::format("{}", dv), "must be in 1..512");
    // q itself, against keys of its own width.
    exact::check({.q = in.q, .k = in.q, .v = in.q}, {.scale = options.scale}, kOp);
    const int64_t rows = batch * heads * queries;
    memory_ = Buffer(std::max<int64_t>(1, rows * (width + rank)) * 4);
    qkv = {.q = dense_view(memory_.data(), DType::kF32, {batch, heads, queries, width}),
           .k = in.cache,
           .v = in.cache,
           .kv_lens = in.kv_lens,
           .q_positions = in.q_positions};
    qkv.v.shape[3] = rank;
    read = dense_view(memory_.as<float>() + rows * width, DType::kF32, {batch, heads, queries, rank});
    softmax = {.causal = options.causal,
               .scale = options.scale == 0 ? 1 / std::sqrt(static_cast<double>(d)) : options.scale};
    exact::check(qkv, softmax, kOp);
  }

  // Queries to latents' width, then attention: `read` gets the weighted latents.
  void attend(const View& lse, Context& context) const {
    const DenseKernels& kernels = dense_kernels(active_isa(context));
    parallel_for(context.threads, batch * heads, [&](int64_t task, int) {
      const int64_t b = task / heads, h = task % heads;
      for (int64_t i = 0; i < queries; ++i) {
        const float* q = in_.q.at<float>({b, h, i});
        float* to = qkv.q.at<float>({b, h, i});
        std::fill_n(to, rank, 0.0f);
        kernels.add_rows(q, 0, 1, plain, in_.w_uk.at<float>({h}), in_.w_uk.stride[1], rank, to, 0);
        std::copy_n(q + plain, width - rank, to + rank);
      }
    });
    softmax_attention(qkv, softmax, {read, lse}, context);
  }

  // to[b,h,i,c] = dot(w[h,c], from[b,h,i]) of `rank` elements.
  void project(const View& from, const View& w, const View& to, Context& context) const {
    const DenseKernels& kernels = dense_kernels(active_isa(context));
    const int64_t all = w.shape[1], panels = (all + kPanelKeys - 1) / kPanelKeys;
    std::vector<std::vector<float>> scratch(static_cast<size_t>(context.threads));
    for (auto& s : scratch) s.resize(static_cast<size_t>(kPanelKeys * (rank + 1)));
    parallel_for(context.threads, batch * heads * panels, [&](int64_t task, int worker) {
      const int64_t b = task / panels / heads, h = task / panels % heads, first = task % panels * kPanelKeys;
      const int64_t columns = std::min<int64_t>(kPanelKeys, all - first);
      float* panel = scratch[static_cast<size_t>(worker)].data();
      float* row = panel + kPanelKeys * rank;
      kernels.pack(DType::kF32, w.at<float>({h, first}), w.stride[1], columns, rank, panel);
      for (int64_t i = 0; i < queries; ++i) {
        kernels.dots(from.at<float>({b, h, i}), 0, 1, rank, panel, row, 0);
        std::copy_n(row, columns, to.at<float>({b, h, i, first}));
      }
    });
  }

  // to[h,c,r] = sum over b and i, ascending, of left[b,h,i,c] right[b,h,i,r].
  void outer(const View& left, const View& right, const View& to, Context& context) const {
    const DenseKernels& kernels = dense_kernels(active_isa(context));
    const int64_t columns = to.shape[1];
    std::vector<std::vector<float>> scratch(static_cast<size_t>(context.threads));
    for (auto& s : scratch) s.resize(static_cast<size_t>(columns * queries));
    parallel_for(context.threads, heads, [&](int64_t h, int worker) {
      float* turned = scratch[static_cast<size_t>(worker)].data();
      for (int64_t c = 0; c < columns; ++c) std::fill_n(to.at<float>({h, c}), rank, 0.0f);
      for (int64_t b = 0; b < batch; ++b) {
        for (int64_t i = 0; i < queries; ++i)
          for (int64_t c = 0; c < columns; ++c) turned[c * queries + i] = left.at<float>({b, h, i})[c];
        kernels.add_rows(turned, queries, columns, queries, right.at<float>({b, h}), right.stride[2], rank,
                         to.at<float>({h}), to.stride[1]);
      }
    });
  }

  int64_t batch, heads, queries, plain, rank, dv, width;  // plain: elements of a query that meet latents
  Qkv qkv;
  View read;
  SoftmaxOptions softmax;

 private:
  const MlaIn& in_;
  Buffer memory_;
};

}  // namespace

void mla_attention(const MlaIn& in, const MlaOptions& options, const AttnOut& out, Context& context) {
  const Absorbed call(in, options);
  exact::check_outputs(call.batch, call.heads, call.queries, call.dv, out, kOp);
  exact::Problem written{};
  written.batch = call.batch, written.heads = call.heads, written.queries = call.queries, written.dv = call.dv;
  exact::check_outputs(
      written,
      {.q = in.q, .k = in.cache, .v = in.w_uk, .kv_lens = in.kv_lens, .q_positions = in.q_positions, .bias = in.w_uv},
      out, kOp);
  context.throw_if_stopped();
  call.attend(out.lse, context);
  call.project(call.read, in.w_uv, out.out, context);
}

void mla_attention_backward(const MlaIn& in, const MlaOptions& options, const AttnOutGrad& grad_out,
                            const MlaGrad& grad_in, Context& context) {
  const Absorbed call(in, options);
  if (!grad_out.out.data && !grad_out.lse.data) refuse("gradient of out", "null", "must be given");
  exact::check_outputs(call.batch, call.heads, call.queries, call.dv, {grad_out.out, grad_out.lse}, kOp);
  exact::check_parameter_gradients(kOp, {call.qkv, call.softmax, {}, grad_out, {}}, {},
                                   {{"q", grad_in.q, in.q},
                                    {"cache", grad_in.cache, in.cache},
                                    {"w_uk", grad_in.w_uk, in.w_uk},
                                    {"w_uv", grad_in.w_uv, in.w_uv}});
  context.throw_if_stopped();
  const int64_t rows = call.batch * call.heads * call.queries, keys = in.cache.shape[2];
  Buffer memory(std::max<int64_t>(1, rows * (call.width + call.rank + 1) + call.batch * keys * call.rank) * 4);
  float* next = memory.as<float>();
  auto place = [&](std::initializer_list<int64_t> shape) {
    const View x = dense_view(next, DType::kF32, shape);
    next += x.count();
    return x;
  };
  const View d_absorbed = place({call.batch, call.heads, call.queries, call.width}),
             d_read = place({call.batch, call.heads, call.queries, call.rank}),
             lse = place({call.batch, call.heads, call.queries}), d_latents = place({call.batch, 1, keys, call.rank});
  call.attend(lse, context);
  const DenseKernels& kernels = dense_kernels(active_isa(context));
  parallel_for(context.threads, call.batch * call.heads, [&](int64_t task, int) {
    const int64_t b = task / call.heads, h = task % call.heads;
    for (int64_t i = 0; i < call.queries; ++i) {
      float* to = d_read.at<float>({b, h, i});
      std::fill_n(to, call.rank, 0.0f);
      if (grad_out.out.data)
        kernels.add_rows(grad_out.out.at<float>({b, h, i}), 0, 1, call.dv, in.w_uv.at<float>({h}), in.w_uv.stride[1],
                         call.rank, to, 0);
    }
  });
  if (grad_in.w_uv.data && grad_out.out.data) call.outer(grad_out.out, call.read, grad_in.w_uv, context);
  for (int64_t row = 0; grad_in.w_uv.data && !grad_out.out.data && row < call.heads * call.dv; ++row)
    std::fill_n(grad_in.w_uv.at<float>({row / call.dv, row % call.dv}), call.rank, 0.0f);
  softmax_attention_backward(call.qkv, call.softmax, {call.read, lse}, {.out = d_read, .lse = grad_out.lse},
                             {.q = d_absorbed, .k = grad_in.cache, .v = grad_in.cache.data ? d_latents : View{}},
                             context);
  for (int64_t row = 0; grad_in.cache.data && row < call.batch * keys; ++row) {
    const float* latents = d_latents.at<float>({row / keys, 0, row % keys});
    float* to = grad_in.cache.at<float>({row / keys, 0, row % keys});
    for (int64_t r = 0; r < call.rank; ++r) to[r] += latents[r];
  }
  if (grad_in.w_uk.data) call.outer(in.q, d_absorbed, grad_in.w_uk, context);
  if (!grad_in.q.data) return;
  call.project(d_absorbed, in.w_uk, grad_in.q, context);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t b = row / (call.heads * call.queries), h = row / call.queries % call.heads, i = row % call.queries;
    std::copy_n(d_absorbed.at<float>({b, h, i, call.rank}), call.width - call.rank,
                grad_in.q.at<float>({b, h, i, call.plain}));
  }
}

}  // namespace attend
