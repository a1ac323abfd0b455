#pragma once
// Operators of mechanisms that are one function.
#include <memory>
#include <utility>

#include "attend/exact/attention_operator.h"

namespace attend::exact {

// An operator from a function of the arguments that softmax attention has, and of all ports.
template <class F>
class FunctionOperator final : public AttentionOperator {
 public:
  FunctionOperator(std::string_view op, std::span<const Port> in, std::span<const Port> out, F f)
      : AttentionOperator(op, in, out), f_(std::move(f)) {}

 protected:
  void attend(const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) const override {
    f_(qkv, in, out, context);
  }

 private:
  F f_;
};

template <class F>
std::unique_ptr<Component> function_operator(std::string_view op, std::span<const Port> in, std::span<const Port> out,
                                             F f) {
  return std::make_unique<FunctionOperator<F>>(op, in, out, std::move(f));
}

}  // namespace attend::exact
