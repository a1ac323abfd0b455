#include "attend/exact/attention_operator.h"

#include <algorithm>
#include <cmath>

#include "attend/tensor/error.h"
#include "exact/problem.h"
#include "exact/score_bound.h"

namespace attend {
namespace {

void require_known(const Tensors& tensors, std::span<const Port> ports, std::string_view op) {
  for (const auto& [name, arg] : tensors)
    if (std::none_of(ports.begin(), ports.end(),
                     [known = std::string_view(name)](const Port& port) { return port.name == known; }))
      throw Error(ErrorKind::kArgument, op, "port", name, "is not one of this operator's");
}

}  // namespace

SoftmaxOptions softmax_options(const Spec& spec) {
  auto has = [&](std::string_view name) { return spec.find(name) != nullptr; };
  SoftmaxOptions o;
  if (has("causal")) o.causal = spec.flag("causal");
  if (has("scale")) o.scale = spec.real("scale");
  if (has("window")) o.window = spec.integer("window");
  if (has("sinks")) o.sinks = spec.integer("sinks");
  if (has("prefix")) o.prefix = spec.integer("prefix");
  if (has("softcap")) o.softcap = spec.real("softcap");
  if (has("compute")) o.compute = compute_of(spec.text("compute"));
  return o;
}

View array(const Tensors& tensors, std::string_view name, std::string_view op) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) return {};
  if (const View* view = std::get_if<View>(&found->second)) return *view;
  throw Error(ErrorKind::kArgument, op, name, "key views", "must be an array");
}

bound::SoftmaxNorms softmax_norms(const Spec& spec, const Tensors& in) {
  const SoftmaxOptions o = softmax_options(spec);
  const View q = array(in, "q", "bound"), k = array(in, "k", "bound");
  const int64_t d = q.shape[3];
  bound::SoftmaxNorms norms{.keys = k.shape[2],
                            .d = d,
                            .query = exact::largest_row(q),
                            .key = exact::largest_row(k),
                            .value = exact::largest(array(in, "v", "bound")),
                            .scale = o.scale == 0 ? 1 / std::sqrt(static_cast<double>(d)) : std::abs(o.scale),
                            .bias = exact::largest(array(in, "bias", "bound")),
                            .softcap = o.softcap};
  if (o.compute == Compute::kBF16) bound::round_to_bf16(norms);
  if (is_int8(o.compute)) bound::round_to_int8(norms);
  if (is_fp8(o.compute)) bound::round_to_e4m3(norms);
  if (o.compute == Compute::kInt8Qk) bound::round_keys_to_int8(norms);
  return norms;
}

double softmax_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  return softmax_bound(softmax_norms(spec, in), in, output);
}

bound::SoftmaxGradientNorms gradient_norms(const bound::SoftmaxNorms& norms, const Tensors& in) {
  const View q = array(in, "q", "bound"), k = array(in, "k", "bound"), v = array(in, "v", "bound");
  return {.forward = norms,
          .rows = q.shape[2] * (q.shape[1] / k.shape[1]),
          .dv = v.shape[3],
          .value = exact::largest_row(v),
          .d_out = exact::largest_row(array(in, "grad out", "bound")),
          .d_lse = exact::largest(array(in, "grad lse", "bound")),
          .q_max = exact::largest(q),
          .k_max = exact::largest(k)};
}

double softmax_bound(const bound::SoftmaxNorms& norms, const Tensors& in, std::string_view output) {
  if (output == "lse") return bound::softmax_lse(norms);
  if (output == "out") return bound::softmax(norms);
  const bound::SoftmaxGradientNorms n = gradient_norms(norms, in);
  const View q = array(in, "q", "bound"), k = array(in, "k", "bound"), bias = array(in, "bias", "bound");
  if (output == "grad q") return bound::softmax_dq(n);
  if (output == "grad k") return bound::softmax_dk(n);
  if (output == "grad v") return bound::softmax_dv(n);
  if (output == "grad bias")
    return bound::softmax_dbias(n,
                                q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] / std::max<int64_t>(1, bias.count()));
  return bound::softmax_dbias(n, q.shape[0] * q.shape[2]);
}

std::map<std::string, TensorSpec, std::less<>> AttentionOperator::infer(const Tensors& in) const {
  const Qkv qkv = inputs(in, 0);
  if (!qkv.keys.empty()) throw Error(ErrorKind::kArgument, op_, "k", "key views", "don't say Dv: give the outputs");
  check(qkv, in);
  const Shape& q = qkv.q.shape;
  std::map<std::string, TensorSpec, std::less<>> specs = {
      {"out", {DType::kF32, 4, {q[0], q[1], q[2], qkv.v.shape[3]}}}};
  for (const Port& port : out_)
    if (port.name == "lse") specs["lse"] = {DType::kF32, 3, {q[0], q[1], q[2]}};
  return specs;
}

void AttentionOperator::forward(const Tensors& in, const Tensors& out, Form form, Context& context) const {
  if (form != Form::kAny && form != Form::kParallel)
    throw Error(ErrorKind::kArgument, op_, "form", "", "must be parallel");
  const AttnOut result = outputs(out);
  attend(inputs(in, width(result)), in, result, context);
}

void AttentionOperator::check(const Qkv& qkv, const Tensors&) const {
  exact::check(qkv, {}, op_);
}

AttnOut AttentionOperator::outputs(const Tensors& out) const {
  require_known(out, out_, op_);
  return {array(out, "out"), array(out, "lse")};
}

Qkv AttentionOperator::inputs(const Tensors& in, int64_t dv) const {
  require_known(in, in_, op_);
  Qkv qkv{.q = array(in, "q")};
  const auto k = in.find("k");
  if (k == in.end()) throw Error(ErrorKind::kArgument, op_, "k", "", "must be given");
  if (const auto* views = std::get_if<std::span<const KeyView>>(&k->second)) {
    qkv.keys = *views;
    qkv.dv = dv;
    if (views->empty()) throw Error(ErrorKind::kArgument, op_, "k", "no key views", "must be one a kv head");
  } else {
    qkv.k = std::get<View>(k->second);
  }
  qkv.v = array(in, "v");
  qkv.kv_lens = array(in, "kv_lens");
  qkv.q_positions = array(in, "q_positions");
  qkv.bias = array(in, "bias");
  qkv.sink_logits = array(in, "sink_logits");
  qkv.documents = array(in, "documents");
  return qkv;
}

}  // namespace attend
