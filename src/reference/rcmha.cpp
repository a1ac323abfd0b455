#include "attend/reference/rcmha.h"

#include "reference/softmax_over.h"

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
    const View &q = required(in, "q"), &k = required(in, "k"), &v = required(in, "v"),
               &table = required(in, "relative_keys"), content = optional(in, "content_bias"),
               bias = optional(in, "distance_bias");
    const int64_t clip = (table.shape[1] - 1) / 2;
    const std::vector<double> queries = convolved(in, q, "kernel_q", "shift_q"),
                              keys = convolved(in, k, "kernel_k", "shift_k"),
                              values = convolved(in, v, "kernel_v", "shift_v");
    auto at_row = [](const std::vector<double>& x, const View& like, int64_t b, int64_t h, int64_t t, int64_t c) {
      return x[static_cast<size_t>(((b * like.shape[1] + h) * like.shape[2] + t) * like.shape[3] + c)];
    };
    auto score = [&](const Query& at, int64_t j) {
      const int64_t row = std::clamp(j - at.position, -clip, clip) + clip;
      double sum = bias.data ? element(bias, {at.h, row}) : 0;
      for (int64_t c = 0; c < q.shape[3]; ++c) {
        const double x = at_row(queries, q, at.b, at.h, at.i, c);
        sum += (x + (content.data ? element(content, {at.h, c}) : 0)) * at_row(keys, k, at.b, at.keys.head, j, c);
        sum += x * element(table, {at.h, row, c});
      }
      return scale_of(o_.scale, q.shape[3]) * sum;
    };
    softmax_over(in, out, o_.causal, score,
                 [&](const Query& at, int64_t j, int64_t c) { return at_row(values, v, at.b, at.keys.head, j, c); });
  }

 private:
  static std::vector<double> convolved(const Tensors& in, const View& x, std::string_view kernel_name,
                                       std::string_view shift_name) {
    const View &kernel = required(in, kernel_name), shift = optional(in, shift_name);
    std::vector<double> y;
    for (int64_t b = 0; b < x.shape[0]; ++b)
      for (int64_t h = 0; h < x.shape[1]; ++h)
        for (int64_t t = 0; t < x.shape[2]; ++t)
          for (int64_t c = 0; c < x.shape[3]; ++c) {
            double sum = shift.data ? element(shift, {c}) : 0;
            for (int64_t back = 0; back < kernel.shape[0] && back <= t; ++back)
              sum += element(kernel, {kernel.shape[0] - 1 - back, c}) * element(x, {b, h, t - back, c});
            y.push_back(sum);
          }
    return y;
  }

  RcmhaOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_rcmha_reference(const RcmhaOptions& options) {
  return std::make_unique<RcmhaReference>(options);
}

}  // namespace attend
