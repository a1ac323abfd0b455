#include "attend/reference/rcmha.h"

#include <string>

#include "reference/gradients.h"

namespace attend {
namespace {

using namespace reference;

class RcmhaReference : public Operator {
 public:
  explicit RcmhaReference(const RcmhaOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return attention_outputs(in);
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const Convolved x(in);
    softmax_over(
        in, out, o_.causal, [&](const Query& at, int64_t j) { return score(in, x, at, j); },
        [&](const Query& at, int64_t j, int64_t c) { return x.v.at(at.b, at.keys.head, j, c); });
  }

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    const View &q = required(in, "q"), &table = required(in, "relative_keys"), content = optional(in, "content_bias"),
               d_keys = optional(grad_in, "relative_keys"), d_content = optional(grad_in, "content_bias"),
               d_bias = optional(grad_in, "distance_bias");
    for (const View& grad : {d_keys, d_content, d_bias}) clear(grad);
    const Convolved x(in);
    Rows dq(q), dk(required(in, "k")), dv(required(in, "v"));
    softmax_over_backward(
        in, grad_out, o_.causal, [&](const Query& at, int64_t j) { return score(in, x, at, j); },
        [&](const Query& at, int64_t j, int64_t c) { return x.v.at(at.b, at.keys.head, j, c); },
        [&](const Query& at, int64_t j, double gradient) {
          const double d = scale_of(o_.scale, q.shape[3]) * gradient;
          const int64_t row = table_row(in, at, j);
          add(d_bias, {at.h, row}, d);
          for (int64_t c = 0; c < q.shape[3]; ++c) {
            const double query = x.q.at(at.b, at.h, at.i, c), key = x.k.at(at.b, at.keys.head, j, c);
            dq.at(at.b, at.h, at.i, c) += d * (key + element(table, {at.h, row, c}));
            dk.at(at.b, at.keys.head, j, c) += d * (query + (content.data ? element(content, {at.h, c}) : 0));
            add(d_keys, {at.h, row, c}, d * query);
            add(d_content, {at.h, c}, d * key);
          }
        },
        [&](const Query& at, int64_t j, int64_t c, double d) { dv.at(at.b, at.keys.head, j, c) += d; });
    pull(in, grad_in, dq, "q"), pull(in, grad_in, dk, "k"), pull(in, grad_in, dv, "v");
  }

 private:
  // Numbers in the shape of an input.
  struct Rows {
    explicit Rows(const View& x) : like(x), number(static_cast<size_t>(x.count()), 0) {}
    double& at(int64_t b, int64_t h, int64_t t, int64_t c) {
      return number[static_cast<size_t>(((b * like.shape[1] + h) * like.shape[2] + t) * like.shape[3] + c)];
    }
    double at(int64_t b, int64_t h, int64_t t, int64_t c) const { return const_cast<Rows*>(this)->at(b, h, t, c); }

    View like;
    std::vector<double> number;
  };

  struct Convolved {
    explicit Convolved(const Tensors& in) : q(convolve(in, "q")), k(convolve(in, "k")), v(convolve(in, "v")) {}
    Rows q, k, v;
  };

  // f(b, h, t, c, how many tokens back, tap of the kernel) of every product.
  template <class F>
  static void each_tap(const View& x, const View& kernel, const F& f) {
    for (int64_t b = 0; b < x.shape[0]; ++b)
      for (int64_t h = 0; h < x.shape[1]; ++h)
        for (int64_t t = 0; t < x.shape[2]; ++t)
          for (int64_t c = 0; c < x.shape[3]; ++c)
            for (int64_t back = 0; back < kernel.shape[0] && back <= t; ++back)
              f(b, h, t, c, back, kernel.shape[0] - 1 - back);
  }

  static Rows convolve(const Tensors& in, const std::string& name) {
    const View &x = required(in, name), &kernel = required(in, "kernel_" + name), shift = optional(in, "shift_" + name);
    Rows y(x);
    for (size_t i = 0; i < y.number.size(); ++i)
      y.number[i] = shift.data ? element(shift, {static_cast<int64_t>(i) % x.shape[3]}) : 0;
    each_tap(x, kernel, [&](int64_t b, int64_t h, int64_t t, int64_t c, int64_t back, int64_t tap) {
      y.at(b, h, t, c) += element(kernel, {tap, c}) * element(x, {b, h, t - back, c});
    });
    return y;
  }

  static void pull(const Tensors& in, const Tensors& grad_in, const Rows& dy, const std::string& name) {
    const View &x = required(in, name), &kernel = required(in, "kernel_" + name), dx = optional(grad_in, name),
               d_kernel = optional(grad_in, "kernel_" + name), d_shift = optional(grad_in, "shift_" + name);
    for (const View& grad : {dx, d_kernel, d_shift}) clear(grad);
    for (size_t i = 0; i < dy.number.size(); ++i) add(d_shift, {static_cast<int64_t>(i) % x.shape[3]}, dy.number[i]);
    each_tap(x, kernel, [&](int64_t b, int64_t h, int64_t t, int64_t c, int64_t back, int64_t tap) {
      const double d = dy.at(b, h, t, c);
      add(dx, {b, h, t - back, c}, d * element(kernel, {tap, c}));
      add(d_kernel, {tap, c}, d * element(x, {b, h, t - back, c}));
    });
  }

  static int64_t table_row(const Tensors& in, const Query& at, int64_t j) {
    const int64_t clip = (required(in, "relative_keys").shape[1] - 1) / 2;
    return std::clamp(j - at.position, -clip, clip) + clip;
  }

  double score(const Tensors& in, const Convolved& x, const Query& at, int64_t j) const {
    const View &table = required(in, "relative_keys"), content = optional(in, "content_bias"),
               bias = optional(in, "distance_bias");
    const int64_t row = table_row(in, at, j), d = x.q.like.shape[3];
    double sum = bias.data ? element(bias, {at.h, row}) : 0;
    for (int64_t c = 0; c < d; ++c) {
      const double query = x.q.at(at.b, at.h, at.i, c);
      sum += (query + (content.data ? element(content, {at.h, c}) : 0)) * x.k.at(at.b, at.keys.head, j, c);
      sum += query * element(table, {at.h, row, c});
    }
    return scale_of(o_.scale, d) * sum;
  }

  RcmhaOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_rcmha_reference(const RcmhaOptions& options) {
  return std::make_unique<RcmhaReference>(options);
}

}  // namespace attend
