#include "attend/exact/attendre.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attend/tensor/bound.h"
#include "attend/tensor/error.h"
#include "exact/plain.h"
#include "exact/row_backward.h"
#include "exact/score_gradients.h"
#include "exact/slot_loops.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "attendre";
constexpr int64_t kRows = 32;  // queries whose scores are in memory at a time

// What a stream is to find the gradients of, and where to write them.
struct StreamGradients {
  AttnOutGrad from;
  AttnGrad to;
};

// The stream of one kv head. Everything it needs was allocated before, so that it may run in a parallel loop.
class Stream {
 public:
  Stream(const exact::Problem& p, const AttendreOptions& o, const StreamGradients* gradients, Isa isa)
      : p_(p),
        o_(o),
        gradients_(gradients),
        kernels_(dense_kernels(isa)),
        loops_(isa == Isa::kAvx2 ? exact::kSlotLoops_avx2 : exact::kSlotLoops_avx512),
        scale_(o.scale == 0 ? 1 / std::sqrt(static_cast<double>(p.d)) : o.scale),
        capacity_(o.memory == 0 ? p.queries : std::min(p.queries, std::max(o.memory, o.chunk))),
        stride_(exact::padded_keys(capacity_)),
        decides_(o.eviction != Eviction::kFifo && capacity_ < p.queries),
        token_(static_cast<size_t>(stride_)),
        last_(token_.size()),
        times_(token_.size()),
        order_(token_.size()),
        exact_(token_.size()),
        ranks_(token_.size()) {
    const int64_t pulled = gradients ? stride_ : 0;
    const int64_t sizes[] = {stride_ * p.d,   stride_ * p.dv, p.d,           kRows * p.d,
                             kRows * stride_, kRows * p.dv,   kRows,         pulled * p.d,
                             pulled * p.dv,   pulled * p.d,   pulled * p.dv, kRows * pulled,
                             kRows * pulled,  kRows * p.dv,   kRows * p.d};
    int64_t total = 0;
    for (int64_t size : sizes) total += (size + 15) / 16 * 16;
    memory_ = Buffer(total * static_cast<int64_t>(sizeof(float)));
    float* next = memory_.as<float>();
    float** const parts[] = {&panels_,       &values_, &key_, &q_, &s_,      &o_rows_, &sums_, &keys_,
                             &value_panels_, &dk_,     &dv_,  &g_, &across_, &d_out_,  &dq_};
    for (size_t i = 0; i < std::size(sizes); ++i) {
      *parts[i] = next;
      next += (sizes[i] + 15) / 16 * 16;
    }
  }

  void run(int64_t b, int64_t kv, const AttnOut& out, const std::stop_token& stop) {
    std::fill(token_.begin(), token_.end(), -1);
    std::fill_n(panels_, stride_ * p_.d, 0.0f);
    used_ = 0;
    longest_key_ = 0;
    int64_t next_query = 0, come = 0;
    for (int64_t step = 0; come < p_.queries && !stop.stop_requested(); ++step) {
      const int64_t before = come;
      come = std::min(p_.queries, come + o_.chunk);
      make_room(b, kv, before, come - before);
      insert(b, kv, before, come, step);
      const int64_t served = come == p_.queries ? come : std::max(next_query, come - o_.delay);
      for (int64_t h = kv * p_.group; h < (kv + 1) * p_.group; ++h)
        for (int64_t i = next_query; i < served; i += kRows) attend(b, h, i, std::min(kRows, served - i), step, out);
      next_query = served;
    }
    for (int64_t slot = 0; gradients_ && slot < used_; ++slot)
      if (token_[static_cast<size_t>(slot)] >= 0) store(b, kv, slot);
  }

 private:
  // Keys leave until `count` more fit; all there are came before token `before`.
  void make_room(int64_t b, int64_t kv, int64_t before, int64_t count) {
    const int64_t leaving = std::min(before, used_) + count - capacity_;
    if (leaving <= 0) return;
    order_.clear();
    for (int64_t slot = 0; slot < used_; ++slot)
      if (token_[static_cast<size_t>(slot)] >= 0) order_.push_back(slot);
    const auto earlier = [&](int64_t one, int64_t other) {
      const size_t x = static_cast<size_t>(one), y = static_cast<size_t>(other);
      if (o_.eviction == Eviction::kLra && last_[x] != last_[y]) return last_[x] < last_[y];
      if (o_.eviction == Eviction::kLfa && times_[x] != times_[y]) return times_[x] < times_[y];
      return token_[x] < token_[y];
    };
    std::nth_element(order_.begin(), order_.begin() + (leaving - 1), order_.end(), earlier);
    for (int64_t n = 0; n < leaving; ++n) {
      const int64_t slot = order_[static_cast<size_t>(n)];
      if (gradients_) store(b, kv, slot);
      token_[static_cast<size_t>(slot)] = -1;
    }
  }

  void insert(int64_t b, int64_t kv, int64_t from, int64_t end, int64_t step) {
    const exact::Keys& keys = p_.keys[static_cast<size_t>(b * p_.kv_heads + kv)];
    int64_t slot = 0;
    for (const KeyRun& run : keys.runs(from, end))
      for (int64_t j = std::max(from, run.first_slot); j < std::min(end, run.first_slot + run.count); ++j, ++slot) {
        while (token_[static_cast<size_t>(slot)] >= 0) ++slot;
        const int64_t row = j - run.first_slot;
        kernels_.widen_run(run.keys().from(row), 1, p_.d, key_, 0);
        kernels_.widen_run(run.values().from(row), 1, p_.dv, values_ + slot * p_.dv, 0);
        float* panel = column(panels_, slot, p_.d);
        if (gradients_) {
          std::copy_n(key_, p_.d, keys_ + slot * p_.d);
          float* values = column(value_panels_, slot, p_.dv);
          for (int64_t c = 0; c < p_.dv; ++c) values[c * kPanelKeys] = values_[slot * p_.dv + c];
          std::fill_n(dk_ + slot * p_.d, p_.d, 0.0f);
          std::fill_n(dv_ + slot * p_.dv, p_.dv, 0.0f);
        }
        double square = 0;
        for (int64_t c = 0; c < p_.d; ++c) {
          panel[c * kPanelKeys] = key_[c];
          square += static_cast<double>(key_[c]) * static_cast<double>(key_[c]);
        }
        if (square > longest_key_ * longest_key_) longest_key_ = std::sqrt(square);
        token_[static_cast<size_t>(slot)] = static_cast<int32_t>(j);
        last_[static_cast<size_t>(slot)] = static_cast<int32_t>(step);
        times_[static_cast<size_t>(slot)] = 0;
        used_ = std::max(used_, slot + 1);
      }
  }

  static float* column(float* panels, int64_t slot, int64_t width) {
    return panels + slot / kPanelKeys * kPanelKeys * width + slot % kPanelKeys;
  }

  // Rows [first, first + count) of query head h.
  void attend(int64_t b, int64_t h, int64_t first, int64_t count, int64_t step, const AttnOut& out) {
    for (int64_t r = 0; r < count; ++r) {
      const float* q = p_.q.at<float>({b, h, first + r});
      for (int64_t c = 0; c < p_.d; ++c) q_[r * p_.d + c] = q[c] * p_.scale;
    }
    for (int64_t panel = 0; panel < exact::panel_count(used_); ++panel)
      kernels_.dots(q_, p_.d, count, p_.d, panels_ + panel * kPanelKeys * p_.d, s_ + panel * kPanelKeys, stride_);
    for (int64_t r = 0; r < count; ++r) {
      float* s = s_ + r * stride_;
      const float* q = p_.q.at<float>({b, h, first + r});
      const int64_t newest = o_.causal ? first + r : p_.queries - 1;
      int64_t seen = loops_.hide(token_.data(), used_, static_cast<int32_t>(newest), s);
      const double error = decides_ || (o_.top > 0 && o_.top < seen) ? score_error(q) : 0;
      if (o_.top > 0 && o_.top < seen) {
        keep_top(q, s, error);
        seen = o_.top;
      }
      float largest = exact::kHiddenSlot;
      sums_[r] = seen > 0 ? kernels_.exponentials(s, used_, &largest) : 0.0f;
      if (seen == 0) std::fill_n(s, used_, 0.0f);
      if (decides_ && seen > 0) note_attended(q, s, sums_[r], seen, error, step);
      if (out.lse.data)
        *out.lse.at<float>({b, h, first + r}) = seen > 0 ? largest + std::log(sums_[r]) : exact::kHiddenSlot;
    }
    if (gradients_) pull(b, h, first, count);
    if (!out.out.data) return;
    std::fill_n(o_rows_, count * p_.dv, 0.0f);
    kernels_.add_rows(s_, stride_, count, used_, values_, p_.dv, p_.dv, o_rows_, p_.dv);
    for (int64_t r = 0; r < count; ++r) {
      float* to = out.out.at<float>({b, h, first + r});
      for (int64_t c = 0; c < p_.dv; ++c) to[c] = sums_[r] == 0 ? 0.0f : o_rows_[r * p_.dv + c] / sums_[r];
    }
  }

  // Gradients of these rows, whose weights are not yet divided by their sums.
  void pull(int64_t b, int64_t h, int64_t first, int64_t count) {
    const AttnOutGrad& from = gradients_->from;
    std::fill_n(d_out_, count * p_.dv, 0.0f);
    for (int64_t r = 0; from.out.data && r < count; ++r)
      std::copy_n(from.out.at<float>({b, h, first + r}), p_.dv, d_out_ + r * p_.dv);
    for (int64_t panel = 0; panel < exact::panel_count(used_); ++panel)
      kernels_.dots(d_out_, p_.dv, count, p_.dv, value_panels_ + panel * kPanelKeys * p_.dv, g_ + panel * kPanelKeys,
                    stride_);
    for (int64_t r = 0; r < count; ++r)
      loops_.slopes(s_ + r * stride_, g_ + r * stride_, used_, sums_[r] == 0 ? 0.0f : 1 / sums_[r],
                    from.lse.data ? *from.lse.at<float>({b, h, first + r}) : 0.0f);
    exact::turn_rows(s_, stride_, count, used_, across_);
    kernels_.add_rows(across_, count, used_, count, d_out_, p_.dv, p_.dv, dv_, p_.dv);
    exact::turn_rows(g_, stride_, count, used_, across_);
    kernels_.add_rows(across_, count, used_, count, q_, p_.d, p_.d, dk_, p_.d);
    if (!gradients_->to.q.data) return;
    std::fill_n(dq_, count * p_.d, 0.0f);
    kernels_.add_rows(g_, stride_, count, used_, keys_, p_.d, p_.d, dq_, p_.d);
    for (int64_t r = 0; r < count; ++r) {
      float* to = gradients_->to.q.at<float>({b, h, first + r});
      for (int64_t c = 0; c < p_.d; ++c) to[c] = p_.scale * dq_[r * p_.d + c];
    }
  }

  // What a key and its value have gathered: all that they will.
  void store(int64_t b, int64_t kv, int64_t slot) const {
    const int64_t j = token_[static_cast<size_t>(slot)];
    const AttnGrad& to = gradients_->to;
    if (to.k.data) std::copy_n(dk_ + slot * p_.d, p_.d, to.k.at<float>({b, kv, j}));
    if (to.v.data) std::copy_n(dv_ + slot * p_.dv, p_.dv, to.v.at<float>({b, kv, j}));
  }

  // |s - scale * q . k| of any key.
  double score_error(const float* q) const {
    double square = 0;
    for (int64_t c = 0; c < p_.d; ++c) square += static_cast<double>(q[c]) * static_cast<double>(q[c]);
    return bound::softmax_score({.keys = used_,
                                 .d = p_.d,
                                 .query = std::sqrt(square),
                                 .key = longest_key_,
                                 .value = 0,
                                 .scale = std::abs(scale_)});
  }

  // Hides all but the `top` largest of more scores than that; one that is no number counts as large.
  void keep_top(const float* q, float* s, double error) {
    ranks_.clear();
    order_.clear();
    for (int64_t slot = 0; slot < used_; ++slot)
      if (s[slot] != exact::kHiddenSlot)
        ranks_.push_back(std::isnan(s[slot]) ? -exact::kHiddenSlot : s[slot]), order_.push_back(slot);
    if (static_cast<int64_t>(ranks_.size()) <= o_.top) return;  // others are -inf
    const auto last = ranks_.begin() + (o_.top - 1);
    std::nth_element(ranks_.begin(), last, ranks_.end(), std::greater<>());
    const float least = *last, next = *std::max_element(last + 1, ranks_.end());
    if (static_cast<double>(least) - static_cast<double>(next) > 2 * error) {
      for (int64_t slot = 0; slot < used_; ++slot)
        if (s[slot] < least) s[slot] = exact::kHiddenSlot;
      return;
    }
    loops_.dots(q, p_.d, panels_, used_, scale_, exact_.data());
    std::nth_element(order_.begin(), order_.begin() + (o_.top - 1), order_.end(), [&](int64_t a, int64_t b) {
      const double x = exact_[static_cast<size_t>(a)], y = exact_[static_cast<size_t>(b)];
      if (std::isnan(x) != std::isnan(y)) return std::isnan(x);
      if (x > y || x < y) return x > y;
      return token_[static_cast<size_t>(a)] < token_[static_cast<size_t>(b)];
    });
    for (size_t n = static_cast<size_t>(o_.top); n < order_.size(); ++n) s[order_[n]] = exact::kHiddenSlot;
  }

  // Keys that got more than the mean weight. `w` are the weights of `seen` keys before they are divided by their sum.
  void note_attended(const float* q, const float* w, float sum, int64_t seen, double error, int64_t step) {
    const double mean = static_cast<double>(sum) / static_cast<double>(seen);
    // Of a weight and of the sum: their scores' errors, those of exp, and the sum's roundings.
    const double relative =
        2 * (std::expm1(2 * error) + 6 * bound::kEpsilon) + bound::gamma(used_ / 16 + 20) + 4 * bound::kEpsilon;
    const float low = static_cast<float>(mean * (1 - relative) * (1 - 2 * bound::kEpsilon));
    const float high = static_cast<float>(mean * (1 + relative) * (1 + 2 * bound::kEpsilon));
    if (!loops_.any_between(w, used_, low, high)) {
      loops_.note(w, used_, high, static_cast<int32_t>(step), last_.data(), times_.data());
      return;
    }
    // What is hidden weighs 0; so does what is too light to matter.
    loops_.dots(q, p_.d, panels_, used_, scale_, exact_.data());
    double largest = -std::numeric_limits<double>::infinity(), total = 0;
    for (int64_t slot = 0; slot < used_; ++slot)
      if (w[slot] != 0) largest = std::max(largest, exact_[static_cast<size_t>(slot)]);
    for (int64_t slot = 0; slot < used_; ++slot) {
      double& x = exact_[static_cast<size_t>(slot)];
      total += x = w[slot] == 0 ? 0 : std::exp(x - largest);
    }
    for (int64_t slot = 0; slot < used_; ++slot)
      if (exact_[static_cast<size_t>(slot)] * static_cast<double>(seen) > total) {
        last_[static_cast<size_t>(slot)] = static_cast<int32_t>(step);
        ++times_[static_cast<size_t>(slot)];
      }
  }

  const exact::Problem& p_;
  const AttendreOptions& o_;
  const StreamGradients* gradients_;  // null forward
  const DenseKernels& kernels_;
  const exact::SlotLoops& loops_;
  double scale_;
  int64_t capacity_, stride_;          // slots; of the rows of scores
  bool decides_;                       // whether it matters what was attended to
  std::vector<int32_t> token_;         // of a slot; -1: free
  std::vector<int32_t> last_, times_;  // step, and how often, it was attended to
  std::vector<int64_t> order_;         // scratch
  std::vector<double> exact_;          // scratch: scores of a row
  std::vector<float> ranks_;           // scratch
  int64_t used_ = 0;                   // slots up to the last that was ever taken
  double longest_key_ = 0;
  Buffer memory_;
  float *panels_, *values_, *key_, *q_, *s_, *o_rows_, *sums_;
  // Backward: by slot, then by row.
  float *keys_, *value_panels_, *dk_, *dv_, *g_, *across_, *d_out_, *dq_;
};

void check_options(const AttendreOptions& o) {
  auto require = [](std::string_view name, int64_t x, int64_t least) {
    if (x < least)
      throw Error(ErrorKind::kArgument, kOp, name, fmt::format("{}", x), fmt::format("must be at least {}", least));
  };
  require("chunk", o.chunk, 1);
  require("memory", o.memory, 0);
  require("delay", o.delay, 0);
  require("top", o.top, 0);
}

exact::Problem check(const Qkv& in, const AttendreOptions& options) {
  const exact::Problem p = exact::check(in, {.causal = options.causal, .scale = options.scale}, kOp);
  exact::require_plain(in, kOp);
  check_options(options);
  if (p.queries != in.k.shape[2])
    throw Error(ErrorKind::kArgument, kOp, "q", to_string(in.q),
                fmt::format("must have as many tokens as k, {}", in.k.shape[2]));
  return p;
}

void run_streams(const exact::Problem& p, const AttendreOptions& options, const StreamGradients* gradients,
                 const AttnOut& out, Context& context) {
  context.throw_if_stopped();
  if (p.batch == 0 || p.heads == 0 || p.queries == 0) return;
  const Isa isa = active_isa(context);
  const int64_t tasks = p.batch * p.kv_heads;
  std::vector<Stream> streams;
  for (int64_t t = 0; t < std::min<int64_t>(context.threads, tasks); ++t)
    streams.emplace_back(p, options, gradients, isa);
  parallel_for(static_cast<int>(streams.size()), tasks, [&](int64_t task, int worker) {
    streams[static_cast<size_t>(worker)].run(task / p.kv_heads, task % p.kv_heads, out, context.stop);
  });
  context.throw_if_stopped();
}

}  // namespace

void attendre_attention(const Qkv& in, const AttendreOptions& options, const AttnOut& out, Context& context) {
  const exact::Problem p = check(in, options);
  exact::check_outputs(p, in, out, kOp);
  run_streams(p, options, nullptr, out, context);
}

void attendre_attention_backward(const Qkv& in, const AttendreOptions& options, const AttnOutGrad& grad_out,
                                 const AttnGrad& grad_in, Context& context) {
  const exact::Problem p = check(in, options);
  exact::check_row_gradients(kOp, p, in, grad_out, grad_in, {});
  const StreamGradients gradients{grad_out, grad_in};
  run_streams(p, options, &gradients, {}, context);
}

}  // namespace attend
