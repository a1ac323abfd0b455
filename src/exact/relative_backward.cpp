// Gradients of relative attention, a block of rows at a time: scores and gradients of scores meet the tables as sums by
// distance, which are products of matrices.
#include <vector>

#include "attend/exact/relative.h"
#include "attend/simd/isa.h"
#include "exact/distance_sums.h"
#include "exact/parameter.h"
#include "exact/relative_check.h"
#include "exact/row_backward.h"
#include "exact/score_gradients.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "relative";

std::vector<float> floats(int64_t n) {
  return std::vector<float>(static_cast<size_t>(n), 0.0f);
}

// Of one thread: by row and table row from the block's first panel on.
struct Numbers {
  std::vector<float> by_key, by_value, scores, weights, q, across;
};

class Backward {
 public:
  Backward(const exact::Problem& p, const Qkv& in, const RelativeTables& tables, const RelativeOptions& options,
           const AttnOutGrad& grad_out, const RelativeGrad& grad_in, Context& context)
      : p_(p),
        in_(in),
        tables_(tables),
        d_lse_(grad_out.lse),
        grad_(grad_in),
        isa_(active_isa(context)),
        kernels_(dense_kernels(isa_)),
        rows_(tables.keys.shape[1]),
        table_{rows_, options.past ? rows_ - 1 : (rows_ - 1) / 2},
        keys_(in.k.shape[2]) {
    pack(tables.keys, p.d, key_rows_, key_panels_);
    if (tables.values.data) pack(tables.values, p.dv, value_rows_, value_panels_);
    const int64_t heads = p.heads;
    if (grad_.relative_keys.data) d_keys_ = floats(heads * rows_ * p.d);
    if (grad_.relative_values.data) d_values_ = floats(heads * rows_ * p.dv);
    if (grad_.content_bias.data) d_content_ = floats(heads * p.d);
    if (grad_.position_bias.data) d_position_ = floats(heads * p.d);
    if (grad_.distance_bias.data) d_bias_.assign(static_cast<size_t>(heads * rows_), 0);
    const int64_t count = exact::rows_of_block(p, keys_);
    int64_t width = 0;
    for (int64_t b = 0; b < p.batch && keys_ > 0; ++b)
      for (int64_t first = 0; first < p.queries; first += count)
        width = std::max(width, panels_of(b, first, std::min(count, p.queries - first)).count() * kPanelKeys);
    scratch_.resize(static_cast<size_t>(context.threads));
    for (Numbers& s : scratch_) {
      for (std::vector<float>* x : {&s.by_key, &s.by_value, &s.scores, &s.weights, &s.across})
        *x = floats(count * width);
      s.q = floats(count * p.d);
    }
  }

  bool in_turn() const {
    return !d_keys_.empty() || !d_values_.empty() || !d_content_.empty() || !d_position_.empty() || !d_bias_.empty();
  }

  void operator()(const exact::RowBlock& x) const {
    if (keys_ == 0) return;
    Numbers& w = scratch_[static_cast<size_t>(x.worker)];
    const exact::TableReach panels = panels_of(x.b, x.first, x.count);
    const int64_t base = panels.first * kPanelKeys, stride = panels.count() * kPanelKeys;
    for (int64_t r = 0; r < x.count; ++r)
      for (int64_t c = 0; c < p_.d; ++c)
        w.q[static_cast<size_t>(r * p_.d + c)] =
            p_.scale * (*in_.q.at<float>({x.b, x.h, x.first + r, c}) +
                        (tables_.position.data ? *tables_.position.at<float>({x.h, c}) : 0));
    const int64_t key_head = tables_.keys.shape[0] == 1 ? 0 : x.h;
    const int64_t value_head = tables_.values.data && tables_.values.shape[0] > 1 ? x.h : 0;
    for (int64_t panel = panels.first; panel <= panels.last; ++panel) {
      const int64_t to = (panel - panels.first) * kPanelKeys;
      kernels_.dots(w.q.data(), p_.d, x.count, p_.d,
                    key_panels_.data() + (key_head * padded() + panel * kPanelKeys) * p_.d, w.by_key.data() + to,
                    stride);
      if (tables_.values.data)
        kernels_.dots(x.d_out, p_.dv, x.count, p_.dv,
                      value_panels_.data() + (value_head * padded() + panel * kPanelKeys) * p_.dv,
                      w.by_value.data() + to, stride);
    }
    const int64_t used = std::min(rows_ - base, stride);  // columns that are rows of the table
    add_bias(x, base, stride, used, w.by_key);
    std::fill_n(w.scores.begin(), x.count * stride, 0.0f);
    std::fill_n(w.weights.begin(), x.count * stride, 0.0f);
    for (int64_t r = 0; r < x.count; ++r) row(x, r, base, stride, w);
    kernels_.add_rows(w.scores.data(), stride, x.count, used, key_rows_.data() + (key_head * rows_ + base) * p_.d, p_.d,
                      p_.d, x.dq, p_.d);
    sums(x, base, stride, used, w);
  }

  void store() const {
    exact::store_by_head(grad_.relative_keys, d_keys_, p_.heads);
    exact::store_by_head(grad_.relative_values, d_values_, p_.heads);
    exact::store_by_head(grad_.content_bias, d_content_, p_.heads);
    exact::store_by_head(grad_.position_bias, d_position_, p_.heads);
    exact::store_by_head(grad_.distance_bias, d_bias_, p_.heads);
  }

 private:
  int64_t padded() const { return exact::padded_keys(rows_); }

  void pack(const View& table, int64_t width, std::vector<float>& rows, std::vector<float>& panels) const {
    const int64_t heads = table.shape[0];
    rows = floats(heads * rows_ * width);
    panels = floats(heads * padded() * width);
    for (int64_t h = 0; h < heads; ++h) {
      float* own = rows.data() + h * rows_ * width;
      for (int64_t r = 0; r < rows_; ++r) std::copy_n(table.at<float>({h, r}), width, own + r * width);
      for (int64_t r = 0; r < rows_; r += kPanelKeys)
        kernels_.pack(DType::kF32, own + r * width, width, std::min<int64_t>(kPanelKeys, rows_ - r), width,
                      panels.data() + (h * padded() + r) * width);
    }
  }

  // Panels of the table that a block of rows meets.
  exact::TableReach panels_of(int64_t b, int64_t first, int64_t count) const {
    exact::TableReach panels{rows_, 0};
    for (int64_t i = first; i < first + count; ++i) {
      const exact::TableReach own = exact::reach_of(table_, p_.position(b, i), keys_);
      panels = {std::min(panels.first, own.first), std::max(panels.last, own.last)};
    }
    return {panels.first / kPanelKeys, panels.last / kPanelKeys};
  }

  void add_bias(const exact::RowBlock& x, int64_t base, int64_t stride, int64_t used, std::vector<float>& to) const {
    if (!tables_.bias.data) return;
    const float* bias = tables_.bias.at<float>({tables_.bias.shape[0] == 1 ? 0 : x.h, base});
    for (int64_t r = 0; r < x.count; ++r)
      for (int64_t c = 0; c < used; ++c) to[static_cast<size_t>(r * stride + c)] += p_.scale * bias[c];
  }

  void row(const exact::RowBlock& x, int64_t r, int64_t base, int64_t stride, Numbers& w) const {
    const int64_t n = x.ends[r], position = p_.position(x.b, x.first + r);
    if (n == 0) return;
    float *s = x.s + r * x.stride, *g = x.g + r * x.stride;
    exact::run_under(isa_, exact::SpreadDistances<true>{table_, position, n, base, w.by_key.data() + r * stride, s});
    if (tables_.values.data)
      exact::run_under(isa_,
                       exact::SpreadDistances<true>{table_, position, n, base, w.by_value.data() + r * stride, g});
    const float d_lse = d_lse_.data ? *d_lse_.at<float>({x.b, x.h, x.first + r}) : 0;
    exact::run_under(isa_, exact::SoftmaxSlopes{kernels_, s, g, n, d_lse});
    exact::run_under(isa_, exact::SumDistances{table_, position, n, base, g, w.scores.data() + r * stride});
    if (!d_values_.empty())
      exact::run_under(isa_, exact::SumDistances{table_, position, n, base, s, w.weights.data() + r * stride});
  }

  // Adds the block's part of the tables' gradients.
  void sums(const exact::RowBlock& x, int64_t base, int64_t stride, int64_t used, Numbers& w) const {
    if (!d_keys_.empty()) {
      exact::turn_rows(w.scores.data(), stride, x.count, used, w.across.data());
      kernels_.add_rows(w.across.data(), x.count, used, x.count, w.q.data(), p_.d, p_.d,
                        d_keys_.data() + (x.h * rows_ + base) * p_.d, p_.d);
    }
    if (!d_values_.empty()) {
      exact::turn_rows(w.weights.data(), stride, x.count, used, w.across.data());
      kernels_.add_rows(w.across.data(), x.count, used, x.count, x.d_out, p_.dv, p_.dv,
                        d_values_.data() + (x.h * rows_ + base) * p_.dv, p_.dv);
    }
    for (int64_t r = 0; r < x.count; ++r) {
      for (int64_t c = 0; c < p_.d && !d_position_.empty(); ++c)
        d_position_[static_cast<size_t>(x.h * p_.d + c)] += p_.scale * x.dq[r * p_.d + c];
      for (int64_t c = 0; c < used && !d_bias_.empty(); ++c)
        d_bias_[static_cast<size_t>(x.h * rows_ + base + c)] +=
            static_cast<double>(p_.scale) * static_cast<double>(w.scores[static_cast<size_t>(r * stride + c)]);
      if (!d_content_.empty()) {
        float* key_sums = w.q.data();  // no longer needed
        std::fill_n(key_sums, p_.d, 0.0f);
        kernels_.add_rows(x.g + r * x.stride, x.stride, 1, x.ends[r], x.head.keys(), p_.d, p_.d, key_sums, p_.d);
        for (int64_t c = 0; c < p_.d; ++c) d_content_[static_cast<size_t>(x.h * p_.d + c)] += p_.scale * key_sums[c];
      }
    }
  }

  const exact::Problem& p_;
  const Qkv& in_;
  const RelativeTables& tables_;
  const View& d_lse_;
  const RelativeGrad& grad_;
  Isa isa_;
  const DenseKernels& kernels_;
  int64_t rows_;
  exact::DistanceRows table_;
  int64_t keys_;
  std::vector<float> key_rows_, key_panels_, value_rows_, value_panels_;  // dense, and in panels of 64 rows
  // By query head, whose kv head one thread has at a time.
  mutable std::vector<float> d_keys_, d_values_, d_content_, d_position_;
  mutable std::vector<double> d_bias_;
  mutable std::vector<Numbers> scratch_;
};

}  // namespace

void relative_attention_backward(const Qkv& in, const RelativeTables& tables, const RelativeOptions& options,
                                 const AttnOutGrad& grad_out, const RelativeGrad& grad_in, Context& context) {
  exact::Problem p = exact::check_relative(in, tables, options, {});
  exact::check_row_gradients(kOp, p, in, grad_out, {grad_in.q, grad_in.k, grad_in.v},
                             {{"relative_keys", grad_in.relative_keys, tables.keys},
                              {"relative_values", grad_in.relative_values, tables.values},
                              {"content_bias", grad_in.content_bias, tables.content},
                              {"position_bias", grad_in.position_bias, tables.position},
                              {"distance_bias", grad_in.distance_bias, tables.bias}});
  Buffer shifted;
  if (tables.content.data) {
    shifted = Buffer(std::max<int64_t>(1, in.q.count()) * 4);
    p.q = dense_view(shifted.as<float>(), DType::kF32, 4, in.q.shape);
    for (int64_t b = 0; b < p.batch; ++b)
      for (int64_t h = 0; h < p.heads; ++h)
        for (int64_t i = 0; i < p.queries; ++i)
          for (int64_t c = 0; c < p.d; ++c)
            *p.q.at<float>({b, h, i, c}) = *in.q.at<float>({b, h, i, c}) + *tables.content.at<float>({h, c});
  }
  const Backward backward(p, in, tables, options, grad_out, grad_in, context);
  exact::backward_rows(p, {grad_out.out, grad_out.lse, grad_in.q, grad_in.k, grad_in.v}, in.k.shape[2],
                       backward.in_turn(), context, backward);
  backward.store();
}

}  // namespace attend
