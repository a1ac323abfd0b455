// Gradients of dcmha: a few queries of all heads at a time. What belongs to keys gathers from all queries, so queries are
// cut into slices, whose number does not depend on threads, with sums of their own.
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
constexpr int64_t kRows = exact::ComposedRows::kRows, kSlices = 8;

std::vector<float> floats(int64_t n) {
  return std::vector<float>(static_cast<size_t>(n), 0.0f);
}

// The map that takes gradients back: factors in and out change places.
Compose turned(const Compose& c) {
  Compose back{c.q2, c.q1, c.qd, c.k2, c.k1, c.kd, c.w};
  std::swap(back.w.stride[0], back.w.stride[1]);
  return back;
}

struct Side {
  exact::Composer map, back;
  const Compose& to;  // gradients of the factors
  bool wanted;        // any of them

  Side(const Compose& c, const Compose& gradients, int64_t heads, int64_t keys, int64_t batch)
      : map(c, heads, keys, batch), back(turned(c), heads, keys, batch), to(gradients) {
    const View* const all[] = {&to.q1, &to.q2, &to.qd, &to.k1, &to.k2, &to.kd, &to.w};
    wanted = std::any_of(std::begin(all), std::end(all), [](const View* x) { return x->data != nullptr; });
  }
};

// What a slice sums for one side: [2 R + 1, Hq, Tk] of k1, k2 and kd, and [Hq, Hq] of w.
struct MapSums {
  std::vector<float> keys, w;

  MapSums(const Side& side, int64_t heads, int64_t keys_stride) {
    if (side.wanted) keys = floats((2 * side.map.ranks() + 1) * heads * keys_stride), w = floats(heads * heads);
  }
};

// Gradients of a side's factors from what went in, x, and from the gradients of what came out, dy: of query i, whose own
// are written, and of the columns that it sees.
struct PullFactors {
  const Side& side;
  MapSums& sums;
  int64_t b, i, heads, stride, head_stride;
  KeyRange seen;
  const float *x, *dy;

  [[gnu::always_inline]] inline float* key_sum(int64_t row, int64_t h) const {
    return sums.keys.data() + (row * heads + h) * stride;
  }
  [[gnu::always_inline]] inline static void add(const View& to, std::initializer_list<int64_t> at, int64_t h, float d) {
    if (to.data) to.at<float>(at)[h] += d;
  }

  [[gnu::always_inline]] inline void run() const {
    const exact::Composer& composer = side.map;
    const Compose &c = composer.factors(), &to = side.to;
    const int64_t ranks = composer.ranks();
    for (int64_t first = seen.begin, end; first < seen.end; first = end) {
      end = std::min(seen.end, (first / kPanelKeys + 1) * kPanelKeys);
      const int64_t columns = end - first;
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

// All queries of one slice of a batch entry.
class Slice {
 public:
  Slice(const exact::Problem& p, const View& d_out, const DcmhaGrad& to, const Side& pre, const Side& post,
        const std::vector<exact::PackedHead>& heads, const std::vector<std::vector<float>>& value_panels, int64_t keys,
        Isa isa)
      : pre_sums(pre, p.heads, exact::padded_keys(keys)),
        post_sums(post, p.heads, exact::padded_keys(keys)),
        dk(to.k.data ? floats(p.kv_heads * keys * p.d) : std::vector<float>()),
        dv(to.v.data ? floats(p.kv_heads * keys * p.dv) : std::vector<float>()),
        p_(p),
        d_out_view_(d_out),
        to_(to),
        pre_(pre),
        post_(post),
        heads_(heads),
        value_panels_(value_panels),
        keys_(keys),
        isa_(isa),
        kernels_(dense_kernels(isa)),
        rows_(p, keys, isa) {}

  void run(int64_t b, int64_t begin, int64_t end, const Context& context) {
    for (std::vector<float>* x : {&scores_, &weights_, &composed_, &slopes_}) *x = floats(rows_.size());
    q_ = floats(p_.heads * kRows * p_.d), dq_ = floats(kRows * p_.d);
    d_out_ = floats(p_.heads * kRows * p_.dv), across_ = floats(rows_.head_stride());
    for (int64_t first = begin; first < end && !context.stop.stop_requested(); first += kRows) {
      const int64_t count = std::min(kRows, end - first);
      rows_.start(b, first, count);
      rows_.dots(
          p_.q, p_.scale, [&](int64_t h) { return heads_[head(b, h)].panel(0); }, q_.data(), scores_.data());
      rows_.dots(
          d_out_view_, 1, [&](int64_t h) { return value_panels_[head(b, h)].data(); }, d_out_.data(), slopes_.data());
      for (int64_t r = 0; r < count; ++r) row(b, first + r, r);
      for (int64_t h = 0; h < p_.heads; ++h) gather(b, h, first, count, rows_.last());
    }
  }

  MapSums pre_sums, post_sums;
  std::vector<float> dk, dv;  // [Hkv, Tk, D], [Hkv, Tk, Dv]; empty if nobody asks for them

 private:
  float* at(std::vector<float>& x, int64_t h, int64_t r) const { return rows_.at(x.data(), h, r); }
  size_t head(int64_t b, int64_t h) const { return static_cast<size_t>(b * p_.kv_heads + h / p_.group); }

  // Scores and gradients of weighted values to weights, composed, and gradients of scores.
  void row(int64_t b, int64_t i, int64_t r) {
    const KeyRange seen = rows_.seen(r);
    auto copy = [&](std::vector<float>& from, std::vector<float>& to) {
      for (int64_t h = 0; h < p_.heads; ++h)
        std::copy(at(from, h, r) + seen.begin, at(from, h, r) + seen.end, at(to, h, r) + seen.begin);
    };
    copy(scores_, weights_);
    rows_.weigh(pre_.map, r, weights_.data());
    if (to_.v.data) {
      copy(weights_, composed_);
      rows_.compose(post_.map, r, composed_.data());
      rows_.clear_hidden(r, composed_.data());
    }
    const bool to_scores = to_.q.data || to_.k.data || pre_.wanted;
    if (to_scores || post_.wanted) pull(post_, post_sums, b, i, r, weights_);
    if (!to_scores) return;
    for (int64_t h = 0; h < p_.heads; ++h)
      exact::run_under(
          isa_, PullSoftmax{at(weights_, h, r) + seen.begin, at(slopes_, h, r) + seen.begin, seen.end - seen.begin});
    pull(pre_, pre_sums, b, i, r, scores_);
    rows_.clear_hidden(r, slopes_.data());
  }

  // Gradients of what came out of a map, in slopes_, to those of its factors and of what went in.
  void pull(const Side& side, MapSums& sums, int64_t b, int64_t i, int64_t r, std::vector<float>& x) {
    if (side.wanted)
      exact::run_under(isa_, PullFactors{side, sums, b, i, p_.heads, rows_.stride(), rows_.head_stride(), rows_.seen(r),
                                         at(x, 0, r), at(slopes_, 0, r)});
    rows_.compose(side.back, r, slopes_.data());
  }

  void gather(int64_t b, int64_t h, int64_t first, int64_t count, int64_t last) {
    const int64_t kv = h / p_.group;
    const float *q = q_.data() + h * kRows * p_.d, *d = d_out_.data() + h * kRows * p_.dv;
    if (to_.q.data) {
      std::fill(dq_.begin(), dq_.end(), 0.0f);
      kernels_.add_rows(at(slopes_, h, 0), rows_.stride(), count, last, heads_[head(b, h)].keys(), p_.d, p_.d,
                        dq_.data(), p_.d);
      for (int64_t r = 0; r < count; ++r) {
        float* to = to_.q.at<float>({b, h, first + r});
        for (int64_t c = 0; c < p_.d; ++c) to[c] = p_.scale * dq_[static_cast<size_t>(r * p_.d + c)];
      }
    }
    if (to_.k.data) {
      exact::turn_rows(at(slopes_, h, 0), rows_.stride(), count, last, across_.data());
      kernels_.add_rows(across_.data(), count, last, count, q, p_.d, p_.d, dk.data() + kv * keys_ * p_.d, p_.d);
    }
    if (to_.v.data) {
      exact::turn_rows(at(composed_, h, 0), rows_.stride(), count, last, across_.data());
      kernels_.add_rows(across_.data(), count, last, count, d, p_.dv, p_.dv, dv.data() + kv * keys_ * p_.dv, p_.dv);
    }
  }

  const exact::Problem& p_;
  const View& d_out_view_;
  const DcmhaGrad& to_;
  const Side &pre_, &post_;
  const std::vector<exact::PackedHead>& heads_;
  const std::vector<std::vector<float>>& value_panels_;
  int64_t keys_;
  Isa isa_;
  const DenseKernels& kernels_;
  exact::ComposedRows rows_;
  std::vector<float> scores_, weights_, composed_, slopes_;  // [Hq, kRows, Tk]
  std::vector<float> q_, dq_, d_out_, across_;
};

void clear(const Compose& to) {
  for (const View* x : {&to.q1, &to.q2, &to.k1, &to.k2}) exact::clear_rows(*x);
  for (const View* x : {&to.qd, &to.kd})
    for (int64_t b = 0; x->data && b < x->shape[0]; ++b)
      for (int64_t t = 0; t < x->shape[1]; ++t) std::fill_n(x->at<float>({b, t}), x->shape[2], 0.0f);
  for (int64_t g = 0; to.w.data && g < to.w.shape[0]; ++g) std::fill_n(to.w.at<float>({g}), to.w.shape[1], 0.0f);
}

// A slice's sums join the gradients of what belongs to keys, and of w.
void add_sums(const MapSums& sums, const Side& side, int64_t b, int64_t heads, int64_t keys, int64_t stride) {
  if (!side.wanted) return;
  const Compose& to = side.to;
  const int64_t ranks = side.map.ranks();
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
  Side pre(in.pre, grad_in.pre, p.heads, keys, p.batch), post(in.post, grad_in.post, p.heads, keys, p.batch);
  const std::vector<exact::PackedHead> heads = exact::packed_heads(p, kernels, true, context);
  std::vector<std::vector<float>> value_panels;
  for (const exact::PackedHead& head : heads) value_panels.push_back(floats(exact::padded_keys(head.count()) * p.dv));
  parallel_for(context.threads, p.batch * p.kv_heads, [&](int64_t task, int) {
    const exact::PackedHead& head = heads[static_cast<size_t>(task)];
    float* const panels = value_panels[static_cast<size_t>(task)].data();
    for (int64_t j = 0; j < head.count(); j += kPanelKeys)
      kernels.pack(DType::kF32, head.values() + j * p.dv, p.dv, std::min<int64_t>(kPanelKeys, head.count() - j), p.dv,
                   panels + j * p.dv);
  });
  parallel_for(context.threads, p.batch, [&](int64_t b, int) {
    for (exact::Composer* map : {&pre.map, &pre.back, &post.map, &post.back}) map->turn(b);
  });

  const int64_t at_once = std::min(p.batch, kSlices), cuts = kSlices / at_once,
                rows = (p.queries + cuts * kRows - 1) / (cuts * kRows) * kRows;
  for (int64_t first = 0; first < p.batch; first += at_once) {
    const int64_t count = std::min(at_once, p.batch - first);
    std::vector<std::unique_ptr<Slice>> slices(static_cast<size_t>(count * cuts));
    parallel_for(context.threads, count * cuts, [&](int64_t task, int) {
      auto& slice = slices[static_cast<size_t>(task)];
      slice = std::make_unique<Slice>(p, grad_out, grad_in, pre, post, heads, value_panels, keys, isa);
      slice->run(first + task / cuts, task % cuts * rows, std::min(p.queries, (task % cuts + 1) * rows), context);
    });
    context.throw_if_stopped();
    for (int64_t task = 0; task < count * cuts; ++task) {
      const Slice& slice = *slices[static_cast<size_t>(task)];
      const int64_t b = first + task / cuts;
      add_sums(slice.pre_sums, pre, b, p.heads, keys, stride);
      add_sums(slice.post_sums, post, b, p.heads, keys, stride);
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
