#include "attend/exact/dcmha.h"

#include <fmt/format.h>

#include <limits>

#include "attend/tensor/error.h"
#include "exact/dcmha_compose.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "dcmha";
constexpr int64_t kRows = 4;

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

// All heads of a few queries of one batch entry.
class Block {
 public:
  Block(const exact::Problem& p, const DenseKernels& kernels, Isa isa, const std::vector<exact::PackedHead>& heads,
        const exact::Composer& pre, const exact::Composer& post, int64_t keys)
      : p_(p), kernels_(kernels), isa_(isa), heads_(heads), pre_(pre), post_(post), stride_(exact::padded_keys(keys)) {
    q_ = Buffer(kRows * p.d * 4);
    s_ = Buffer(std::max<int64_t>(1, p.heads * kRows * stride_) * 4);
    scratch_ = Buffer(p.heads * kPanelKeys * 4);
  }

  void run(int64_t b, int64_t first, int64_t rows, const View& out) {
    const exact::Keys& keys = exact::keys_of(p_, b, 0);
    int64_t ends[kRows], last = 0;
    for (int64_t r = 0; r < rows; ++r) {
      ends[r] = exact::hide(p_, keys, b, first + r, score(0, r));  // only for its result: scores come next
      last = std::max(last, ends[r]);
    }
    for (int64_t h = 0; h < p_.heads; ++h) {
      float* q = q_.as<float>();
      for (int64_t r = 0; r < rows; ++r) {
        const float* from = p_.q.at<float>({b, h, first + r});
        for (int64_t c = 0; c < p_.d; ++c) q[r * p_.d + c] = from[c] * p_.scale;
      }
      for (int64_t panel = 0; panel < exact::panel_count(last); ++panel)
        kernels_.dots(q, p_.d, rows, p_.d, head(b, h).panel(panel), score(h, 0) + panel * kPanelKeys, stride_);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = first + r, n = ends[r], head_stride = kRows * stride_;
      exact::run_under(isa_, exact::ComposeRow{pre_, b, i, score(0, r), head_stride, n, scratch_.as<float>()});
      for (int64_t h = 0; h < p_.heads; ++h) {
        float most, *s = score(h, r);
        exact::hide(p_, keys, b, i, s);
        if (p_.bias.data) {
          const float* bias = p_.bias.at<float>({b, h, i});
          for (int64_t j = 0; j < n; ++j)
            if (s[j] != kHidden) s[j] += bias[j * p_.bias.stride[3]];
        }
        const float sum = kernels_.exponentials(s, n, &most);
        for (int64_t j = 0; j < n && sum != 0; ++j) s[j] /= sum;
      }
      exact::run_under(isa_, exact::ComposeRow{post_, b, i, score(0, r), head_stride, n, scratch_.as<float>()});
      for (int64_t h = 0; h < p_.heads; ++h) {
        float *s = score(h, r), *to = out.at<float>({b, h, i});
        exact::hide(p_, keys, b, i, s);
        for (int64_t j = 0; j < n; ++j)
          if (s[j] == kHidden) s[j] = 0;
        std::fill_n(to, p_.dv, 0.0f);
        kernels_.add_rows(s, 0, 1, n, head(b, h).values(), p_.dv, p_.dv, to, 0);
      }
    }
  }

 private:
  static constexpr float kHidden = -std::numeric_limits<float>::infinity();

  float* score(int64_t h, int64_t r) const { return s_.as<float>() + (h * kRows + r) * stride_; }
  const exact::PackedHead& head(int64_t b, int64_t h) const {
    return heads_[static_cast<size_t>(b * p_.kv_heads + h / p_.group)];
  }

  const exact::Problem& p_;
  const DenseKernels& kernels_;
  Isa isa_;
  const std::vector<exact::PackedHead>& heads_;
  const exact::Composer &pre_, &post_;
  int64_t stride_;
  Buffer q_, s_, scratch_;
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
  std::vector<exact::PackedHead> heads(p.keys.size());
  for (size_t h = 0; h < heads.size(); ++h) heads[h].reserve(p.keys[h].count(), p.d, p.dv);
  parallel_for(context.threads, p.batch * p.kv_heads, [&](int64_t task, int) {
    heads[static_cast<size_t>(task)].load(kernels, p.keys[static_cast<size_t>(task)], 0);
  });
  parallel_for(context.threads, p.batch, [&](int64_t b, int) {
    pre.turn(b);
    post.turn(b);
  });
  const int64_t blocks = (p.queries + kRows - 1) / kRows;
  std::vector<Block> workers;
  for (int t = 0; t < context.threads; ++t) workers.emplace_back(p, kernels, isa, heads, pre, post, keys);
  parallel_for(context.threads, p.batch * blocks, [&](int64_t task, int worker) {
    if (context.stop.stop_requested()) return;
    const int64_t first = task % blocks * kRows;
    workers[static_cast<size_t>(worker)].run(task / blocks, first, std::min(kRows, p.queries - first), out);
  });
  context.throw_if_stopped();
}

}  // namespace attend
