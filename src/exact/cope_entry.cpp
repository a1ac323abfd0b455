#include "attend/exact/cope.h"
#include "attend/reference/cope.h"
#include "exact/entries.h"
#include "exact/function_operator.h"
#include "exact/score_bound.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {option::kScale};
constexpr Port kIn[] = {
    port::kQ,
    port::kK,
    port::kV,
    {"embeddings", "P D", "f32", true, "of the positions 0 .. P - 1"},
};
constexpr Port kOut[] = {port::kOut, port::kLse};
constexpr Paper kPapers[] = {
    {"Contextual Position Encoding: Learning to Count What's Important", "2405.18719", ""},
};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"causal", "self", "grouped"};

CopeOptions options_from(const Spec& spec) {
  return {.scale = spec.real("scale")};
}

// A gate moves by a quarter of its score's error and 7 epsilon, a count by that of all keys and one rounding each of a
// number below P, the interpolated product by twice its magnitude times that.
double cope_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  const bound::SoftmaxNorms norms = softmax_norms(spec, in);
  const View embeddings = array(in, "embeddings", "bound");
  const double z = norms.scale * norms.query * exact::largest_row(embeddings), keys = static_cast<double>(norms.keys);
  const double gate = bound::softmax_score(norms) / 4 + 7 * bound::kEpsilon;
  const double count = keys * (gate + bound::kEpsilon * std::min(keys, static_cast<double>(embeddings.shape[0])));
  return exact::scored(norms, z, 2 * z * count + bound::gamma(norms.d + 8) * z, output);
}

constexpr Entry kEntry = {
    .kind = Kind::kMechanism,
    .name = "cope",
    .room = "exact",
    .equation =
        "w[i,.] = softmax over j <= i of scale * (q[i].k[j] + z(p[i,j])),  p[i,j] = min(sum of g[i,t] over j <= t "
        "<= i, P - 1)\ng[i,j] = sigmoid(scale * q[i].k[j]),  z(p) = q[i].e[p] at integers, linear between",
    .summary = "distance counts only the tokens that a gate lets count",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input", .forms = kForms, .patterns = kPatterns, .same_bits = SameBits::kAny},
    .notes = "Always causal. Gates use the keys; separate gate keys (section 4 of the paper) are not offered.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "cope", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) {
            cope_attention(qkv, array(in, "embeddings", "cope"), o, out, context);
          });
    },
    .reference = [](const Spec& spec) { return make_cope_reference(options_from(spec)); },
    .bound = cope_bound,
    .axis = [](std::string_view name, const Spec&, const Sizes&) -> int64_t { return name == "P" ? 16 : -1; },
};

}  // namespace

void register_cope(Registry& registry) {
  registry.add(kEntry);
}

}  // namespace attend
