#pragma once
// Operators of mechanisms that are one function.
#include <memory>
#include <type_traits>
#include <utility>

#include "attend/exact/attention_operator.h"

namespace attend::exact {

// For mechanisms without a backward pass.
struct NoBackward {};

// An operator from a function of the arguments that softmax attention has, and of all ports; the backward pass, where
// there is one, is back(arguments, ports, outputs, gradients of outputs, gradients of ports, context).
template <class F, class Back = NoBackward>
class FunctionOperator final : public AttentionOperator {
 public:
  FunctionOperator(std::string_view op, std::span<const Port> in, std::span<const Port> out, F f, Back back)
      : AttentionOperator(op, in, out), f_(std::move(f)), back_(std::move(back)) {}

  void backward(const Tensors& in, const Tensors& out, const Tensors& grad_out, const Tensors& grad_in,
                Context& context) const override {
    if constexpr (std::is_same_v<Back, NoBackward>) {
      Operator::backward(in, out, grad_out, grad_in, context);
    } else {
      back_(inputs(in, 0), in, outputs(out), AttnOutGrad{array(grad_out, "out"), array(grad_out, "lse")}, grad_in,
            context);
    }
  }

 protected:
  void attend(const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) const override {
    f_(qkv, in, out, context);
  }

 private:
  F f_;
  Back back_;
};

template <class F, class Back = NoBackward>
std::unique_ptr<Component> function_operator(std::string_view op, std::span<const Port> in, std::span<const Port> out,
                                             F f, Back back = {}) {
  return std::make_unique<FunctionOperator<F, Back>>(op, in, out, std::move(f), std::move(back));
}

}  // namespace attend::exact
