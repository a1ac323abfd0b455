// The registry's entry for tensor.
#include "attend/exact/tensor.h"
#include "attend/reference/tensor.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {
    option::kCausal,
    option::kScale,
    {"order", "", "0: exact; else exp is its Taylor polynomial of degree 2 order", "0", OptionType::kInteger, 0, 8}};
constexpr Port kIn[] = {port::kQ,
                        port::kK,
                        {"k2", "B Hkv Tk D", "f32 f16 bf16", true, "second keys"},
                        {"v", "B Hkv Tk Dv", "f32 f16 bf16", true, "values"},
                        {"v2", "B Hkv Tk Dv", "f32 f16 bf16", true, "second values"}};
constexpr Port kOut[] = {port::kOut};
constexpr Paper kPapers[] = {
    {"How to Capture Higher-order Correlations? Generalizing Matrix Softmax Attention to Kronecker Computation",
     "2310.04064", "034"}};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"},
                           kGradients[] = {"q", "k", "k2", "v", "v2"};

TensorOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale"), .order = spec.integer("order")};
}

// Weights of all pairs of a query sum to 1, and err by `relative`; a key gathers from all queries of its heads.
double gradient_bound(const bound::SoftmaxNorms& n, const Tensors& in, std::string_view port, double first,
                      double relative) {
  const View q = array(in, "q", "tensor"), k = array(in, "k", "tensor"), k2 = array(in, "k2", "tensor"),
             v2 = array(in, "v2", "tensor"), d_out = array(in, "grad out", "tensor");
  const double rows = static_cast<double>(q.shape[2] * (q.shape[1] / k.shape[1])), loss = exact::largest_row(d_out),
               slope = 2 * loss * first * exact::largest_row(v2),
               all = relative + bound::gamma(static_cast<int64_t>(rows) + n.keys + v2.shape[3] + 16),
               x = exact::largest(q), y = exact::largest(k), z = exact::largest(k2);
  if (port == "q") return n.scale * y * z * slope * all + 1e-37;
  if (port == "k") return n.scale * x * z * rows * slope * all + 1e-37;
  if (port == "k2") return n.scale * x * y * rows * slope * all + 1e-37;
  return rows * exact::largest(d_out) * (port == "v" ? exact::largest(v2) : first) * all + 1e-37;
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  const View k2 = array(in, "k2", "tensor"), v2 = array(in, "v2", "tensor");
  bound::SoftmaxNorms n = softmax_norms(spec, in);
  const double first = n.value, keys = exact::largest(array(in, "k", "tensor"));
  const bound::SoftmaxNorms second = exact::norms_of(spec, array(in, "q", "tensor"), k2, v2);
  n.query = second.query * keys * (1 + bound::kEpsilon);
  n.key = second.key;
  n.value = second.value;
  n.d += 1;  // the product q * k[j] rounds once
  if (spec.integer("order") > 0) {
    // In double: the sums of monomials lose at most the ratio of P(|s|) to the least P, which is above 1/4.
    double term = 1, most = 1;
    for (int64_t m = 1; m <= 2 * spec.integer("order"); ++m) {
      term *= n.scale * std::sqrt(static_cast<double>(n.d)) * n.query * n.key / static_cast<double>(m);
      most += term;
    }
    const double steps = 2 * static_cast<double>(n.keys) + 1e4;
    // The slope of P is at most `most`, and the least P above 1/4.
    if (output != "out")
      return gradient_bound(n, in, output.substr(5), first,
                            4 * most * (20 * bound::kEpsilon + 64 * steps * 0x1p-53 * most * most));
    return first * n.value * (2 * bound::kEpsilon + 8 * steps * 0x1p-53 * most * most) + 1e-37;
  }
  const double weight = 2 * bound::softmax_lse(n) + 8 * bound::kEpsilon + bound::gamma(n.keys + 8);
  if (output != "out")
    return gradient_bound(n, in, output.substr(5), first,
                          2 * weight + 4 * bound::softmax_weight(n) + 2 * exact::sum_error(n.keys));
  return first * bound::softmax(n) + first * n.value * (weight + 2 * bound::kEpsilon) + 1e-37;
}

constexpr Entry kTensor = {
    .kind = Kind::kMechanism,
    .name = "tensor",
    .room = "exact",
    .equation =
        "o[i] = sum_{j,l} w[i,j,l] (v[j] * v2[l]),  w[i,.,.] = softmax over visible j, l of scale * sum_c q[i,c] "
        "k[j,c] k2[l,c]\n"
        "order > 0: exp becomes its Taylor polynomial of degree 2 order, and the cost linear in Tk",
    .summary = "attention to pairs of tokens, exact or by a polynomial",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input with order = 0; bounded entries otherwise",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes = "Cubic with order = 0. The polynomial form takes C(D + 2 order, 2 order) * Dv sums: for narrow heads.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "tensor", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) {
            tensor_attention(
                {.q = qkv.q, .k = qkv.k, .k2 = array(in, "k2", "tensor"), .v = qkv.v, .v2 = array(in, "v2", "tensor")},
                o, out.out, context);
          },
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut&, const AttnOutGrad& grad_out,
                                   const Tensors& grad_in, Context& context) {
            auto to = [&](std::string_view name) { return array(grad_in, name, "tensor"); };
            tensor_attention_backward(
                {.q = qkv.q, .k = qkv.k, .k2 = array(in, "k2", "tensor"), .v = qkv.v, .v2 = array(in, "v2", "tensor")},
                o, grad_out.out, {to("q"), to("k"), to("k2"), to("v"), to("v2")}, context);
          });
    },
    .reference = [](const Spec& spec) { return make_tensor_reference(options_from(spec)); },
    .bound = error_bound,
    .refuses = [](const Spec& spec, const Sizes& sizes) -> std::string_view {
      const int64_t features = tensor_features(sizes.d, spec.integer("order"));
      if (features < 0 || features * sizes.dv > (int64_t{1} << 20)) return "has too many monomials";
      const double triples =
          static_cast<double>(sizes.tq) * static_cast<double>(sizes.tk) * static_cast<double>(sizes.tk);
      return spec.integer("order") > 0 || triples < 0x1p29 ? "" : "is cubic: such a text takes minutes";
    },
    .pairs =
        [](const Spec& spec, const Sizes& sizes) {
          // With every pair of keys that it sees; of the polynomial, features times values in units of a pair.
          double pairs = 0;
          for (int64_t i = 0; i < sizes.tq; ++i) {
            const double seen = static_cast<double>(
                spec.flag("causal") ? std::clamp<int64_t>(i + sizes.tk - sizes.tq + 1, 0, sizes.tk) : sizes.tk);
            pairs += seen * seen;
          }
          if (spec.integer("order") == 0) return pairs;
          const double features = static_cast<double>(tensor_features(sizes.d, spec.integer("order")));
          return features * static_cast<double>((sizes.tq + 2 * sizes.tk) * sizes.dv) /
                 static_cast<double>(sizes.d + sizes.dv);
        },
};

}  // namespace

void register_tensor(Registry& registry) {
  registry.add(kTensor);
}

}  // namespace attend
