#pragma once
// A base for operators whose arguments are those of softmax attention and perhaps some more: it knows the common
// ports, turns them into `Qkv` and `AttnOut`, and refuses what no port is called.
#include <span>
#include <string>

#include "attend/exact/softmax.h"
#include "attend/tensor/bound.h"
#include "attend/tensor/operator.h"

namespace attend {

// Ports that entries can list.
namespace port {
inline constexpr Port kQ = {"q", "B Hq Tq D", "f32", true, "queries"};
inline constexpr Port kK = {"k", "B Hkv Tk D", "f32 f16 bf16", true, "keys, or a store's key views"};
inline constexpr Port kV = {"v", "B Hkv Tk Dv", "f32 f16 bf16", false, "values; absent where k is key views"};
inline constexpr Port kKvLens = {"kv_lens", "B", "i32 i64", false, "keys beyond a length don't exist"};
inline constexpr Port kQPositions = {"q_positions", "B Tq", "i32", false,
                                     "positions of the queries; the last query sits on the last key if absent"};
inline constexpr Port kBias = {"bias", "B Hq Tq Tk", "f32", false,
                               "added to the scores; axes of 1 are repeated; -inf hides a key"};
inline constexpr Port kSinkLogits = {"sink_logits", "Hq", "f32", false,
                                     "a learned logit a head that joins the denominator"};
inline constexpr Port kDocuments = {"documents", "B T", "i32", false,
                                    "document of each position, non-decreasing; only keys of one's own are seen"};
inline constexpr Port kOut = {"out", "B Hq Tq Dv", "f32", true, "weighted values"};
inline constexpr Port kLse = {"lse", "B Hq Tq", "f32", false, "natural log of the softmax denominator"};
}  // namespace port

namespace option {
inline constexpr double kMaxTokens = 1e15;
inline constexpr Option kCausal = {
    "causal", "", "a query sees no key after its own position", "false", OptionType::kFlag, 0, 0};
inline constexpr Option kScale = {
    "scale", "", "multiplies the dot products; 0 means 1/sqrt(D)", "0", OptionType::kReal, -1e30, 1e30};
inline constexpr Option kWindow = {
    "window", "tokens", "keys a query sees, its own counted; 0 means all", "0", OptionType::kInteger, 0, kMaxTokens};
inline constexpr Option kSinks = {
    "sinks", "tokens", "first keys that a window keeps visible", "0", OptionType::kInteger, 0, kMaxTokens};
inline constexpr Option kPrefix = {"prefix", "tokens",  "first keys that every query sees", "0", OptionType::kInteger,
                                   0,        kMaxTokens};
inline constexpr Option kSoftcap = {
    "softcap", "", "scores become softcap * tanh(score / softcap); 0 means none", "0", OptionType::kReal, 0, 1e30};
inline constexpr Option kCompute = {"compute",
                                    "",
                                    "arithmetic of the products: what they multiply is rounded to it",
                                    "f32",
                                    OptionType::kText,
                                    0,
                                    0,
                                    "f32|bf16|int8|fp8|int8-hadamard|fp8-hadamard|int8-qk"};
}  // namespace option

// The options of `spec` that softmax attention has; others keep their defaults.
SoftmaxOptions softmax_options(const Spec& spec);

// The array of a port, or a view without data. Throws Error(kArgument) where it is key views.
View array(const Tensors& tensors, std::string_view name, std::string_view op);

// Norms of the inputs for bound::softmax: an entry's bound() starts from these.
bound::SoftmaxNorms softmax_norms(const Spec& spec, const Tensors& in);
// The bound of plain softmax attention: `out`, `lse`, and gradients.
double softmax_bound(const Spec& spec, const Tensors& in, std::string_view output);
// The same of norms that hold what is added to the scores, too; what gradients have to do with beside them.
double softmax_bound(const bound::SoftmaxNorms& norms, const Tensors& in, std::string_view output);
bound::SoftmaxGradientNorms gradient_norms(const bound::SoftmaxNorms& norms, const Tensors& in);

class AttentionOperator : public Operator {
 public:
  // `op` names the mechanism in messages; `in` and `out` are the entry's ports. All must outlive the operator.
  AttentionOperator(std::string_view op, std::span<const Port> in, std::span<const Port> out)
      : op_(op), in_(in), out_(out) {}

  // `out` and, where it is a port, `lse`.
  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override;
  void forward(const Tensors& in, const Tensors& out, Form form, Context& context) const final;

 protected:
  // Checks all arguments, then computes. `in` still holds every port.
  virtual void attend(const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) const = 0;
  // What attend() would refuse, without computing.
  virtual void check(const Qkv& qkv, const Tensors& in) const;

  View array(const Tensors& tensors, std::string_view name) const { return attend::array(tensors, name, op_); }
  Qkv inputs(const Tensors& in, int64_t dv) const;
  AttnOut outputs(const Tensors& out) const;
  // The width of the values, where the output tells.
  static int64_t width(const AttnOut& out) { return out.out.rank == 4 ? out.out.shape[3] : 0; }
  std::string_view op() const { return op_; }

 private:
  std::string_view op_;
  std::span<const Port> in_, out_;
};

}  // namespace attend
