// Gradients of hierarchical self-attention: against the forward pass's way down the tree first, from the tokens to the
// root, then against its way up, from the root to the tokens.
#include <algorithm>

#include "attend/exact/hsa.h"
#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "exact/dense_rows.h"
#include "exact/hsa_tree.h"
#include "exact/lane_sum.h"
#include "exact/row_backward.h"
#include "exact/score_gradients.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "hsa";

class Backward : public exact::HeadTree {
 public:
  Backward(const exact::Problem& p, const exact::Tree& tree, Isa isa)
      : HeadTree(p, tree, dense_kernels(isa)), isa_(isa) {
    const int64_t n = std::max<int64_t>(1, t_.nodes), padded = exact::padded_keys(t_.widest);
    const std::pair<float**, int64_t> parts[] = {{&dq_, n * p.d},
                                                 {&dk_, n * p.d},
                                                 {&dv_, n * p.dv},
                                                 {&du_, n * p.dv},
                                                 {&mass_, n},
                                                 {&dmass_, n},
                                                 {&dphi_, n},
                                                 {&g_, kRows * padded},
                                                 {&across_, kRows * padded},
                                                 {&value_panels_, padded * p.dv},
                                                 {&gdu_, t_.widest * p.dv},
                                                 {&gdq_, t_.widest * p.d},
                                                 {&gdk_, t_.widest * p.d},
                                                 {&gdv_, t_.widest * p.dv}};
    int64_t total = 0;
    for (const auto& part : parts) total += (part.second + 15) / 16 * 16;
    memory_ = Buffer(total * 4);
    float* next = memory_.as<float>();
    for (const auto& part : parts) {
      *part.first = next;
      next += (part.second + 15) / 16 * 16;
    }
  }

  // Gradients of a query head; those of keys and values join what is there.
  void run(int64_t b, int64_t h, const View& d_out, const AttnGrad& to) {
    ascend(b, h);
    const int64_t n = t_.nodes;
    for (const auto& [x, count] : {std::pair{dq_, n * p_.d}, {dk_, n * p_.d}, {dv_, n * p_.dv}, {dphi_, n}})
      std::fill_n(x, count, 0.0f);
    against_descent(b, h, d_out);
    for (int64_t node = n - 1; node >= t_.leaves; --node) against_ascent(node);
    const int64_t kv = h / p_.group;
    for (int64_t i = 0; i < t_.leaves; ++i) {
      if (to.q.data)
        for (int64_t c = 0; c < p_.d; ++c) to.q.at<float>({b, h, i})[c] = p_.scale * dq_[i * p_.d + c];
      if (to.k.data) join(dk_ + i * p_.d, p_.d, to.k.at<float>({b, kv, i}));
      if (to.v.data) join(dv_ + i * p_.dv, p_.dv, to.v.at<float>({b, kv, i}));
    }
  }

 private:
  static void join(const float* from, int64_t width, float* to) {
    for (int64_t c = 0; c < width; ++c) to[c] += from[c];
  }

  // mass: the weight that the tokens below a node have together. Leaves in du the gradients of what nodes take from
  // their siblings, and in dmass those of the shares that they keep.
  void against_descent(int64_t b, int64_t h, const View& d_out) {
    const int64_t root = t_.nodes - 1;
    mass_[root] = 1;
    for (int64_t n = root - 1; n >= 0; --n) mass_[n] = stay_[n] * mass_[t_.parent[static_cast<size_t>(n)]];
    std::fill_n(du_, t_.nodes * p_.dv, 0.0f);
    std::fill_n(dmass_, t_.nodes, 0.0f);
    for (int64_t i = 0; i < t_.leaves; ++i) {
      const float* d = d_out.at<float>({b, h, i});
      std::copy_n(d, p_.dv, du_ + i * p_.dv);
      dmass_[i] = exact::lane_dot(d, v_ + i * p_.dv, p_.dv);
      for (int64_t c = 0; c < p_.dv; ++c) dv_[i * p_.dv + c] = mass_[i] * d[c];
    }
    for (int64_t n = 0; n < root; ++n) {
      const int64_t up = t_.parent[static_cast<size_t>(n)];
      float* d = du_ + n * p_.dv;
      join(d, p_.dv, du_ + up * p_.dv);
      dmass_[up] += exact::lane_dot(d, u_ + n * p_.dv, p_.dv) + stay_[n] * dmass_[n];
      for (int64_t c = 0; c < p_.dv; ++c) d[c] *= mass_[up];
      dmass_[n] *= mass_[up];
    }
  }

  // What the children of a node have of its means, its energy and of one another.
  void against_ascent(int64_t node) {
    const int64_t width = t_.width(node), stride = exact::padded_keys(width);
    const int32_t* child = t_.child(node);
    gather_children(node);
    for (int64_t j = 0; j < width; ++j) std::copy_n(du_ + child[j] * p_.dv, p_.dv, gdu_ + j * p_.dv);
    for (int64_t j = 0; j < width; j += kPanelKeys)
      kernels_.pack(DType::kF32, gv_ + j * p_.dv, p_.dv, std::min<int64_t>(kPanelKeys, width - j), p_.dv,
                    value_panels_ + j * p_.dv);
    for (const auto& [x, size] : {std::pair{gdq_, width * p_.d}, {gdk_, width * p_.d}, {gdv_, width * p_.dv}})
      std::fill_n(x, size, 0.0f);
    for (int64_t first = 0; first < width; first += kRows) rows(node, first, std::min(kRows, width - first), stride);
    for (int64_t j = 0; j < width; ++j) {
      const int64_t to = child[j];
      const float part = share(to, node);
      auto take = [&](const float* met, float* all, int64_t size) {
        for (int64_t c = 0; c < size; ++c) all[to * size + c] += met[j * size + c] + part * all[node * size + c];
      };
      take(gdq_, dq_, p_.d);
      take(gdk_, dk_, p_.d);
      take(gdv_, dv_, p_.dv);
    }
  }

  void rows(int64_t node, int64_t first, int64_t count, int64_t stride) {
    const int64_t width = t_.width(node);
    const int32_t* child = t_.child(node);
    score_children(node, first, count);
    for (int64_t panel = 0; panel < exact::panel_count(width); ++panel)
      kernels_.dots(gdu_ + first * p_.dv, p_.dv, count, p_.dv, value_panels_ + panel * p_.dv * kPanelKeys,
                    g_ + panel * kPanelKeys, stride);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t a = first + r, own = child[a];
      float *s = s_ + r * stride, *g = g_ + r * stride;
      g[a] = dmass_[own];
      exact::run_under(isa_, exact::SoftmaxSlopes{kernels_, s, g, width, share(own, node) * dphi_[node]});
      s[a] = 0;
      if (own < t_.leaves) continue;
      dphi_[own] = g[a];
      g[a] = 0;
    }
    kernels_.add_rows(g_, stride, count, width, gk_, p_.d, p_.d, gdq_ + first * p_.d, p_.d);
    exact::turn_rows(g_, stride, count, width, across_);
    kernels_.add_rows(across_, count, width, count, gq_ + first * p_.d, p_.d, p_.d, gdk_, p_.d);
    exact::turn_rows(s_, stride, count, width, across_);
    kernels_.add_rows(across_, count, width, count, gdu_ + first * p_.dv, p_.dv, p_.dv, gdv_, p_.dv);
  }

  Isa isa_;
  Buffer memory_;
  float *dq_, *dk_, *dv_, *du_, *mass_, *dmass_, *dphi_;            // by node
  float *g_, *across_, *value_panels_, *gdu_, *gdq_, *gdk_, *gdv_;  // of the children of one node
};

}  // namespace

void hsa_attention_backward(const Qkv& in, std::span<const int32_t> parents, double scale, const View& grad_out,
                            const AttnGrad& grad_in, Context& context) {
  const exact::Problem p = exact::check_hsa(in, scale);
  const exact::Tree tree = exact::make_tree(parents, p.queries);
  exact::check_row_gradients(kOp, p, in, {grad_out}, grad_in, {});
  context.throw_if_stopped();
  exact::clear_rows(grad_in.k);
  exact::clear_rows(grad_in.v);
  if (p.batch == 0 || p.heads == 0 || p.queries == 0) return;
  const Isa isa = active_isa(context);
  std::vector<Backward> heads;
  for (int t = 0; t < context.threads; ++t) heads.emplace_back(p, tree, isa);
  parallel_for(context.threads, p.batch * p.kv_heads, [&](int64_t task, int worker) {
    for (int64_t g = 0; g < p.group && !context.stop.stop_requested(); ++g)
      heads[static_cast<size_t>(worker)].run(task / p.kv_heads, task % p.kv_heads * p.group + g, grad_out, grad_in);
  });
  context.throw_if_stopped();
}

void hsa_attention_backward(const Qkv& in, const HsaOptions& options, const View& grad_out, const AttnGrad& grad_in,
                            Context& context) {
  const int64_t tokens = in.q.rank == 4 ? in.q.shape[2] : 0;
  hsa_attention_backward(in, balanced_tree(std::max<int64_t>(0, tokens), options.branch), options.scale, grad_out,
                         grad_in, context);
}

}  // namespace attend
