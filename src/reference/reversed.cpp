#include "attend/reference/reversed.h"

#include <cmath>
#include <vector>

#include "reference/gradients.h"

namespace attend {
namespace {

using reference::element;

class ReversedReference : public Operator {
 public:
  explicit ReversedReference(const ReversedOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    auto specs = reference::attention_outputs(in);
    specs.erase("lse");
    return specs;
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View &q = reference::required(in, "q"), &result = reference::required(out, "out"),
               select = reference::optional(in, "select"), message = reference::optional(in, "message");
    const int64_t queries = q.shape[2], dv = result.shape[3];
    for (int64_t b = 0; b < q.shape[0]; ++b)
      for (int64_t h = 0; h < q.shape[1]; ++h) {
        const reference::Keys keys(in, b, h, q.shape[1], q.shape[0]);
        std::vector<double> sum(static_cast<size_t>(queries * dv), 0);
        for (int64_t j = 0; j < keys.count; ++j) {
          const std::vector<double> weight = shares(in, keys, b, h, j);
          const double gate = share(select, {b, h, j}) * share(message, {b, j});
          for (int64_t i = 0; i < queries; ++i)
            for (int64_t c = 0; c < dv && gate != 0; ++c)
              sum[static_cast<size_t>(i * dv + c)] += weight[static_cast<size_t>(i)] * gate * keys.v(j, c);
        }
        for (int64_t i = 0; i < queries; ++i)
          for (int64_t c = 0; c < dv; ++c) reference::store(result, {b, h, i, c}, sum[static_cast<size_t>(i * dv + c)]);
      }
  }

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    using reference::add, reference::optional, reference::Query;
    const View &q = reference::required(in, "q"), &d_out = reference::required(grad_out, "out"),
               select = optional(in, "select"), message = optional(in, "message"), dq = optional(grad_in, "q"),
               dk = optional(grad_in, "k"), dv = optional(grad_in, "v"), d_select = optional(grad_in, "select"),
               d_message = optional(grad_in, "message");
    for (const View& grad : {dq, dk, dv, d_select, d_message}) reference::clear(grad);
    const double scale = reference::scale_of(o_.scale, q.shape[3]);
    for (int64_t b = 0; b < q.shape[0]; ++b)
      for (int64_t h = 0; h < q.shape[1]; ++h) {
        const reference::Keys keys(in, b, h, q.shape[1], q.shape[0]);
        for (int64_t j = 0; j < keys.count; ++j) {
          const std::vector<double> weight = shares(in, keys, b, h, j);
          const double of_head = share(select, {b, h, j}), of_key = share(message, {b, j});
          std::vector<double> gradient;  // of what each query gets of the value
          double mean = 0;
          for (size_t i = 0; i < weight.size(); ++i) {
            double g = 0;
            for (int64_t c = 0; c < d_out.shape[3]; ++c) {
              const double d = element(d_out, {b, h, static_cast<int64_t>(i), c});
              g += d * keys.v(j, c);
              add(dv, {b, keys.head, j, c}, weight[i] * of_head * of_key * d);
            }
            gradient.push_back(g);
            mean += weight[i] * g;
          }
          add(d_select, {b, h, j}, of_key * mean);
          add(d_message, {b, j}, of_head * mean);
          for (size_t i = 0; i < weight.size(); ++i)
            reference::add_dot(q, dq, dk, Query{b, h, static_cast<int64_t>(i), 0, keys}, j,
                               scale * weight[i] * of_head * of_key * (gradient[i] - mean));
        }
      }
  }

 private:
  static double share(const View& gate, std::initializer_list<int64_t> index) {
    return gate.data ? element(gate, index) : 1;
  }

  // What each query gets of key j.
  std::vector<double> shares(const Tensors& in, const reference::Keys& keys, int64_t b, int64_t h, int64_t j) const {
    const View& q = reference::required(in, "q");
    std::vector<double> weight;
    double top = -1e300, total = 0;
    for (int64_t i = 0; i < q.shape[2]; ++i) {
      weight.push_back(reference::scale_of(o_.scale, q.shape[3]) * reference::dot(q, {b, h, i, 0, keys}, j));
      top = std::max(top, weight.back());
    }
    for (double& w : weight) total += w = std::exp(w - top);
    for (double& w : weight) w /= total;
    return weight;
  }

  ReversedOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_reversed_reference(const ReversedOptions& options) {
  return std::make_unique<ReversedReference>(options);
}

}  // namespace attend
