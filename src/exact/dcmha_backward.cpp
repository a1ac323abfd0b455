// Gradients of dcmha: a few queries of all heads at a time. What belongs to keys gathers from all queries, so queries are
// cut into slices, whose number does not depend on threads, with sums of their own.
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "attend/simd/isa.h"
#include "exact/dcmha_compose.h"
#include "exact/dense_rows.h"
#include "exact/lane_sum.h"
#include "exact/row_backward.h"
#include "exact/score_gradients.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "dcmha";
constexpr int64_t kRows = 4, kSlices = 8;

std::vector<float> floats(int64_t n) {
  return std::vector<float>(static_cast<size_t>(n), 0.0f);
}

// The map that takes gradients back: factors in and out change places.
class Turned {
 public:
  Turned(const Compose& c, int64_t heads) : map_{c.q2, c.q1, c.qd, c.k2, c.k1, c.kd, c.w} {
    if (!c.w.data) return;
    w_ = floats(heads * heads);
    for (int64_t g = 0; g < heads; ++g)
      for (int64_t h = 0; h < heads; ++h) w_[static_cast<size_t>(h * heads + g)] = *c.w.at<float>({g, h});
    map_.w = dense_view(w_.data(), DType::kF32, {heads, heads});
  }
  const Compose& map() const { return map_; }

 private:
  std::vector<float> w_;
  Compose map_;
};

// What a slice sums for one side: [2 R + 1, Hq, Tk] of k1, k2 and kd, and [Hq, Hq] of w.
struct MapSums {
  std::vector<float> keys, w;

  MapSums(int64_t ranks, int64_t heads, int64_t keys_stride)
      : keys(floats((2 * ranks + 1) * heads * keys_stride)), w(floats(heads * heads)) {}
};

// Gradients of a side's factors from what went in, x, and from the gradients of what came out, dy: of query i, whose own
// are written, and of the columns of one row.
struct PullFactors {
  const exact::Composer& composer;
  const Compose &c, &to;  // the factors and their gradients
  MapSums& sums;
  int64_t b, i, heads, head_stride, n, stride;
  const float *x, *dy;

  [[gnu::always_inline]] inline float* key_sum(int64_t row, int64_t h) const {
    return sums.keys.data() + (row * heads + h) * stride;
  }
  [[gnu::always_inline]] inline static void add(const View& to, std::initializer_list<int64_t> at, int64_t h, float d) {
    if (to.data) to.at<float>(at)[h] += d;
  }

  [[gnu::always_inline]] inline void run() const {
    const int64_t ranks = composer.ranks();
    for (int64_t first = 0; first < n; first += kPanelKeys) {
      const int64_t columns = std::min<int64_t>(kPanelKeys, n - first);
      // Sums over heads: of x by q1 and k1, of dy by q2 and k2.
      float sum[4][exact::kMostRanks][kPanelKeys] = {};
      for (int64_t h = 0; h < heads; ++h) {
        const float *in = x + h * head_stride + first, *out = dy + h * head_stride + first;
        for (int64_t r = 0; r < ranks; ++r) {
          const float q1 = c.q1.at<float>({b, i, r})[h], q2 = c.q2.at<float>({b, i, r})[h];
          const float *k1 = composer.k1(b, r, h) + first, *k2 = composer.k2(b, r, h) + first;
          float *by_q1 = sum[0][r], *by_k1 = sum[1][r], *by_q2 = sum[2][r], *by_k2 = sum[3][r];
#pragma omp simd
          for (int64_t j = 0; j < columns; ++j) {
            by_q1[j] = __builtin_fmaf(q1, in[j], by_q1[j]);
            by_k1[j] = __builtin_fmaf(k1[j], in[j], by_k1[j]);
            by_q2[j] = __builtin_fmaf(q2, out[j], by_q2[j]);
            by_k2[j] = __builtin_fmaf(k2[j], out[j], by_k2[j]);
          }
        }
      }
      for (int64_t h = 0; h < heads; ++h) {
        const float *in = x + h * head_stride + first, *out = dy + h * head_stride + first;
        float* gate = key_sum(2 * ranks, h) + first;
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j) gate[j] += in[j] * out[j];
        add(to.qd, {b, i}, h, exact::lane_dot(in, out, columns));
        for (int64_t r = 0; r < ranks; ++r) {
          float *k1 = key_sum(r, h) + first, *k2 = key_sum(ranks + r, h) + first;
          const float *by_k1 = sum[1][r], *by_k2 = sum[3][r];
#pragma omp simd
          for (int64_t j = 0; j < columns; ++j) {
            k1[j] += by_k2[j] * in[j];
            k2[j] += by_k1[j] * out[j];
          }
          add(to.q1, {b, i, r}, h, exact::lane_dot(sum[2][r], in, columns));
          add(to.q2, {b, i, r}, h, exact::lane_dot(sum[0][r], out, columns));
        }
        for (int64_t g = 0; to.w.data && g < heads; ++g)
          sums.w[static_cast<size_t>(g * heads + h)] += exact::lane_dot(x + g * head_stride + first, out, columns);
      }
    }
  }
};

// Softmax's: weights a and the gradients d of them, in place to those of the scores.
struct PullSoftmax {
  const float* a;
  float* d;
  int64_t n;

  [[gnu::always_inline]] inline void run() const {
    const float mean = exact::lane_dot(a, d, n);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) d[j] = a[j] * (d[j] - mean);
  }
};

// Both sides, forward and back.
struct Maps {
  exact::Composer pre, post, pre_back, post_back;

  Maps(const DcmhaIn& in, const Turned& pre_turned, const Turned& post_turned, int64_t heads, int64_t keys,
       int64_t batch)
      : pre(in.pre, heads, keys, batch),
        post(in.post, heads, keys, batch),
        pre_back(pre_turned.map(), heads, keys, batch),
        post_back(post_turned.map(), heads, keys, batch) {}
  void turn(int64_t b) {
    for (exact::Composer* map : {&pre, &post, &pre_back, &post_back}) map->turn(b);
  }
};

// Keys and values of a kv head, both in panels and as rows.
struct Head {
  exact::PackedHead packed;
  std::vector<float> value_panels;
};

// All queries of one slice of a batch entry.
class Slice {
 public:
  Slice(const exact::Problem& p, const DcmhaIn& in, const View& d_out, const DcmhaGrad& to, const Maps& maps,
        const std::vector<Head>& heads, int64_t keys, Isa isa)
      : pre(in.pre.q1.shape[2], p.heads, exact::padded_keys(keys)),
        post(in.post.q1.shape[2], p.heads, exact::padded_keys(keys)),
        dk(floats(p.kv_heads * keys * p.d)),
        dv(floats(p.kv_heads * keys * p.dv)),
        p_(p),
        in_(in),
        d_out_view_(d_out),
        to_(to),
        maps_(maps),
        heads_(heads),
        keys_(keys),
        stride_(exact::padded_keys(keys)),
        head_stride_(kRows * stride_),
        isa_(isa),
        kernels_(dense_kernels(isa)) {}

  void run(int64_t b, int64_t begin, int64_t end, const Context& context) {
    const int64_t all = std::max<int64_t>(1, p_.heads) * head_stride_;
    scores_ = floats(all), weights_ = floats(all), composed_ = floats(all), slopes_ = floats(all);
    scratch_ = floats(p_.heads * kPanelKeys), q_ = floats(p_.heads * kRows * p_.d), dq_ = floats(kRows * p_.d);
    d_out_ = floats(p_.heads * kRows * p_.dv), across_ = floats(stride_ * kRows);
    for (int64_t first = begin; first < end && !context.stop.stop_requested(); first += kRows)
      rows(b, first, std::min(kRows, end - first));
  }

  MapSums pre, post;
  std::vector<float> dk, dv;  // [Hkv, Tk, D], [Hkv, Tk, Dv]

 private:
  float* at(std::vector<float>& x, int64_t h, int64_t r) { return x.data() + (h * kRows + r) * stride_; }
  const Head& head(int64_t b, int64_t h) const { return heads_[static_cast<size_t>(b * p_.kv_heads + h / p_.group)]; }

  void rows(int64_t b, int64_t first, int64_t count) {
    int64_t ends[kRows], last = 0;
    for (int64_t r = 0; r < count; ++r) {
      ends[r] = exact::hide(p_, exact::keys_of(p_, b, 0), b, first + r, at(scores_, 0, r));  // only for its result
      last = std::max(last, ends[r]);
    }
    for (int64_t h = 0; h < p_.heads; ++h) {
      float *q = q_.data() + h * kRows * p_.d, *d = d_out_.data() + h * kRows * p_.dv;
      for (int64_t r = 0; r < count; ++r) {
        const float* from = p_.q.at<float>({b, h, first + r});
        for (int64_t c = 0; c < p_.d; ++c) q[r * p_.d + c] = from[c] * p_.scale;
        std::copy_n(d_out_view_.at<float>({b, h, first + r}), p_.dv, d + r * p_.dv);
      }
      for (int64_t panel = 0; panel < exact::panel_count(last); ++panel) {
        kernels_.dots(q, p_.d, count, p_.d, head(b, h).packed.panel(panel), at(scores_, h, 0) + panel * kPanelKeys,
                      stride_);
        kernels_.dots(d, p_.dv, count, p_.dv, head(b, h).value_panels.data() + panel * kPanelKeys * p_.dv,
                      at(slopes_, h, 0) + panel * kPanelKeys, stride_);
      }
    }
    for (int64_t r = 0; r < count; ++r) row(b, first + r, r, ends[r], last);
    for (int64_t h = 0; h < p_.heads; ++h) gather(b, h, first, count, last);
  }

  // Scores and gradients of weighted values to weights, composed, and gradients of scores.
  void row(int64_t b, int64_t i, int64_t r, int64_t n, int64_t last) {
    weigh(b, i, r, n);
    for (int64_t h = 0; h < p_.heads; ++h) std::copy_n(at(weights_, h, r), n, at(composed_, h, r));
    exact::run_under(isa_, exact::ComposeRow{maps_.post, b, i, at(composed_, 0, r), head_stride_, n, scratch_.data()});
    for (int64_t h = 0; h < p_.heads; ++h) {
      float *p = at(composed_, h, r), *d = at(slopes_, h, r);
      exact::hide(p_, exact::keys_of(p_, b, h), b, i, p);
      for (int64_t j = 0; j < n; ++j)
        if (p[j] == kHidden) p[j] = d[j] = 0;
    }
    pull(maps_.post, in_.post, to_.post, post, b, i, r, n, weights_);
    exact::run_under(isa_,
                     exact::ComposeRow{maps_.post_back, b, i, at(slopes_, 0, r), head_stride_, n, scratch_.data()});
    for (int64_t h = 0; h < p_.heads; ++h)
      exact::run_under(isa_, PullSoftmax{at(weights_, h, r), at(slopes_, h, r), n});
    pull(maps_.pre, in_.pre, to_.pre, pre, b, i, r, n, scores_);
    exact::run_under(isa_,
                     exact::ComposeRow{maps_.pre_back, b, i, at(slopes_, 0, r), head_stride_, n, scratch_.data()});
    for (int64_t h = 0; h < p_.heads; ++h)
      for (std::vector<float>* x : {&composed_, &slopes_}) std::fill(at(*x, h, r) + n, at(*x, h, r) + last, 0.0f);
  }

  void weigh(int64_t b, int64_t i, int64_t r, int64_t n) {
    for (int64_t h = 0; h < p_.heads; ++h) std::copy_n(at(scores_, h, r), n, at(weights_, h, r));
    exact::run_under(isa_, exact::ComposeRow{maps_.pre, b, i, at(weights_, 0, r), head_stride_, n, scratch_.data()});
    for (int64_t h = 0; h < p_.heads; ++h) {
      float most, *s = at(weights_, h, r);
      exact::hide(p_, exact::keys_of(p_, b, h), b, i, s);
      if (p_.bias.data) {
        const float* bias = p_.bias.at<float>({b, h, i});
        for (int64_t j = 0; j < n; ++j)
          if (s[j] != kHidden) s[j] += bias[j * p_.bias.stride[3]];
      }
      const float sum = kernels_.exponentials(s, n, &most);
      for (int64_t j = 0; j < n && sum != 0; ++j) s[j] /= sum;
    }
  }

  void pull(const exact::Composer& composer, const Compose& c, const Compose& to, MapSums& sums, int64_t b, int64_t i,
            int64_t r, int64_t n, std::vector<float>& x) {
    exact::run_under(isa_, PullFactors{composer, c, to, sums, b, i, p_.heads, head_stride_, n, stride_, at(x, 0, r),
                                       at(slopes_, 0, r)});
  }

  void gather(int64_t b, int64_t h, int64_t first, int64_t count, int64_t last) {
    const int64_t kv = h / p_.group;
    const float *q = q_.data() + h * kRows * p_.d, *d = d_out_.data() + h * kRows * p_.dv;
    if (to_.q.data) {
      std::fill(dq_.begin(), dq_.end(), 0.0f);
      kernels_.add_rows(at(slopes_, h, 0), stride_, count, last, head(b, h).packed.keys(), p_.d, p_.d, dq_.data(),
                        p_.d);
      for (int64_t r = 0; r < count; ++r) {
        float* to = to_.q.at<float>({b, h, first + r});
        for (int64_t c = 0; c < p_.d; ++c) to[c] = p_.scale * dq_[static_cast<size_t>(r * p_.d + c)];
      }
    }
    exact::turn_rows(at(slopes_, h, 0), stride_, count, last, across_.data());
    kernels_.add_rows(across_.data(), count, last, count, q, p_.d, p_.d, dk.data() + kv * keys_ * p_.d, p_.d);
    exact::turn_rows(at(composed_, h, 0), stride_, count, last, across_.data());
    kernels_.add_rows(across_.data(), count, last, count, d, p_.dv, p_.dv, dv.data() + kv * keys_ * p_.dv, p_.dv);
  }

  static constexpr float kHidden = -std::numeric_limits<float>::infinity();

  const exact::Problem& p_;
  const DcmhaIn& in_;
  const View& d_out_view_;
  const DcmhaGrad& to_;
  const Maps& maps_;
  const std::vector<Head>& heads_;
  int64_t keys_, stride_, head_stride_;
  Isa isa_;
  const DenseKernels& kernels_;
  std::vector<float> scores_, weights_, composed_, slopes_;  // [Hq, kRows, Tk]
  std::vector<float> scratch_, q_, dq_, d_out_, across_;
};

// f(gradient of a factor that belongs to queries, or keys; whether to queries).
template <class F>
void each_factor(const Compose& to, F f) {
  for (const View* of_queries : {&to.q1, &to.q2, &to.qd}) f(*of_queries, true);
  for (const View* of_keys : {&to.k1, &to.k2, &to.kd}) f(*of_keys, false);
}

void clear(const Compose& to) {
  each_factor(to, [](const View& x, bool) {
    for (int64_t b = 0; x.data && b < x.shape[0]; ++b)
      for (int64_t t = 0; t < x.shape[1]; ++t) {
        if (x.rank == 3) std::fill_n(x.at<float>({b, t}), x.shape[2], 0.0f);
        for (int64_t r = 0; x.rank == 4 && r < x.shape[2]; ++r) std::fill_n(x.at<float>({b, t, r}), x.shape[3], 0.0f);
      }
  });
  for (int64_t g = 0; to.w.data && g < to.w.shape[0]; ++g) std::fill_n(to.w.at<float>({g}), to.w.shape[1], 0.0f);
}

// A slice's sums join the gradients of what belongs to keys, and of w.
void add_sums(const MapSums& sums, const Compose& to, int64_t b, int64_t ranks, int64_t heads, int64_t keys,
              int64_t stride) {
  auto sum = [&](int64_t row, int64_t h, int64_t j) {
    return sums.keys[static_cast<size_t>((row * heads + h) * stride + j)];
  };
  for (int64_t j = 0; j < keys; ++j)
    for (int64_t h = 0; h < heads; ++h) {
      if (to.kd.data) to.kd.at<float>({b, j})[h] += sum(2 * ranks, h, j);
      for (int64_t r = 0; r < ranks; ++r) {
        if (to.k1.data) to.k1.at<float>({b, j, r})[h] += sum(r, h, j);
        if (to.k2.data) to.k2.at<float>({b, j, r})[h] += sum(ranks + r, h, j);
      }
    }
  for (int64_t g = 0; to.w.data && g < heads; ++g)
    for (int64_t h = 0; h < heads; ++h) to.w.at<float>({g})[h] += sums.w[static_cast<size_t>(g * heads + h)];
}

void check_gradients(const DcmhaIn& in, const exact::Problem& p, const View& grad_out, const DcmhaGrad& to) {
  std::vector<exact::ParameterGradient> parameters;
  std::vector<std::string> names;
  names.reserve(14);
  for (const auto& [side, factors, gradients] : {std::tuple{"pre", &in.pre, &to.pre}, {"post", &in.post, &to.post}})
    for (const auto& [part, view] : {std::pair{"q1", &Compose::q1},
                                     {"q2", &Compose::q2},
                                     {"qd", &Compose::qd},
                                     {"k1", &Compose::k1},
                                     {"k2", &Compose::k2},
                                     {"kd", &Compose::kd},
                                     {"w", &Compose::w}}) {
      names.push_back(std::string(side) + "_" + part);
      parameters.push_back({names.back(), gradients->*view, factors->*view});
    }
  exact::check_row_gradients(kOp, p, in.attention, {grad_out}, {to.q, to.k, to.v}, parameters);
}

}  // namespace

void dcmha_attention_backward(const DcmhaIn& in, const DcmhaOptions& options, const View& grad_out,
                              const DcmhaGrad& grad_in, Context& context) {
  const exact::Problem p = exact::check_dcmha(in, options);
  check_gradients(in, p, grad_out, grad_in);
  context.throw_if_stopped();
  for (const View* grad : {&grad_in.q, &grad_in.k, &grad_in.v}) exact::clear_rows(*grad);
  clear(grad_in.pre);
  clear(grad_in.post);
  if (p.batch == 0 || p.heads == 0 || p.queries == 0) return;

  const Isa isa = active_isa(context);
  const DenseKernels& kernels = dense_kernels(isa);
  const int64_t keys = in.attention.k.shape[2], stride = exact::padded_keys(keys);
  const Turned pre_turned(in.pre, p.heads), post_turned(in.post, p.heads);
  Maps maps(in, pre_turned, post_turned, p.heads, keys, p.batch);
  std::vector<Head> heads(p.keys.size());
  for (size_t h = 0; h < heads.size(); ++h) {
    heads[h].packed.reserve(p.keys[h].count(), p.d, p.dv, true);
    heads[h].value_panels = floats(exact::padded_keys(p.keys[h].count()) * p.dv);
  }
  parallel_for(context.threads, p.batch * p.kv_heads, [&](int64_t task, int) {
    Head& head = heads[static_cast<size_t>(task)];
    head.packed.load(kernels, p.keys[static_cast<size_t>(task)], 0);
    for (int64_t j = 0; j < head.packed.count(); j += kPanelKeys)
      kernels.pack(DType::kF32, head.packed.values() + j * p.dv, p.dv,
                   std::min<int64_t>(kPanelKeys, head.packed.count() - j), p.dv, head.value_panels.data() + j * p.dv);
  });
  parallel_for(context.threads, p.batch, [&](int64_t b, int) { maps.turn(b); });

  const int64_t at_once = std::min(p.batch, kSlices), cuts = kSlices / at_once,
                rows = (p.queries + cuts * kRows - 1) / (cuts * kRows) * kRows;
  for (int64_t first = 0; first < p.batch; first += at_once) {
    const int64_t count = std::min(at_once, p.batch - first);
    std::vector<std::unique_ptr<Slice>> slices(static_cast<size_t>(count * cuts));
    parallel_for(context.threads, count * cuts, [&](int64_t task, int) {
      auto& slice = slices[static_cast<size_t>(task)];
      slice = std::make_unique<Slice>(p, in, grad_out, grad_in, maps, heads, keys, isa);
      slice->run(first + task / cuts, task % cuts * rows, std::min(p.queries, (task % cuts + 1) * rows), context);
    });
    context.throw_if_stopped();
    for (int64_t task = 0; task < count * cuts; ++task) {
      const Slice& slice = *slices[static_cast<size_t>(task)];
      const int64_t b = first + task / cuts;
      add_sums(slice.pre, grad_in.pre, b, in.pre.q1.shape[2], p.heads, keys, stride);
      add_sums(slice.post, grad_in.post, b, in.post.q1.shape[2], p.heads, keys, stride);
      auto add = [&](const std::vector<float>& from, View to) {
        if (!to.data) return;
        to.data = to.at<float>({b});
        to.shape[0] = 1;
        exact::add_rows(dense_view(const_cast<float*>(from.data()), DType::kF32, 4, to.shape), to);
      };
      add(slice.dk, grad_in.k);
      add(slice.dv, grad_in.v);
    }
  }
}

}  // namespace attend
