#include "attend/exact/hsa.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "attend/tensor/error.h"
#include "exact/hsa_tree.h"
#include "exact/plain.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "hsa";

[[noreturn]] void refuse(std::string_view argument, std::string_view got, std::string_view rule) {
  throw Error(ErrorKind::kArgument, kOp, argument, got, rule);
}

}  // namespace

namespace exact {

Tree make_tree(std::span<const int32_t> parents, int64_t tokens) {
  Tree t;
  t.parent = parents;
  t.nodes = static_cast<int64_t>(parents.size());
  t.leaves = tokens;
  if (t.nodes < tokens || (tokens == 0 && t.nodes != 0))
    refuse("parents", fmt::format("{} nodes", t.nodes), fmt::format("must begin with the {} tokens", tokens));
  t.tokens.assign(static_cast<size_t>(t.nodes), 0);
  t.first_child.assign(static_cast<size_t>(t.nodes) + 1, 0);
  for (int64_t n = 0; n < t.nodes; ++n) {
    const size_t at = static_cast<size_t>(n);
    const int64_t up = parents[at];
    const bool root = n + 1 == t.nodes;
    if (root ? up != -1 : up <= n || up >= t.nodes || up < tokens)
      refuse(fmt::format("parents[{}]", n), fmt::format("{}", up),
             root ? "must be -1: the last node is the root" : "must be a later node that is no token");
    if (n < tokens) t.tokens[at] = 1;
    if (t.tokens[at] == 0) refuse(fmt::format("parents[{}]", n), fmt::format("{}", up), "is a node without children");
    if (root) continue;
    t.tokens[static_cast<size_t>(up)] += t.tokens[at];
    ++t.first_child[static_cast<size_t>(up) + 1];
  }
  for (size_t n = 0; n < parents.size(); ++n) {
    t.widest = std::max(t.widest, t.first_child[n + 1]);
    t.first_child[n + 1] += t.first_child[n];
  }
  t.children.resize(static_cast<size_t>(std::max<int64_t>(0, t.nodes - 1)));
  std::vector<int64_t> next(t.first_child.begin(), t.first_child.end());
  for (int64_t n = 0; n + 1 < t.nodes; ++n)
    t.children[static_cast<size_t>(next[static_cast<size_t>(parents[static_cast<size_t>(n)])]++)] =
        static_cast<int32_t>(n);
  return t;
}

HeadTree::HeadTree(const Problem& p, const Tree& tree, const DenseKernels& kernels)
    : p_(p), t_(tree), kernels_(kernels) {
  const int64_t n = std::max<int64_t>(1, t_.nodes), padded = padded_keys(t_.widest);
  const int64_t sizes[] = {n * p.d,         n * p.d,         n * p.dv,         n * p.dv,      n, n, padded * p.d,
                           t_.widest * p.d, t_.widest * p.d, t_.widest * p.dv, kRows * padded};
  int64_t total = 0;
  for (int64_t size : sizes) total += (size + 15) / 16 * 16;
  memory_ = Buffer(total * 4);
  float* next = memory_.as<float>();
  float** const parts[] = {&q_, &k_, &v_, &u_, &phi_, &stay_, &panels_, &gq_, &gk_, &gv_, &s_};
  for (size_t i = 0; i < std::size(sizes); ++i) {
    *parts[i] = next;
    next += (sizes[i] + 15) / 16 * 16;
  }
}

void HeadTree::ascend(int64_t b, int64_t h) {
  for (int64_t i = 0; i < t_.leaves; ++i)
    for (int64_t c = 0; c < p_.d; ++c) q_[i * p_.d + c] = p_.q.at<float>({b, h, i})[c] * p_.scale;
  for (const KeyRun& run : keys_of(p_, b, h).runs()) {
    kernels_.widen_run(run.keys(), run.count, p_.d, k_ + run.first_slot * p_.d, p_.d);
    kernels_.widen_run(run.values(), run.count, p_.dv, v_ + run.first_slot * p_.dv, p_.dv);
  }
  for (int64_t n = t_.leaves; n < t_.nodes; ++n) {
    average(n);
    attend_children(n);
  }
  std::fill_n(u_ + (t_.nodes - 1) * p_.dv, p_.dv, 0.0f);
  stay_[t_.nodes - 1] = 1;
}

void HeadTree::descend(int64_t b, int64_t h, const View& out) {
  // From here on stay: the weight that the tokens below a node have together.
  for (int64_t n = t_.nodes - 2; n >= 0; --n) {
    const int64_t up = t_.parent[static_cast<size_t>(n)];
    for (int64_t c = 0; c < p_.dv; ++c) u_[n * p_.dv + c] = u_[up * p_.dv + c] + stay_[up] * u_[n * p_.dv + c];
    stay_[n] *= stay_[up];
  }
  for (int64_t i = 0; i < t_.leaves; ++i) {
    float* to = out.at<float>({b, h, i});
    for (int64_t c = 0; c < p_.dv; ++c) to[c] = u_[i * p_.dv + c] + stay_[i] * v_[i * p_.dv + c];
  }
}

void HeadTree::average(int64_t node) {
  auto mean = [&](float* x, int64_t width) {
    float* to = x + node * width;
    std::fill_n(to, width, 0.0f);
    for (int64_t j = 0; j < t_.width(node); ++j) {
      const int64_t child = t_.child(node)[j];
      const float part = share(child, node);
      for (int64_t c = 0; c < width; ++c) to[c] += part * x[child * width + c];
    }
  };
  mean(q_, p_.d);
  mean(k_, p_.d);
  mean(v_, p_.dv);
}

void HeadTree::gather_children(int64_t node) {
  const int64_t width = t_.width(node);
  const int32_t* child = t_.child(node);
  for (int64_t j = 0; j < width; ++j) {
    std::copy_n(q_ + child[j] * p_.d, p_.d, gq_ + j * p_.d);
    std::copy_n(k_ + child[j] * p_.d, p_.d, gk_ + j * p_.d);
    std::copy_n(v_ + child[j] * p_.dv, p_.dv, gv_ + j * p_.dv);
  }
  for (int64_t j = 0; j < width; j += kPanelKeys)
    kernels_.pack(DType::kF32, gk_ + j * p_.d, p_.d, std::min<int64_t>(kPanelKeys, width - j), p_.d,
                  panels_ + j * p_.d);
}

void HeadTree::score_children(int64_t node, int64_t first, int64_t rows) {
  const int64_t width = t_.width(node), stride = padded_keys(width);
  const int32_t* child = t_.child(node);
  for (int64_t panel = 0; panel < panel_count(width); ++panel)
    kernels_.dots(gq_ + first * p_.d, p_.d, rows, p_.d, panels_ + panel * p_.d * kPanelKeys, s_ + panel * kPanelKeys,
                  stride);
  for (int64_t r = 0; r < rows; ++r) {
    float* s = s_ + r * stride;
    for (int64_t j = 0; j < width; ++j) {
      const int64_t count = t_.tokens[static_cast<size_t>(child[j])];
      if (j != first + r && count > 1) s[j] += std::log(static_cast<float>(count));
    }
    if (child[first + r] >= t_.leaves) s[first + r] = phi_[child[first + r]];
  }
}

void HeadTree::attend_children(int64_t node) {
  const int64_t width = t_.width(node);
  gather_children(node);
  double energy = 0;
  for (int64_t first = 0; first < width; first += kRows) {
    const int64_t rows = std::min(kRows, width - first);
    score_children(node, first, rows);
    for (int64_t r = 0; r < rows; ++r)
      energy += attend_child(t_.child(node)[first + r], s_ + r * padded_keys(width), width, first + r);
  }
  phi_[node] = static_cast<float>(energy / static_cast<double>(t_.tokens[static_cast<size_t>(node)]));
}

// What a node, child `a` of its parent, takes from its siblings; gives |A| ln Z(A). `s` are its scores with all
// children.
double HeadTree::attend_child(int64_t node, float* s, int64_t width, int64_t a) {
  float most;
  const float sum = kernels_.exponentials(s, width, &most);
  stay_[node] = s[a] / sum;
  s[a] = 0;
  float* u = u_ + node * p_.dv;
  std::fill_n(u, p_.dv, 0.0f);
  kernels_.add_rows(s, 0, 1, width, gv_, p_.dv, p_.dv, u, 0);
  for (int64_t c = 0; c < p_.dv; ++c) u[c] /= sum;
  return static_cast<double>(t_.tokens[static_cast<size_t>(node)]) *
         (static_cast<double>(most) + std::log(static_cast<double>(sum)));
}

Problem check_hsa(const Qkv& in, double scale) {
  Problem p = check(in, {.scale = scale}, kOp);
  require_plain(in, kOp);
  if (p.queries != in.k.shape[2])
    refuse("q", to_string(in.q), fmt::format("must have as many tokens as k, {}", in.k.shape[2]));
  return p;
}

}  // namespace exact

std::vector<int32_t> balanced_tree(int64_t tokens, int64_t branch) {
  if (tokens < 0 || tokens > (int64_t{1} << 30)) refuse("tokens", fmt::format("{}", tokens), "must be in 0..2^30");
  if (branch < 2) refuse("branch", fmt::format("{}", branch), "must be at least 2");
  std::vector<int32_t> parents;
  int64_t first = 0, width = tokens;
  while (width > 1) {
    const int64_t next = first + width;
    for (int64_t j = 0; j < width; ++j) parents.push_back(static_cast<int32_t>(next + j / branch));
    first = next;
    width = (width - 1) / branch + 1;
  }
  if (tokens > 0) parents.push_back(-1);
  return parents;
}

void hsa_attention(const Qkv& in, std::span<const int32_t> parents, double scale, const View& out, Context& context) {
  const exact::Problem p = exact::check_hsa(in, scale);
  const exact::Tree tree = exact::make_tree(parents, p.queries);
  exact::check_outputs(p, in, {out}, kOp);
  context.throw_if_stopped();
  if (p.batch == 0 || p.heads == 0 || p.queries == 0) return;
  const DenseKernels& kernels = dense_kernels(active_isa(context));
  std::vector<exact::HeadTree> heads;
  for (int t = 0; t < context.threads; ++t) heads.emplace_back(p, tree, kernels);
  parallel_for(context.threads, p.batch * p.heads, [&](int64_t task, int worker) {
    if (context.stop.stop_requested()) return;
    exact::HeadTree& head = heads[static_cast<size_t>(worker)];
    head.ascend(task / p.heads, task % p.heads);
    head.descend(task / p.heads, task % p.heads, out);
  });
  context.throw_if_stopped();
}

void hsa_attention(const Qkv& in, const HsaOptions& options, const View& out, Context& context) {
  const int64_t tokens = in.q.rank == 4 ? in.q.shape[2] : 0;
  hsa_attention(in, balanced_tree(std::max<int64_t>(0, tokens), options.branch), options.scale, out, context);
}

}  // namespace attend
