// The registry's entry for reversed.
#include <cmath>
#include <utility>

#include "attend/exact/reversed.h"
#include "attend/reference/reversed.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {option::kScale};
constexpr Port kIn[] = {port::kQ,
                        port::kK,
                        {"v", "B Hkv Tk Dv", "f32 f16 bf16", true, "values"},
                        {"select", "B Hq Tk", "f32", false, "share of a head in what a key sends", 0.01, 1},
                        {"message", "B Tk", "f32", false, "share of its value that a key sends", 0.01, 1}};
constexpr Port kOut[] = {port::kOut};
constexpr Paper kPapers[] = {
    {"Visual Dependency Transformers: Dependency Tree Emerges from Reversed Attention", "2304.03282", "013"}};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "self", "cross", "grouped"},
                           kGradients[] = {"q", "k", "v", "select", "message"};

ReversedOptions options_from(const Spec& spec) {
  return {.scale = spec.real("scale")};
}

// Keys ask, queries are the keys, and the gradient of out is the values.
double gradient_bound(const bound::SoftmaxNorms& norms, const Tensors& in, std::string_view port) {
  const View q = array(in, "q", "bound"), k = array(in, "k", "bound"), v = array(in, "v", "bound"),
             d_out = array(in, "grad out", "bound"), select = array(in, "select", "bound"),
             message = array(in, "message", "bound");
  bound::SoftmaxNorms turned = norms;
  turned.keys = q.shape[2];
  std::swap(turned.query, turned.key);
  turned.value = exact::largest(d_out);
  const double of_head = select.data ? exact::largest(select) : 1, of_key = message.data ? exact::largest(message) : 1,
               gate = of_head * of_key, value = exact::largest_row(v), received = exact::largest_row(d_out);
  const bound::SoftmaxGradientNorms n{.forward = turned,
                                      .rows = k.shape[2],
                                      .dv = v.shape[3],
                                      .value = received,
                                      .d_out = gate * value,
                                      .q_max = exact::largest(k),
                                      .k_max = exact::largest(q)};
  const double heads = static_cast<double>(q.shape[1]), group = heads / static_cast<double>(k.shape[1]);
  // Gates times values are rounded twice.
  const double rounded = 4 * bound::kEpsilon * n.forward.scale * bound::softmax_slope(n);
  if (port == "q") return bound::softmax_dk(n) + static_cast<double>(n.rows) * n.q_max * rounded;
  if (port == "k")
    return group * (bound::softmax_dq(n) +
                    n.k_max * (rounded + bound::gamma(q.shape[1]) * n.forward.scale * bound::softmax_slope(n)));
  const double error = bound::softmax(turned), chain = bound::gamma(q.shape[1] + 4);
  if (port == "v") return group * gate * (error + chain * turned.value) + 1e-37;
  const double dot = std::sqrt(static_cast<double>(n.dv)) * value * error + bound::gamma(n.dv + 2) * value * received;
  return (port == "select" ? of_key : heads * of_head) * (dot + chain * value * received) + 1e-37;
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  bound::SoftmaxNorms n = softmax_norms(spec, in);
  if (output != "out") return gradient_bound(n, in, output.substr(5));
  const int64_t queries = array(in, "q", "bound").shape[2], keys = n.keys;
  // Each key gives at most its whole value to one query.
  n.keys = std::max(queries, keys);
  n.bias = n.scale * n.query * n.key + std::log(static_cast<double>(n.keys) + 1) + 10;  // gates are at least 0.01^2
  const double relative = 3 * bound::softmax_lse(n) + 2 * bound::softmax_weight(n);
  return n.value * static_cast<double>(keys) * (relative + 2 * exact::sum_error(n.keys)) + 1e-37;
}

constexpr Entry kReversed = {
    .kind = Kind::kMechanism,
    .name = "reversed",
    .room = "exact",
    .equation = "o[i] = sum_j w[i,j] select[h,j] message[j] v[j],  w[.,j] = softmax over i of scale * q[i].k[j]",
    .summary = "attention normalised over queries: keys send, queries receive",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes = "The mechanism; a tree induced by a trained model needs training. A key sees all queries: no causal form.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "reversed", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) {
            reversed_attention(qkv, array(in, "select", "reversed"), array(in, "message", "reversed"), o, out.out,
                               context);
          },
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut&, const AttnOutGrad& grad_out,
                                   const Tensors& grad_in, Context& context) {
            auto to = [&](std::string_view name) { return array(grad_in, name, "reversed"); };
            reversed_attention_backward(qkv, array(in, "select", "reversed"), array(in, "message", "reversed"), o,
                                        grad_out.out, {to("q"), to("k"), to("v"), to("select"), to("message")},
                                        context);
          });
    },
    .reference = [](const Spec& spec) { return make_reversed_reference(options_from(spec)); },
    .bound = error_bound,
    .cascade =
        "s[i,j] = q[i,d] * k[j,d]\n"
        "m[j] = max_i s[i,j]\n"
        "p[i,j] = exp(s[i,j] - m[j])\n"
        "z[j] = sum_i p[i,j]\n"
        "o[i,c] = sum_j p[i,j] / z[j] * gate[j] * v[j,c]",
    .passes = 2,
};

}  // namespace

void register_reversed(Registry& registry) {
  registry.add(kReversed);
}

}  // namespace attend
