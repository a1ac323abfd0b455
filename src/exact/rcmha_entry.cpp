#include <algorithm>
#include <cmath>
#include <string>

#include "attend/exact/rcmha.h"
#include "attend/reference/rcmha.h"
#include "exact/entries.h"
#include "exact/function_operator.h"
#include "exact/score_bound.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {option::kCausal, option::kScale};
constexpr Port kIn[] = {
    port::kQ,
    port::kK,
    port::kV,
    {"kernel_q", "W D", "f32", true, "taps of the convolution of queries, the last one for the token itself"},
    {"kernel_k", "W D", "f32", true, "taps of the convolution of keys"},
    {"kernel_v", "W Dv", "f32", true, "taps of the convolution of values"},
    {"shift_q", "D", "f32", false, "added to convolved queries"},
    {"shift_k", "D", "f32", false, "added to convolved keys"},
    {"shift_v", "Dv", "f32", false, "added to convolved values"},
    {"relative_keys", "Hq P D", "f32", true, "of each distance -K..K; beyond K the last counts"},
    {"content_bias", "Hq D", "f32", false, "added to queries that meet keys"},
    {"distance_bias", "Hq P", "f32", false, "of each distance, scaled with the scores"},
};
constexpr Port kOut[] = {port::kOut, port::kLse};
constexpr Paper kPapers[] = {
    {"RCMHA: Relative Convolutional Multi-Head Attention for Natural Language Modelling", "2308.03429", "081"},
};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"},
                           kGradients[] = {
                               "q",       "k",       "v",       "kernel_q",      "kernel_k",     "kernel_v",
                               "shift_q", "shift_k", "shift_v", "relative_keys", "content_bias", "distance_bias"};

RcmhaOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale")};
}

RcmhaKernels kernels(const Tensors& in) {
  auto port = [&](std::string_view name) { return array(in, name, "rcmha"); };
  return {port("kernel_q"), port("kernel_k"), port("kernel_v"), port("shift_q"), port("shift_k"), port("shift_v")};
}

RelativeTables tables(const Tensors& in) {
  auto port = [&](std::string_view name) { return array(in, name, "rcmha"); };
  return {.keys = port("relative_keys"), .content = port("content_bias"), .bias = port("distance_bias")};
}

// What relative attention's gradients of convolved queries, keys and values err by, and through the convolutions: a
// gradient of x sums W products with taps, one of a tap as many as there are rows.
double gradient_bound(const bound::SoftmaxNorms& norms, const Tensors& in, std::string_view port, double query,
                      double key) {
  auto view = [&](std::string_view name) { return array(in, name, "bound"); };
  bound::SoftmaxGradientNorms n = gradient_norms(norms, in);
  const View q = view("q"), k = view("k"), table = view("relative_keys");
  // The elements and rows are those of convolved arrays, which are no longer than these.
  n.q_max = query, n.k_max = key, n.value = std::sqrt(static_cast<double>(n.dv)) * norms.value;
  const double far = exact::largest(table), content = exact::largest(view("content_bias"));
  const int64_t width = view("kernel_q").shape[0], rows = q.shape[0] * q.shape[2], heads_k = k.shape[0] * k.shape[1],
                shared = view(port).shape[0] == 1 ? q.shape[1] : 1, chain = norms.keys + table.shape[1] + rows + 8;
  const double all = static_cast<double>(rows * shared);
  if (port == "relative_keys") return exact::rows_gradient(n, all, norms.scale * query, chain);
  if (port == "content_bias") return exact::rows_gradient(n, all, norms.scale * key, chain);
  if (port == "distance_bias") return exact::rows_gradient(n, all, norms.scale, chain);
  const char of = port.back();
  const double back = of == 'q'   ? exact::rows_gradient(n, 1, norms.scale * (key + far), chain + width)
                      : of == 'k' ? exact::rows_gradient(n, static_cast<double>(n.rows),
                                                         norms.scale * (query + content), n.rows + width)
                                  : exact::rows_weights(n, static_cast<double>(n.rows), n.d_out, n.rows + width);
  if (port.size() == 1) return static_cast<double>(width) * exact::largest(view("kernel_" + std::string(port))) * back;
  const double terms = static_cast<double>(of == 'q' ? q.shape[0] * q.shape[1] * q.shape[2] : heads_k * k.shape[2]);
  return terms * back * (port.starts_with("shift") ? 1 : exact::largest(view(port.substr(port.size() - 1)))) + 1e-37;
}

// A convolved row is no longer than the sum over taps of their largest magnitude times the longest row, and moves by
// gamma(W + 2) of that.
double rcmha_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  auto get = [&](std::string_view name) { return array(in, name, "bound"); };
  auto convolved = [&](std::string_view kernel_name, double row, double shift) {
    const View kernel = get(kernel_name);
    double sum = 0;
    for (int64_t w = 0; w < kernel.shape[0]; ++w) {
      double largest = 0;
      for (int64_t c = 0; c < kernel.shape[1]; ++c)
        largest = std::max(largest, std::abs(value_at(kernel, w * kernel.shape[1] + c)));
      sum += largest;
    }
    return sum * row + shift;
  };
  bound::SoftmaxNorms norms = softmax_norms(spec, in);
  const double gamma = bound::gamma(get("kernel_q").shape[0] + 2);
  norms.query = convolved("kernel_q", norms.query, exact::largest_row(get("shift_q")));
  norms.key = convolved("kernel_k", norms.key, exact::largest_row(get("shift_k")));
  norms.value = convolved("kernel_v", norms.value, exact::largest(get("shift_v")));
  const double second = norms.scale * norms.query * exact::largest_row(get("relative_keys")),
               bias = norms.scale * exact::largest(get("distance_bias"));
  norms.query += exact::largest_row(get("content_bias"));
  const double first = norms.scale * norms.query * norms.key;
  const double error = (bound::gamma(norms.d + 4) + gamma) * second + (2 * gamma + 2 * bound::kEpsilon) * first +
                       3 * bound::kEpsilon * bias;
  if (output.starts_with("grad"))
    return gradient_bound(exact::with_scores(norms, second + bias, error), in, output.substr(5), norms.query,
                          norms.key);
  return exact::scored(norms, second + bias, error, output) + (output == "out" ? gamma * norms.value : 0);
}

constexpr Entry kEntry = {
    .kind = Kind::kMechanism,
    .name = "rcmha",
    .room = "exact",
    .equation =
        "x~[t] = sum_w kernel_x[w] x[t - (W - 1) + w] + shift_x  for x = q, k, v\n"
        "w[i,.] = softmax over visible j of scale * ((q~[i] + content[h]).k~[j] + q~[i].keys[h,r] + bias[h,r]),  "
        "o[i] = sum_j w[i,j] v~[j]",
    .summary = "relative attention of depthwise-convolved queries, keys and values",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes = "Queries come whole: each is convolved with those before it.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "rcmha", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) {
            rcmha_attention(qkv, kernels(in), tables(in), o, out, context);
          },
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut&, const AttnOutGrad& grad_out,
                                   const Tensors& grad_in, Context& context) {
            auto to = [&](std::string_view name) { return array(grad_in, name, "rcmha"); };
            rcmha_attention_backward(qkv, kernels(in), tables(in), o, grad_out,
                                     {to("q"), to("k"), to("v"), kernels(grad_in), to("relative_keys"),
                                      to("content_bias"), to("distance_bias")},
                                     context);
          });
    },
    .reference = [](const Spec& spec) { return make_rcmha_reference(options_from(spec)); },
    .bound = rcmha_bound,
    .axis = [](std::string_view name, const Spec&, const Sizes& sizes) -> int64_t {
      if (name == "W") return 3;
      return name == "P" ? sizes.tk / 3 * 2 + 1 : -1;
    },
};

}  // namespace

void register_rcmha(Registry& registry) {
  registry.add(kEntry);
}

}  // namespace attend
