// What a call of the backward pass must hold, checked before anything is written.
#include <iterator>
#include <tuple>
#include <utility>

#include "attend/tensor/error.h"
#include "exact/problem.h"

namespace attend::exact {

void check_gradients(const Problem& p, const Qkv& in, const AttnOut& forward, const AttnOutGrad& grad_out,
                     const AttnGrad& grad_in, std::string_view op) {
  const Variant& v = p.variant;
  auto refuse = [&](std::string_view argument, std::string_view rule) {
    throw Error(ErrorKind::kArgument, op, argument, "", rule);
  };
  if (!in.keys.empty()) refuse("k", "must be an array, not key views");
  if (!p.softmax() || v.final_weight) refuse("variant", "must be a softmax of one pass");
  if (v.score && !v.score_slope) refuse("score_slope", "must be given with a score hook");
  if (!forward.out.data || !forward.lse.data) refuse("forward", "must hold out and lse");
  if (!grad_out.out.data && !grad_out.lse.data) refuse("grad_out", "must hold a gradient of out or of lse");
  check_outputs(p, in, forward, op);
  const std::tuple<std::string_view, const View*, const View*> pairs[] = {
      {"gradient of out", &grad_out.out, &forward.out},
      {"gradient of lse", &grad_out.lse, &forward.lse},
      {"gradient of q", &grad_in.q, &in.q},
      {"gradient of k", &grad_in.k, &in.k},
      {"gradient of v", &grad_in.v, &in.v},
      {"gradient of bias", &grad_in.bias, &in.bias},
      {"gradient of sink_logits", &grad_in.sink_logits, &in.sink_logits}};
  for (const auto& [name, gradient, of] : pairs) {
    if (!gradient->data) continue;
    if (!of->data) refuse(name, "must not be asked for without the input");
    check_like(*gradient, *of, name, op);
  }
  const std::pair<std::string_view, const View*> written[] = {{"gradient of q", &grad_in.q},
                                                              {"gradient of k", &grad_in.k},
                                                              {"gradient of v", &grad_in.v},
                                                              {"gradient of bias", &grad_in.bias},
                                                              {"gradient of sink_logits", &grad_in.sink_logits}};
  const std::pair<std::string_view, const View*> read[] = {{"q", &in.q},
                                                           {"k", &in.k},
                                                           {"v", &in.v},
                                                           {"bias", &in.bias},
                                                           {"sink_logits", &in.sink_logits},
                                                           {"documents", &in.documents},
                                                           {"q_positions", &in.q_positions},
                                                           {"kv_lens", &in.kv_lens},
                                                           {"out", &forward.out},
                                                           {"lse", &forward.lse},
                                                           {"gradient of out", &grad_out.out},
                                                           {"gradient of lse", &grad_out.lse}};
  for (size_t i = 0; i < std::size(written); ++i) {
    for (const auto& [name, view] : read) require_apart(op, written[i].first, *written[i].second, name, *view);
    for (size_t j = 0; j < i; ++j)
      require_apart(op, written[i].first, *written[i].second, written[j].first, *written[j].second);
  }
}

}  // namespace attend::exact
