#include "exact/score_gradients.h"

#include <string>
#include <utility>

#include "attend/tensor/error.h"

namespace attend::exact {
namespace {

// `count` entries of `axis` from `first` on.
View part(View v, int axis, int64_t first, int64_t count) {
  if (!v.data || v.shape[axis] == 1) return v;
  v.data = v.as<char>() + first * v.stride[axis] * size_of(v.type);
  v.shape[axis] = count;
  return v;
}

}  // namespace

void check_parameter_gradients(std::string_view op, const BackwardCall& call, const AttnGrad& grad_in,
                               std::span<const ParameterGradient> parameters) {
  std::vector<std::pair<std::string_view, const View*>> others = {{"q", &call.in.q},
                                                                  {"k", &call.in.k},
                                                                  {"v", &call.in.v},
                                                                  {"kv_lens", &call.in.kv_lens},
                                                                  {"q_positions", &call.in.q_positions},
                                                                  {"bias", &call.in.bias},
                                                                  {"sink_logits", &call.in.sink_logits},
                                                                  {"documents", &call.in.documents},
                                                                  {"out", &call.forward.out},
                                                                  {"lse", &call.forward.lse},
                                                                  {"gradient of out", &call.grad_out.out},
                                                                  {"gradient of lse", &call.grad_out.lse},
                                                                  {"gradient of q", &grad_in.q},
                                                                  {"gradient of k", &grad_in.k},
                                                                  {"gradient of v", &grad_in.v},
                                                                  {"gradient of bias", &grad_in.bias},
                                                                  {"gradient of sink_logits", &grad_in.sink_logits}};
  for (const ParameterGradient& p : parameters) others.emplace_back(p.name, &p.parameter);
  for (const ParameterGradient& p : parameters) {
    if (!p.gradient.data) continue;
    const std::string name = "gradient of " + std::string(p.name);
    if (!p.parameter.data)
      throw Error(ErrorKind::kArgument, op, name, "", "must not be asked for without the parameter");
    check_like(p.gradient, p.parameter, name, op);
    for (const auto& [other, view] : others) require_apart(op, name, p.gradient, other, *view);
    others.emplace_back("another gradient", &p.gradient);
  }
}

void check_row_gradients(std::string_view op, const Problem& p, const Qkv& in, const AttnOutGrad& grad_out,
                         const AttnGrad& grad_in, std::vector<ParameterGradient> parameters) {
  if (!grad_out.out.data && !grad_out.lse.data)
    throw Error(ErrorKind::kArgument, op, "gradient of out", "null", "must be given");
  check_outputs(p.batch, p.heads, p.queries, p.dv, {grad_out.out, grad_out.lse}, op);
  std::vector<ParameterGradient> all = {{"q", grad_in.q, in.q}, {"k", grad_in.k, in.k}, {"v", grad_in.v, in.v}};
  all.insert(all.end(), parameters.begin(), parameters.end());
  check_parameter_gradients(op, {in, p.options, {}, grad_out, p.variant}, {}, all);
}

std::vector<int32_t> positions_of(const BackwardCall& call, int64_t b) {
  const Problem p = check(call.in, call.options, "score gradients", call.variant);
  std::vector<int32_t> positions;
  for (int64_t i = 0; i < p.queries; ++i) positions.push_back(static_cast<int32_t>(p.position(b, i)));
  return positions;
}

void score_gradients(const BackwardCall& call, int64_t b, int64_t first, int64_t rows,
                     const std::vector<int32_t>& positions, std::vector<float>& to, Context& context) {
  const int64_t heads = call.in.q.shape[1], keys = call.in.k.shape[2];
  auto of_rows = [&](const View& v) { return part(part(v, 0, b, 1), 2, first, rows); };
  Qkv in = call.in;
  in.q = of_rows(in.q);
  in.k = part(in.k, 0, b, 1);
  in.v = part(in.v, 0, b, 1);
  in.kv_lens = part(in.kv_lens, 0, b, 1);
  in.documents = part(in.documents, 0, b, 1);
  in.q_positions =
      dense_view(const_cast<int32_t*>(positions.data() + first), DType::kI32, {1, rows});  // read, never written
  // Zeros that all rows share, or the bias of these rows.
  const int64_t count = heads * rows * keys;
  const bool zeros = !in.bias.data;
  std::vector<float> bias(static_cast<size_t>(zeros ? keys : count), 0.0f);
  if (const View given = of_rows(call.in.bias); given.data) {
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < keys; ++j)
          bias[static_cast<size_t>((h * rows + r) * keys + j)] = *given.at<float>(
              {0, given.shape[1] == 1 ? 0 : h, given.shape[2] == 1 ? 0 : r, given.shape[3] == 1 ? 0 : j});
  }
  in.bias = dense_view(bias.data(), DType::kF32, {1, heads, rows, keys});
  if (zeros) in.bias.stride = {0, 0, 0, 1};
  to.resize(static_cast<size_t>(count));
  softmax_attention_backward(in, call.options, {of_rows(call.forward.out), of_rows(call.forward.lse)},
                             {of_rows(call.grad_out.out), of_rows(call.grad_out.lse)},
                             {.bias = dense_view(to.data(), DType::kF32, {1, heads, rows, keys})}, context,
                             call.variant);
}

}  // namespace attend::exact
