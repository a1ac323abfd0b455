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
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"},
                           kGradients[] = {"q",       "k",       "v",       "pre_q1",  "pre_q2",  "pre_qd",
                                           "pre_k1",  "pre_k2",  "pre_kd",  "pre_w",   "post_q1", "post_q2",
                                           "post_qd", "post_k1", "post_k2", "post_kd", "post_w"};

DcmhaOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale")};
}

Compose side_of(const Tensors& in, const std::string& side) {
  auto port = [&](const char* part) { return array(in, side + part, "dcmha"); };
  return {port("q1"), port("q2"), port("qd"), port("k1"), port("k2"), port("kd"), port("w")};
}

// The most that a map can make of numbers of magnitude 1, forward or back: the largest sum of magnitudes of the terms of
// a head's row, or column, over all pairs.
double gain(const Compose& c) {
  const int64_t heads = c.q1.shape[3], ranks = c.q1.shape[2], queries = c.q1.shape[1], keys = c.k1.shape[1];
  auto factor = [&](const View& v, int64_t b, int64_t t, int64_t r, int64_t h) {
    return std::abs(value_at(v, ((b * v.shape[1] + t) * (v.rank == 4 ? ranks : 1) + r) * heads + h));
  };
  double most = 0;
  std::vector<double> column(static_cast<size_t>(heads));
  for (int64_t pair = 0; pair < c.q1.shape[0] * queries * keys; ++pair) {
    const int64_t b = pair / (queries * keys), i = pair / keys % queries, j = pair % keys;
    std::fill(column.begin(), column.end(), 0.0);
    for (int64_t g = 0; g < heads; ++g) {
      double row = 0;
      for (int64_t h = 0; h < heads; ++h) {
        double map = c.w.data ? std::abs(value_at(c.w, g * heads + h)) : g == h ? 1 : 0;
        if (g == h) map += factor(c.qd, b, i, 0, h) + factor(c.kd, b, j, 0, h);
        for (int64_t r = 0; r < ranks; ++r)
          map +=
              factor(c.q1, b, i, r, g) * factor(c.q2, b, i, r, h) + factor(c.k1, b, j, r, g) * factor(c.k2, b, j, r, h);
        row += map;
        most = std::max({most, row, column[static_cast<size_t>(h)] += map});
      }
    }
  }
  return most;
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  const bound::SoftmaxNorms n = softmax_norms(spec, in);
  const View q1 = array(in, "pre_q1", "dcmha");
  const double heads = static_cast<double>(q1.shape[3]), ranks = static_cast<double>(q1.shape[2]);
  const double pre = gain(side_of(in, "pre_")), post = gain(side_of(in, "post_")), score = n.scale * n.query * n.key;
  const double rounding = bound::kEpsilon * (2 * heads + 4 * ranks + 8);
  const double composed = pre * (bound::softmax_score(n) + rounding * score);
  const double weight = 4 * composed + 16 * bound::kEpsilon + bound::gamma(n.keys / 16 + 8);
  if (output == "out") return n.value * post * (weight + rounding + bound::gamma(n.keys + 2)) + 1e-37;
  // What maps take back has their gains, too. Over the columns of a row, weights of a head sum to 1, so that gradients
  // of scores do to a slope; a key, and w, gathers those of all queries.
  const bound::SoftmaxGradientNorms g = gradient_norms(n, in);
  const std::string_view port = output.substr(5);
  const double product = g.d_out * g.value, slope = 2 * post * product, rows = static_cast<double>(g.rows),
               queries = static_cast<double>(array(in, "q", "dcmha").shape[2]),
               batch = static_cast<double>(q1.shape[0]);
  const double relative = 1.5 * weight + 4 * rounding + bound::gamma(g.dv + n.keys + g.rows + 16);
  if (port == "q") return n.scale * g.k_max * pre * slope * relative + 1e-37;
  if (port == "k") return n.scale * g.q_max * rows * pre * slope * relative + 1e-37;
  if (port == "v") return g.d_out * rows * post * relative + 1e-37;
  const bool before = port.starts_with("pre_");
  // Of a factor of 1: what went in times what comes back.
  const double met = before ? slope * (score * relative + 2 * bound::softmax_score(n)) : product * relative;
  const std::string side(before ? "pre_" : "post_"), part(port.substr(side.size()));
  auto other = [&](const char* name) { return heads * exact::largest(array(in, side + name, "dcmha")); };
  if (part == "q1") return met * other("q2") + 1e-37;
  if (part == "q2") return met * other("q1") + 1e-37;
  if (part == "qd") return met + 1e-37;
  if (part == "k1") return met * queries * other("k2") + 1e-37;
  if (part == "k2") return met * queries * other("k1") + 1e-37;
  return met * queries * (part == "kd" ? 1 : batch) + 1e-37;
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
    .traits = {.exact_for = "every input",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes = "One group of heads. The layer that makes the factors from the tokens is not part of it.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "dcmha", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) {
            dcmha_attention({qkv, side_of(in, "pre_"), side_of(in, "post_")}, o, out.out, context);
          },
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut&, const AttnOutGrad& grad_out,
                                   const Tensors& grad_in, Context& context) {
            auto to = [&](std::string_view name) { return array(grad_in, name, "dcmha"); };
            dcmha_attention_backward({qkv, side_of(in, "pre_"), side_of(in, "post_")}, o, grad_out.out,
                                     {to("q"), to("k"), to("v"), side_of(grad_in, "pre_"), side_of(grad_in, "post_")},
                                     context);
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
