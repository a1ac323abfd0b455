// The definition in double precision: energies by recursion, then the weight of each pair of tokens by walking up from
// both to where they meet.
#include "attend/reference/hsa.h"

#include <cmath>
#include <vector>

#include "reference/inputs.h"

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
    const View &q = reference::required(in, "q"), &v = reference::required(in, "v"),
               &result = reference::required(out, "out"), parents = reference::optional(in, "parents");
    const int64_t tokens = q.shape[2];
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
    for (int64_t b = 0; b < q.shape[0]; ++b)
      for (int64_t h = 0; h < q.shape[1]; ++h) {
        const reference::Keys keys(in, b, h, q.shape[1], q.shape[0]);
        std::vector<double> energy(nodes.size()), log_z(nodes.size());
        // psi(A, B): the mean of the scores of all pairs. Means of q and k first, as the mean is bilinear.
        std::vector<std::vector<double>> mean_q(nodes.size()), mean_k(nodes.size());
        for (size_t n = 0; n < nodes.size(); ++n)
          for (int64_t c = 0; c < q.shape[3]; ++c) {
            double sum_q = 0, sum_k = 0;
            for (int64_t i : nodes[n].tokens) sum_q += element(q, {b, h, i, c}), sum_k += keys.k(i, c);
            mean_q[n].push_back(sum_q / static_cast<double>(nodes[n].tokens.size()));
            mean_k[n].push_back(sum_k / static_cast<double>(nodes[n].tokens.size()));
          }
        auto psi = [&](int64_t from, int64_t to) {
          double s = 0;
          for (size_t c = 0; c < static_cast<size_t>(q.shape[3]); ++c)
            s += mean_q[static_cast<size_t>(from)][c] * mean_k[static_cast<size_t>(to)][c];
          return s * (o_.scale == 0 ? 1 / std::sqrt(static_cast<double>(q.shape[3])) : o_.scale);
        };
        auto count = [&](int64_t n) { return static_cast<double>(nodes[static_cast<size_t>(n)].tokens.size()); };
        for (size_t n = 0; n < nodes.size(); ++n) {
          if (nodes[n].children.empty()) energy[n] = psi(static_cast<int64_t>(n), static_cast<int64_t>(n));
          for (int64_t child : nodes[n].children) {
            double top = energy[static_cast<size_t>(child)], sum = 0;
            for (int64_t other : nodes[n].children)
              if (other != child) top = std::max(top, psi(child, other));
            for (int64_t other : nodes[n].children)
              sum += other == child ? std::exp(energy[static_cast<size_t>(child)] - top)
                                    : count(other) * std::exp(psi(child, other) - top);
            log_z[static_cast<size_t>(child)] = top + std::log(sum);
            energy[n] += count(child) / count(static_cast<int64_t>(n)) * log_z[static_cast<size_t>(child)];
          }
        }
        for (int64_t i = 0; i < tokens; ++i) {
          std::vector<double> weight(static_cast<size_t>(tokens), 0);
          double mass = 1;  // of the tokens below the node on the path
          std::vector<int64_t> path = {i};
          while (nodes[static_cast<size_t>(path.back())].parent >= 0)
            path.push_back(nodes[static_cast<size_t>(path.back())].parent);
          for (size_t step = path.size() - 1; step-- > 0;) {
            const int64_t node = path[step];
            for (int64_t other : nodes[static_cast<size_t>(path[step + 1])].children)
              if (other != node) {
                const double each = mass * std::exp(psi(node, other) - log_z[static_cast<size_t>(node)]);
                for (int64_t j : nodes[static_cast<size_t>(other)].tokens) weight[static_cast<size_t>(j)] = each;
              }
            mass *= std::exp(energy[static_cast<size_t>(node)] - log_z[static_cast<size_t>(node)]);
          }
          weight[static_cast<size_t>(i)] = mass;
          for (int64_t c = 0; c < v.shape[3]; ++c) {
            double sum = 0;
            for (int64_t j = 0; j < tokens; ++j) sum += weight[static_cast<size_t>(j)] * keys.v(j, c);
            reference::store(result, {b, h, i, c}, sum);
          }
        }
      }
  }

 private:
  HsaOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_hsa_reference(const HsaOptions& options) {
  return std::make_unique<HsaReference>(options);
}

}  // namespace attend
