#include "attend/exact/mla.h"

#include <fmt/format.h>

#include <cmath>

#include "attend/simd/dense.h"
#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "exact/problem.h"

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

}  // namespace

void mla_attention(const MlaIn& in, const MlaOptions& options, const AttnOut& out, Context& context) {
  // The checks of softmax attention for what is as there: q, the cache's rank, type and strides, lengths, positions.
  if (in.q.rank != 4 || in.q.type != DType::kF32) refuse("q", to_string(in.q), "must be [B, Hq, Tq, D] of f32");
  if (in.cache.rank != 4 || in.cache.shape[1] != 1)
    refuse("cache", to_string(in.cache), "must be [B, 1, Tk, R + rope]");
  const int64_t batch = in.q.shape[0], heads = in.q.shape[1], queries = in.q.shape[2], d = in.q.shape[3];
  if (options.rope < 0 || options.rope >= d)
    refuse("rope", fmt::format("{}", options.rope), fmt::format("must be in 0..{}", d - 1));
  check_weights("w_uk", in.w_uk, heads);
  check_weights("w_uv", in.w_uv, heads);
  const int64_t plain = d - options.rope, rank = in.w_uk.shape[2], dv = in.w_uv.shape[1], width = rank + options.rope;
  if (in.w_uk.shape[1] != plain) refuse("w_uk", to_string(in.w_uk), fmt::format("must be [Hq, {}, R]", plain));
  if (in.w_uv.shape[2] != rank) refuse("w_uv", to_string(in.w_uv), fmt::format("must be [Hq, Dv, {}]", rank));
  if (in.cache.shape[3] != width) refuse("cache", to_string(in.cache), fmt::format("must be [B, 1, Tk, {}]", width));
  if (dv > 512) refuse("Dv", fmt::format("{}", dv), "must be in 1..512");
  View latents = in.cache;
  latents.shape[3] = rank;
  // q itself, against keys of its own width.
  exact::check({.q = in.q, .k = in.q, .v = in.q}, {.scale = options.scale}, kOp);

  Buffer memory(std::max<int64_t>(1, batch * heads * queries * (width + rank)) * 4);
  const View absorbed = dense_view(memory.data(), DType::kF32, {batch, heads, queries, width});
  const View read = dense_view(memory.as<float>() + absorbed.count(), DType::kF32, {batch, heads, queries, rank});
  const Qkv qkv{.q = absorbed, .k = in.cache, .v = latents, .kv_lens = in.kv_lens, .q_positions = in.q_positions};
  const SoftmaxOptions softmax{.causal = options.causal,
                               .scale = options.scale == 0 ? 1 / std::sqrt(static_cast<double>(d)) : options.scale};
  exact::check(qkv, softmax, kOp);
  exact::check_outputs(batch, heads, queries, dv, out, kOp);
  exact::Problem written{};
  written.batch = batch, written.heads = heads, written.queries = queries, written.dv = dv;
  exact::check_outputs(
      written,
      {.q = in.q, .k = in.cache, .v = in.w_uk, .kv_lens = in.kv_lens, .q_positions = in.q_positions, .bias = in.w_uv},
      out, kOp);
  context.throw_if_stopped();

  const DenseKernels& kernels = dense_kernels(active_isa(context));
  parallel_for(context.threads, batch * heads, [&](int64_t task, int) {
    const int64_t b = task / heads, h = task % heads;
    for (int64_t i = 0; i < queries; ++i) {
      const float* q = in.q.at<float>({b, h, i});
      float* to = absorbed.at<float>({b, h, i});
      std::fill_n(to, rank, 0.0f);
      kernels.add_rows(q, 0, 1, plain, in.w_uk.at<float>({h}), in.w_uk.stride[1], rank, to, 0);
      std::copy_n(q + plain, options.rope, to + rank);
    }
  });
  softmax_attention(qkv, softmax, {read, out.lse}, context);
  const int64_t panels = (dv + kPanelKeys - 1) / kPanelKeys;
  std::vector<std::vector<float>> scratch(static_cast<size_t>(context.threads));
  for (auto& s : scratch) s.resize(static_cast<size_t>(kPanelKeys * (rank + 1)));
  parallel_for(context.threads, batch * heads * panels, [&](int64_t task, int worker) {
    const int64_t b = task / panels / heads, h = task / panels % heads, first = task % panels * kPanelKeys;
    const int64_t columns = std::min<int64_t>(kPanelKeys, dv - first);
    float* panel = scratch[static_cast<size_t>(worker)].data();
    float* row = panel + kPanelKeys * rank;
    kernels.pack(DType::kF32, in.w_uv.at<float>({h, first}), in.w_uv.stride[1], columns, rank, panel);
    for (int64_t i = 0; i < queries; ++i) {
      kernels.dots(read.at<float>({b, h, i}), 0, 1, rank, panel, row, 0);
      std::copy_n(row, columns, out.out.at<float>({b, h, i, first}));
    }
  });
}

}  // namespace attend
