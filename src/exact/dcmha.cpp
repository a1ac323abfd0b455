#include "attend/exact/dcmha.h"

#include <fmt/format.h>

#include "attend/tensor/error.h"
#include "exact/dcmha_compose.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "dcmha";

[[noreturn]] void refuse(std::string_view argument, std::string_view got, std::string_view rule) {
  throw Error(ErrorKind::kArgument, kOp, argument, got, rule);
}

void require(std::string_view side, std::string_view name, const View& v, std::initializer_list<int64_t> shape) {
  const std::string full = fmt::format("{}_{}", side, name);
  if (!v.data && v.count() != 0) refuse(full, "null", "must be given");
  if (v.type != DType::kF32) refuse(full + " type", name_of(v.type), "must be f32");
  bool fits = v.rank == static_cast<int>(shape.size());
  int axis = 0;
  for (int64_t n : shape) fits = fits && v.shape[axis++] == n;
  if (!fits) refuse(full, to_string(v), fmt::format("must be [{}]", fmt::join(shape, ", ")));
  if (v.shape[v.rank - 1] > 1 && v.stride[v.rank - 1] != 1)
    refuse(full + " innermost stride", fmt::format("{}", v.stride[v.rank - 1]), "must be 1");
}

void check(std::string_view side, const Compose& c, const exact::Problem& p, int64_t keys) {
  const int64_t ranks = c.q1.rank == 4 ? c.q1.shape[2] : 0;
  if (ranks < 1 || ranks > exact::kMostRanks)
    refuse(fmt::format("{}_q1", side), to_string(c.q1),
           fmt::format("must be [B, Tq, R, Hq], R in 1..{}", exact::kMostRanks));
  require(side, "q1", c.q1, {p.batch, p.queries, ranks, p.heads});
  require(side, "q2", c.q2, {p.batch, p.queries, ranks, p.heads});
  require(side, "qd", c.qd, {p.batch, p.queries, p.heads});
  require(side, "k1", c.k1, {p.batch, keys, ranks, p.heads});
  require(side, "k2", c.k2, {p.batch, keys, ranks, p.heads});
  require(side, "kd", c.kd, {p.batch, keys, p.heads});
  if (c.w.data) require(side, "w", c.w, {p.heads, p.heads});
}

void check_apart(const Compose& c, const exact::Problem& p, const View& out) {
  exact::check_outputs(
      p, {.q = c.q1, .k = c.q2, .v = c.qd, .kv_lens = c.k1, .q_positions = c.k2, .bias = c.kd, .sink_logits = c.w},
      {out}, kOp);
}

// What one thread needs.
struct Worker {
  exact::ComposedRows rows;
  Buffer q, s;

  Worker(const exact::Problem& p, int64_t keys, Isa isa)
      : rows(p, keys, isa), q(p.heads * exact::ComposedRows::kRows * p.d * 4), s(rows.size() * 4) {}
};

}  // namespace

exact::Problem exact::check_dcmha(const DcmhaIn& in, const DcmhaOptions& options) {
  Problem p = check(in.attention, {.causal = options.causal, .scale = options.scale}, kOp);
  if (!in.attention.keys.empty()) refuse("keys", "given", "must be absent");
  if (in.attention.sink_logits.data) refuse("sink_logits", "given", "must be absent");
  const int64_t keys = in.attention.k.shape[2];
  attend::check("pre", in.pre, p, keys);
  attend::check("post", in.post, p, keys);
  return p;
}

void dcmha_attention(const DcmhaIn& in, const DcmhaOptions& options, const View& out, Context& context) {
  const exact::Problem p = exact::check_dcmha(in, options);
  check_apart(in.pre, p, out);
  check_apart(in.post, p, out);
  exact::check_outputs(p, in.attention, {out}, kOp);
  context.throw_if_stopped();
  if (p.batch == 0 || p.heads == 0 || p.queries == 0) return;

  const Isa isa = active_isa(context);
  const DenseKernels& kernels = dense_kernels(isa);
  const int64_t keys = in.attention.k.shape[2];
  exact::Composer pre(in.pre, p.heads, keys, p.batch), post(in.post, p.heads, keys, p.batch);
  const std::vector<exact::PackedHead> heads = exact::packed_heads(p, kernels, false, context);
  parallel_for(context.threads, p.batch, [&](int64_t b, int) {
    pre.turn(b);
    post.turn(b);
  });
  constexpr int64_t kRows = exact::ComposedRows::kRows;
  const int64_t blocks = (p.queries + kRows - 1) / kRows;
  std::vector<Worker> workers;
  for (int t = 0; t < context.threads; ++t) workers.emplace_back(p, keys, isa);
  parallel_for(context.threads, p.batch * blocks, [&](int64_t task, int worker) {
    if (context.stop.stop_requested()) return;
    Worker& w = workers[static_cast<size_t>(worker)];
    exact::ComposedRows& rows = w.rows;
    float* const s = w.s.as<float>();
    const int64_t b = task / blocks, first = task % blocks * kRows, count = std::min(kRows, p.queries - first);
    auto head = [&](int64_t h) -> const exact::PackedHead& {
      return heads[static_cast<size_t>(b * p.kv_heads + h / p.group)];
    };
    rows.start(b, first, count);
    rows.dots(
        p.q, p.scale, [&](int64_t h) { return head(h).panel(0); }, w.q.as<float>(), s);
    for (int64_t r = 0; r < count; ++r) {
      rows.weigh(pre, r, s);
      rows.compose(post, r, s);
      const auto [begin, end] = rows.seen(r);
      for (int64_t h = 0; h < p.heads; ++h) {
        float* to = out.at<float>({b, h, first + r});
        std::fill_n(to, p.dv, 0.0f);
        kernels.add_rows(rows.at(s, h, r) + begin, 0, 1, end - begin, head(h).values() + begin * p.dv, p.dv, p.dv, to,
                         0);
      }
    }
  });
  context.throw_if_stopped();
}

}  // namespace attend
