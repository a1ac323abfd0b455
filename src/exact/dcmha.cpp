#include "attend/exact/dcmha.h"

#include <fmt/format.h>

#include <limits>

#include "attend/simd/hook.h"
#include "attend/tensor/error.h"
#include "exact/rows.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "dcmha";
constexpr int64_t kRows = 4, kMostRanks = 8;

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

void check(std::string_view side, const Compose& c, const exact::Problem& p, int64_t keys, const View& out) {
  const int64_t ranks = c.q1.rank == 4 ? c.q1.shape[2] : 0;
  if (ranks < 1 || ranks > kMostRanks)
    refuse(fmt::format("{}_q1", side), to_string(c.q1), fmt::format("must be [B, Tq, R, Hq], R in 1..{}", kMostRanks));
  require(side, "q1", c.q1, {p.batch, p.queries, ranks, p.heads});
  require(side, "q2", c.q2, {p.batch, p.queries, ranks, p.heads});
  require(side, "qd", c.qd, {p.batch, p.queries, p.heads});
  require(side, "k1", c.k1, {p.batch, keys, ranks, p.heads});
  require(side, "k2", c.k2, {p.batch, keys, ranks, p.heads});
  require(side, "kd", c.kd, {p.batch, keys, p.heads});
  if (c.w.data) require(side, "w", c.w, {p.heads, p.heads});
  exact::check_outputs(
      p, {.q = c.q1, .k = c.q2, .v = c.qd, .kv_lens = c.k1, .q_positions = c.k2, .bias = c.kd, .sink_logits = c.w},
      {out}, kOp);
}

// One side's map between heads, with what belongs to keys turned so that keys are innermost.
class Composer {
 public:
  Composer(const Compose& c, int64_t heads, int64_t keys, int64_t batch)
      : c_(c), heads_(heads), ranks_(c.q1.shape[2]), stride_(exact::padded_keys(keys)), keys_(keys) {
    turned_ = Buffer(std::max<int64_t>(1, batch * (2 * ranks_ + 1) * heads * stride_) * 4);
  }

  // Rows (2 R + 1) * Hq of [Tk]: k1, k2, kd.
  void turn(int64_t b) {
    for (int64_t j = 0; j < keys_; ++j)
      for (int64_t row = 0; row <= 2 * ranks_; ++row) {
        const View& from = row < ranks_ ? c_.k1 : c_.k2;
        const float* x = row == 2 * ranks_ ? c_.kd.at<float>({b, j}) : from.at<float>({b, j, row % ranks_});
        for (int64_t h = 0; h < heads_; ++h) key(b, row, h)[j] = x[h];
      }
  }

  // In place: s[h * head_stride + j] over all heads, for query i and columns [0, n). `scratch`: Hq * 64.
  [[gnu::always_inline]] void run(int64_t b, int64_t i, float* s, int64_t head_stride, int64_t n,
                                  float* scratch) const {
    const float* qd = c_.qd.at<float>({b, i});
    for (int64_t first = 0; first < n; first += kPanelKeys) {
      const int columns = static_cast<int>(std::min<int64_t>(kPanelKeys, n - first));
      float by_query[kMostRanks][kPanelKeys] = {}, by_key[kMostRanks][kPanelKeys] = {};
      for (int64_t h = 0; h < heads_; ++h) {
        const float* from = s + h * head_stride + first;
        float* x = scratch + h * kPanelKeys;
        std::copy_n(from, columns, x);
        for (int64_t r = 0; r < ranks_; ++r) {
          const float factor = c_.q1.at<float>({b, i, r})[h];
          const float* k1 = key(b, r, h) + first;
          float *query_sum = by_query[r], *key_sum = by_key[r];
#pragma omp simd
          for (int j = 0; j < columns; ++j) {
            query_sum[j] = __builtin_fmaf(factor, x[j], query_sum[j]);
            key_sum[j] = __builtin_fmaf(k1[j], x[j], key_sum[j]);
          }
        }
      }
      for (int64_t h = 0; h < heads_; ++h) {
        float* to = s + h * head_stride + first;
        const float* x = scratch + h * kPanelKeys;
        const float *kd = key(b, 2 * ranks_, h) + first, own = qd[h];
        if (c_.w.data) {
          std::fill_n(to, columns, 0.0f);
          for (int64_t g = 0; g < heads_; ++g) {
            const float factor = c_.w.at<float>({g})[h];
            const float* y = scratch + g * kPanelKeys;
#pragma omp simd
            for (int j = 0; j < columns; ++j) to[j] = __builtin_fmaf(factor, y[j], to[j]);
          }
        }
#pragma omp simd
        for (int j = 0; j < columns; ++j) to[j] = __builtin_fmaf(x[j], own + kd[j], to[j]);
        for (int64_t r = 0; r < ranks_; ++r) {
          const float factor = c_.q2.at<float>({b, i, r})[h];
          const float *k2 = key(b, ranks_ + r, h) + first, *query_sum = by_query[r], *key_sum = by_key[r];
#pragma omp simd
          for (int j = 0; j < columns; ++j)
            to[j] = __builtin_fmaf(k2[j], key_sum[j], __builtin_fmaf(factor, query_sum[j], to[j]));
        }
      }
    }
  }

 private:
  float* key(int64_t b, int64_t row, int64_t h) const {
    return turned_.as<float>() + ((b * (2 * ranks_ + 1) + row) * heads_ + h) * stride_;
  }

  const Compose& c_;
  int64_t heads_, ranks_, stride_, keys_;
  Buffer turned_;
};

ATTEND_TARGET_AVX2 void compose_avx2(const Composer& c, int64_t b, int64_t i, float* s, int64_t stride, int64_t n,
                                     float* scratch) {
  c.run(b, i, s, stride, n, scratch);
}
ATTEND_TARGET_AVX512 void compose_avx512(const Composer& c, int64_t b, int64_t i, float* s, int64_t stride, int64_t n,
                                         float* scratch) {
  c.run(b, i, s, stride, n, scratch);
}

// All heads of a few queries of one batch entry.
class Block {
 public:
  Block(const exact::Problem& p, const DenseKernels& kernels, bool avx2, const std::vector<exact::PackedHead>& heads,
        const Composer& pre, const Composer& post, int64_t keys)
      : p_(p),
        kernels_(kernels),
        compose_(avx2 ? compose_avx2 : compose_avx512),
        heads_(heads),
        pre_(pre),
        post_(post),
        stride_(exact::padded_keys(keys)) {
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
      compose_(pre_, b, i, score(0, r), head_stride, n, scratch_.as<float>());
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
      compose_(post_, b, i, score(0, r), head_stride, n, scratch_.as<float>());
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
  void (*compose_)(const Composer&, int64_t, int64_t, float*, int64_t, int64_t, float*);
  const std::vector<exact::PackedHead>& heads_;
  const Composer &pre_, &post_;
  int64_t stride_;
  Buffer q_, s_, scratch_;
};

}  // namespace

void dcmha_attention(const DcmhaIn& in, const DcmhaOptions& options, const View& out, Context& context) {
  const exact::Problem p = exact::check(in.attention, {.causal = options.causal, .scale = options.scale}, kOp);
  if (!in.attention.keys.empty()) refuse("keys", "given", "must be absent");
  if (in.attention.sink_logits.data) refuse("sink_logits", "given", "must be absent");
  const int64_t keys = in.attention.k.shape[2];
  check("pre", in.pre, p, keys, out);
  check("post", in.post, p, keys, out);
  exact::check_outputs(p, in.attention, {out}, kOp);
  context.throw_if_stopped();
  if (p.batch == 0 || p.heads == 0 || p.queries == 0) return;

  const Isa isa = active_isa(context);
  const DenseKernels& kernels = dense_kernels(isa);
  Composer pre(in.pre, p.heads, keys, p.batch), post(in.post, p.heads, keys, p.batch);
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
  for (int t = 0; t < context.threads; ++t) workers.emplace_back(p, kernels, isa == Isa::kAvx2, heads, pre, post, keys);
  parallel_for(context.threads, p.batch * blocks, [&](int64_t task, int worker) {
    if (context.stop.stop_requested()) return;
    const int64_t first = task % blocks * kRows;
    workers[static_cast<size_t>(worker)].run(task / blocks, first, std::min(kRows, p.queries - first), out);
  });
  context.throw_if_stopped();
}

}  // namespace attend
