// The registry's entry for dcmha.
#include "attend/exact/dcmha.h"
#include "attend/reference/dcmha.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {option::kCausal, option::kScale};
constexpr Port kIn[] = {port::kQ,
                        port::kK,
                        {"v", "B Hkv Tk Dv", "f32 f16 bf16", true, "values"},
                        {"pre_q1", "B Tq R Hq", "f32", true, "query's factors, in", -0.5, 0.5},
                        {"pre_q2", "B Tq R Hq", "f32", true, "query's factors, out", -0.5, 0.5},
                        {"pre_qd", "B Tq Hq", "f32", true, "query's gates", -0.5, 0.5},
                        {"pre_k1", "B Tk R Hq", "f32", true, "key's factors, in", -0.5, 0.5},
                        {"pre_k2", "B Tk R Hq", "f32", true, "key's factors, out", -0.5, 0.5},
                        {"pre_kd", "B Tk Hq", "f32", true, "key's gates", -0.5, 0.5},
                        {"pre_w", "Hq Hq", "f32", false, "map between heads; the identity if absent", -0.5, 0.5},
                        {"post_q1", "B Tq R Hq", "f32", true, "query's factors, in", -0.5, 0.5},
                        {"post_q2", "B Tq R Hq", "f32", true, "query's factors, out", -0.5, 0.5},
                        {"post_qd", "B Tq Hq", "f32", true, "query's gates", -0.5, 0.5},
                        {"post_k1", "B Tk R Hq", "f32", true, "key's factors, in", -0.5, 0.5},
                        {"post_k2", "B Tk R Hq", "f32", true, "key's factors, out", -0.5, 0.5},
                        {"post_kd", "B Tk Hq", "f32", true, "key's gates", -0.5, 0.5},
                        {"post_w", "Hq Hq", "f32", false, "map between heads; the identity if absent", -0.5, 0.5},
                        port::kKvLens,
                        port::kQPositions};
constexpr Port kOut[] = {port::kOut};
constexpr Paper kPapers[] = {
    {"Improving Transformers with Dynamically Composable Multi-Head Attention", "2405.08553", "138"}};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"};

DcmhaOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale")};
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  if (output != "out") return std::numeric_limits<double>::quiet_NaN();
  const bound::SoftmaxNorms n = softmax_norms(spec, in);
  const View q1 = array(in, "pre_q1", "dcmha");
  const double heads = static_cast<double>(q1.shape[3]), ranks = static_cast<double>(q1.shape[2]);
  // The most that a map can make of numbers of magnitude 1, and what it rounds.
  auto gain = [&](const std::string& side) {
    auto most = [&](const char* part) { return exact::largest(array(in, side + part, "dcmha")); };
    const View w = array(in, side + "w", "dcmha");
    return (w.data ? heads * exact::largest(w) : 1) + most("qd") + most("kd") +
           ranks * heads * (most("q1") * most("q2") + most("k1") * most("k2"));
  };
  const double pre = gain("pre_"), post = gain("post_"), score = n.scale * n.query * n.key;
  const double rounding = bound::kEpsilon * (2 * heads + 4 * ranks + 8);
  const double composed = pre * (bound::softmax_score(n) + rounding * score);
  const double weight = 4 * composed + 16 * bound::kEpsilon + bound::gamma(n.keys / 16 + 8);
  return n.value * post * (weight + rounding + bound::gamma(n.keys + 2)) + 1e-37;
}

constexpr Entry kDcmha = {
    .kind = Kind::kMechanism,
    .name = "dcmha",
    .room = "exact",
    .equation =
        "a[h,i,.] = softmax over visible j of compose_pre(scale * q[.,i].k[.,j])[h],  o[h,i] = sum over visible j of "
        "compose_post(a[.,i,j])[h] v[h,j]\n"
        "compose(x)[h] = w(x)[h] + x[h] (qd[i,h] + kd[j,h]) + sum_r q2[i,r,h] q1[i,r].x + sum_r k2[j,r,h] k1[j,r].x",
    .summary = "heads exchange scores and weights through maps that depend on query and key",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input", .forms = kForms, .patterns = kPatterns, .same_bits = SameBits::kAny},
    .notes = "One group of heads. The layer that makes the factors from the tokens is not part of it. Forward only.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "dcmha", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) {
            auto side = [&](const std::string& name) {
              auto port = [&](const char* part) { return array(in, name + part, "dcmha"); };
              return Compose{.q1 = port("q1"),
                             .q2 = port("q2"),
                             .qd = port("qd"),
                             .k1 = port("k1"),
                             .k2 = port("k2"),
                             .kd = port("kd"),
                             .w = port("w")};
            };
            dcmha_attention({.attention = qkv, .pre = side("pre_"), .post = side("post_")}, o, out.out, context);
          });
    },
    .reference = [](const Spec& spec) { return make_dcmha_reference(options_from(spec)); },
    .bound = error_bound,
    .axis = [](std::string_view name, const Spec&, const Sizes&) -> int64_t { return name == "R" ? 2 : -1; },
};

}  // namespace

void register_dcmha(Registry& registry) {
  registry.add(kDcmha);
}

}  // namespace attend
