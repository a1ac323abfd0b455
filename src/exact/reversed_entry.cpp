// The registry's entry for reversed.
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
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "self", "cross", "grouped"};

ReversedOptions options_from(const Spec& spec) {
  return {.scale = spec.real("scale")};
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  if (output != "out") return std::numeric_limits<double>::quiet_NaN();
  bound::SoftmaxNorms n = softmax_norms(spec, in);
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
    .traits = {.exact_for = "every input", .forms = kForms, .patterns = kPatterns, .same_bits = SameBits::kAny},
    .notes =
        "The mechanism; a tree induced by a trained model needs training. A key sees all queries: no causal form. "
        "Forward only.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "reversed", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) {
            reversed_attention(qkv, array(in, "select", "reversed"), array(in, "message", "reversed"), o, out.out,
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
