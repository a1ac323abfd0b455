// The definition in double precision: plain loops over all pairs, nothing shared with the kernel.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "mechanism/alibi.h"

namespace attend {
namespace {

double element(const View& v, int64_t b, int64_t h, int64_t t, int64_t c) {
  return value_at(v, ((b * v.shape[1] + h) * v.shape[2] + t) * v.shape[3] + c);
}

class AlibiReference : public Operator {
 public:
  explicit AlibiReference(const AlibiOptions& options) : options_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    const Shape q = std::get<View>(in.at("q")).shape, v = std::get<View>(in.at("v")).shape;
    return {{"out", {DType::kF64, 4, {q[0], q[1], q[2], v[3]}}}, {"lse", {DType::kF64, 3, {q[0], q[1], q[2]}}}};
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View &q = std::get<View>(in.at("q")), &k = std::get<View>(in.at("k")), &v = std::get<View>(in.at("v"));
    double* o = std::get<View>(out.at("out")).as<double>();
    double* lse = std::get<View>(out.at("lse")).as<double>();
    const int64_t heads = q.shape[1], queries = q.shape[2], keys = k.shape[2], d = q.shape[3], dv = v.shape[3];
    std::vector<double> score(static_cast<size_t>(keys));
    for (int64_t row = 0; row < q.shape[0] * heads * queries; ++row) {
      const int64_t b = row / (heads * queries), h = row / queries % heads, i = row % queries;
      const int64_t shared = h / (heads / k.shape[1]), position = i + keys - queries;
      double largest = -std::numeric_limits<double>::infinity(), sum = 0;
      for (int64_t j = 0; j < keys; ++j) {
        double& s = score[static_cast<size_t>(j)];
        s = -std::numeric_limits<double>::infinity();
        if (options_.causal && j > position) continue;
        s = 0;
        for (int64_t c = 0; c < d; ++c) s += element(q, b, h, i, c) * element(k, b, shared, j, c);
        s /= std::sqrt(static_cast<double>(d));
        s -= std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(heads)) *
             static_cast<double>(std::abs(position - j));
        largest = std::max(largest, s);
      }
      const bool sees = largest > -std::numeric_limits<double>::infinity();
      for (int64_t j = 0; j < keys && sees; ++j) sum += std::exp(score[static_cast<size_t>(j)] - largest);
      lse[row] = sees ? largest + std::log(sum) : largest;
      for (int64_t c = 0; c < dv; ++c) {
        double total = 0;
        for (int64_t j = 0; j < keys && sees; ++j) {
          const double weight = std::exp(score[static_cast<size_t>(j)] - largest) / sum;
          if (weight > 0) total += weight * element(v, b, shared, j, c);
        }
        o[row * dv + c] = total;
      }
    }
  }

 private:
  AlibiOptions options_;
};

}  // namespace

std::unique_ptr<Operator> make_alibi_reference(const AlibiOptions& options) {
  return std::make_unique<AlibiReference>(options);
}

}  // namespace attend
