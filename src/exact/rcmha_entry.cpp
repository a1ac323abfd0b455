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
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"};

RcmhaOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale")};
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
    .traits = {.exact_for = "every input", .forms = kForms, .patterns = kPatterns, .same_bits = SameBits::kAny},
    .notes = "Queries come whole: each is convolved with those before it.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "rcmha", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) {
            rcmha_attention(
                qkv,
                {array(in, "kernel_q", "rcmha"), array(in, "kernel_k", "rcmha"), array(in, "kernel_v", "rcmha"),
                 array(in, "shift_q", "rcmha"), array(in, "shift_k", "rcmha"), array(in, "shift_v", "rcmha")},
                {.keys = array(in, "relative_keys", "rcmha"),
                 .content = array(in, "content_bias", "rcmha"),
                 .bias = array(in, "distance_bias", "rcmha")},
                o, out, context);
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
