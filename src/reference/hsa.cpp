// The definition in double precision: energies by recursion, then the weight of each pair of tokens by walking up from
// both to where they meet.
#include "attend/reference/hsa.h"

#include <cmath>
#include <vector>

#include "reference/gradients.h"

namespace attend {
namespace {

using reference::element;

struct Node {
  std::vector<int64_t> tokens, children;
  int64_t parent = -1;
};

std::vector<Node> balanced(int64_t tokens, int64_t branch) {
  std::vector<Node> nodes(static_cast<size_t>(tokens));
  for (int64_t i = 0; i < tokens; ++i) nodes[static_cast<size_t>(i)].tokens = {i};
  std::vector<int64_t> level;
  for (int64_t i = 0; i < tokens; ++i) level.push_back(i);
  while (level.size() > 1) {
    std::vector<int64_t> above;
    for (size_t j = 0; j < level.size(); ++j) {
      if (static_cast<int64_t>(j) % branch == 0) {
        above.push_back(static_cast<int64_t>(nodes.size()));
        nodes.emplace_back();
      }
      nodes[static_cast<size_t>(level[j])].parent = above.back();
    }
    level = above;
  }
  return nodes;
}

class HsaReference : public Operator {
 public:
  explicit HsaReference(const HsaOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    const Shape &q = reference::required(in, "q").shape, &v = reference::required(in, "v").shape;
    return {{"out", {DType::kF64, 4, {q[0], q[1], q[2], v[3]}}}};
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View& result = reference::required(out, "out");
    each_head(in, [&](const Head& head) {
      for (int64_t i = 0; i < result.shape[2]; ++i) {
        std::vector<double> sum(static_cast<size_t>(result.shape[3]), 0);
        head.each_weight(i, [&](int64_t j, double weight, const Meeting&) {
          for (size_t c = 0; c < sum.size(); ++c) sum[c] += weight * head.keys.v(j, static_cast<int64_t>(c));
        });
        for (size_t c = 0; c < sum.size(); ++c)
          reference::store(result, {head.b, head.h, i, static_cast<int64_t>(c)}, sum[c]);
      }
    });
  }

  // A weight is a product of exponentials of energies, ln Z and one score; these have gradients of one another.
  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    using reference::add, reference::optional;
    const View &q = reference::required(in, "q"), &d_out = reference::required(grad_out, "out"),
               dq = optional(grad_in, "q"), dk = optional(grad_in, "k"), dv = optional(grad_in, "v");
    for (const View& grad : {dq, dk, dv}) reference::clear(grad);
    each_head(in, [&](const Head& head) {
      std::vector<double> d_energy(head.nodes.size(), 0), d_log_z(d_energy);
      auto to_score = [&](int64_t from, int64_t to, double d) {
        for (int64_t c = 0; c < q.shape[3]; ++c) {
          for (int64_t i : head.node(from).tokens)
            add(dq, {head.b, head.h, i, c},
                d * head.scale * head.mean_k[static_cast<size_t>(to)][static_cast<size_t>(c)] / head.count(from));
          for (int64_t j : head.node(to).tokens)
            add(dk, {head.b, head.keys.head, j, c},
                d * head.scale * head.mean_q[static_cast<size_t>(from)][static_cast<size_t>(c)] / head.count(to));
        }
      };
      for (int64_t i = 0; i < q.shape[2]; ++i)
        head.each_weight(i, [&](int64_t j, double weight, const Meeting& at) {
          double d = 0;  // of the weight's logarithm
          for (int64_t c = 0; c < d_out.shape[3]; ++c) {
            d += weight * element(d_out, {head.b, head.h, i, c}) * head.keys.v(j, c);
            add(dv, {head.b, head.keys.head, j, c}, weight * element(d_out, {head.b, head.h, i, c}));
          }
          for (int64_t kept : at.kept)
            d_energy[static_cast<size_t>(kept)] += d, d_log_z[static_cast<size_t>(kept)] -= d;
          if (at.other < 0) return;
          to_score(at.own, at.other, d);
          d_log_z[static_cast<size_t>(at.own)] -= d;
        });
      for (size_t n = head.nodes.size(); n-- > 0;) {
        const int64_t node = static_cast<int64_t>(n);
        if (head.nodes[n].parent >= 0) {
          const int64_t up = head.nodes[n].parent;
          d_log_z[n] += d_energy[static_cast<size_t>(up)] * head.count(node) / head.count(up);
          d_energy[n] += d_log_z[n] * std::exp(head.energy[n] - head.log_z[n]);
          for (int64_t other : head.node(up).children)
            if (other != node)
              to_score(node, other, d_log_z[n] * head.count(other) * std::exp(head.score(node, other) - head.log_z[n]));
        }
        if (head.nodes[n].children.empty()) to_score(node, node, d_energy[n]);
      }
    });
  }

 private:
  // How two tokens meet: the nodes above the first whose own share leads on, then two siblings (-1: it is the first
  // token itself).
  struct Meeting {
    std::vector<int64_t> kept;
    int64_t own, other;
  };

  struct Head {
    int64_t b, h;
    const reference::Keys& keys;
    const std::vector<Node>& nodes;
    double scale;
    std::vector<std::vector<double>> mean_q, mean_k;
    std::vector<double> energy, log_z;

    const Node& node(int64_t n) const { return nodes[static_cast<size_t>(n)]; }
    double count(int64_t n) const { return static_cast<double>(node(n).tokens.size()); }
    // psi(A, B): the mean of the scores of all pairs, by means of q and k, as the mean is bilinear.
    double score(int64_t from, int64_t to) const {
      double s = 0;
      for (size_t c = 0; c < mean_q[static_cast<size_t>(from)].size(); ++c)
        s += mean_q[static_cast<size_t>(from)][c] * mean_k[static_cast<size_t>(to)][c];
      return s * scale;
    }

    // f(token, its weight for token i, how they meet).
    template <class F>
    void each_weight(int64_t i, F f) const {
      double mass = 1;  // of the tokens below the node on the path
      std::vector<int64_t> path = {i};
      while (node(path.back()).parent >= 0) path.push_back(node(path.back()).parent);
      Meeting at{{}, 0, 0};
      for (size_t step = path.size() - 1; step-- > 0;) {
        at.own = path[step];
        for (int64_t other : node(path[step + 1]).children) {
          if (other == at.own) continue;
          at.other = other;
          const double each = mass * std::exp(score(at.own, other) - log_z[static_cast<size_t>(at.own)]);
          for (int64_t j : node(other).tokens) f(j, each, at);
        }
        mass *= std::exp(energy[static_cast<size_t>(at.own)] - log_z[static_cast<size_t>(at.own)]);
        at.kept.push_back(at.own);
      }
      at.other = -1;
      f(i, mass, at);
    }
  };

  std::vector<Node> tree(const Tensors& in) const {
    const View parents = reference::optional(in, "parents");
    const int64_t tokens = reference::required(in, "q").shape[2];
    std::vector<Node> nodes = balanced(tokens, o_.branch);
    if (parents.data) {
      nodes.assign(static_cast<size_t>(parents.shape[0]), {});
      for (int64_t n = 0; n < parents.shape[0]; ++n) {
        nodes[static_cast<size_t>(n)].parent = static_cast<int64_t>(element(parents, {n}));
        if (n < tokens) nodes[static_cast<size_t>(n)].tokens = {n};
      }
    }
    for (size_t n = 0; n < nodes.size(); ++n) {
      if (nodes[n].parent < 0) continue;
      Node& up = nodes[static_cast<size_t>(nodes[n].parent)];
      up.children.push_back(static_cast<int64_t>(n));
      up.tokens.insert(up.tokens.end(), nodes[n].tokens.begin(), nodes[n].tokens.end());
    }
    return nodes;
  }

  template <class F>
  void each_head(const Tensors& in, F f) const {
    const View& q = reference::required(in, "q");
    const std::vector<Node> nodes = tree(in);
    for (int64_t b = 0; b < q.shape[0]; ++b)
      for (int64_t h = 0; h < q.shape[1]; ++h) {
        const reference::Keys keys(in, b, h, q.shape[1], q.shape[0]);
        Head head{b, h, keys, nodes, reference::scale_of(o_.scale, q.shape[3]), {}, {}, {}, {}};
        head.mean_q.resize(nodes.size()), head.mean_k.resize(nodes.size());
        head.energy.resize(nodes.size()), head.log_z.resize(nodes.size());
        for (size_t n = 0; n < nodes.size(); ++n)
          for (int64_t c = 0; c < q.shape[3]; ++c) {
            double sum_q = 0, sum_k = 0;
            for (int64_t i : nodes[n].tokens) sum_q += element(q, {b, h, i, c}), sum_k += keys.k(i, c);
            head.mean_q[n].push_back(sum_q / static_cast<double>(nodes[n].tokens.size()));
            head.mean_k[n].push_back(sum_k / static_cast<double>(nodes[n].tokens.size()));
          }
        for (size_t n = 0; n < nodes.size(); ++n) {
          const int64_t node = static_cast<int64_t>(n);
          if (nodes[n].children.empty()) head.energy[n] = head.score(node, node);
          for (int64_t child : nodes[n].children) {
            double top = head.energy[static_cast<size_t>(child)], sum = 0;
            for (int64_t other : nodes[n].children)
              if (other != child) top = std::max(top, head.score(child, other));
            for (int64_t other : nodes[n].children)
              sum += other == child ? std::exp(head.energy[static_cast<size_t>(child)] - top)
                                    : head.count(other) * std::exp(head.score(child, other) - top);
            head.log_z[static_cast<size_t>(child)] = top + std::log(sum);
            head.energy[n] += head.count(child) / head.count(node) * head.log_z[static_cast<size_t>(child)];
          }
        }
        f(head);
      }
  }

  HsaOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_hsa_reference(const HsaOptions& options) {
  return std::make_unique<HsaReference>(options);
}

}  // namespace attend
