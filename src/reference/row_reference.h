#pragma once
// For definitions that say how the scores of a row become weights: scores of visible keys, then the weighted sum.
#include <vector>

#include "reference/softmax_over.h"

namespace attend::reference {

struct Row {
  int64_t b, h, i, position;
  std::vector<int64_t> seen;   // visible keys, ascending
  std::vector<double> weight;  // their scores, and then their weights
};

class RowReference : public Operator {
 public:
  RowReference(bool causal, double scale) : causal_(causal), scale_(scale) {}  // scale 0: 1/sqrt(D)

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override;
  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override;
  // Of q, k, v and bias, where pull() is defined.
  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override;

 protected:
  // Turns scores into weights. Rows that see no key are not asked for: their output is 0.
  virtual void weigh(const Tensors& in, Row& row) const = 0;
  // Gradients of a row's weights to those of its scores, d_score[j] = sum over t of gradient[t] d weight[t] / d score[j].
  // Throws Error(kUnsupported) unless overridden.
  virtual void pull(const Tensors& in, const Row& row, const std::vector<double>& gradient,
                    std::vector<double>& d_score) const;
  // The score of a pair; the scaled dot product unless overridden.
  virtual double score(const Tensors& in, const Row& row, const Keys& keys, int64_t j) const;
  // What the gradient `d` of that score adds to those of q and k.
  virtual void add_score(const Tensors& in, const Query& at, int64_t j, double d, const View& dq, const View& dk) const;
  double scale(const Tensors& in) const;

 private:
  // Scores of what the row sees, then weights.
  void fill(const Tensors& in, const Keys& keys, Row& row) const;

  bool causal_;
  double scale_;
};

}  // namespace attend::reference
