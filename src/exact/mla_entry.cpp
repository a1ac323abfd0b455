// The registry's entry for mla.
#include "attend/exact/mla.h"
#include "attend/reference/mla.h"
#include "attend/tensor/error.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {
    option::kCausal,
    {"scale", "", "multiplies the dot products; 0 means 1/sqrt(D)", "0", OptionType::kReal, -1e30, 1e30},
    {"rope", "", "last elements of a query head that meet the cache's rotary part", "0", OptionType::kInteger, 0, 511},
};
constexpr Port kIn[] = {
    {"q", "B Hq Tq D", "f32", true, "queries, their last `rope` elements rotated"},
    {"cache", "B 1 Tk C", "f32 f16 bf16", true, "latents, and after them the rotary keys; C = R + rope"},
    {"w_uk", "Hq N R", "f32", true, "latents to keys; N = D - rope", -0.25, 0.25},
    {"w_uv", "Hq Dv R", "f32", true, "latents to values", -0.25, 0.25},
    port::kKvLens,
    port::kQPositions,
};
constexpr Port kOut[] = {port::kOut, port::kLse};
constexpr Paper kPapers[] = {
    {"DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model", "2405.04434", ""},
    {"Towards Economical Inference: Enabling DeepSeek's Multi-Head Latent Attention in Any Transformer-based LLMs",
     "2502.14837", "232"},
};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross"},
                           kGradients[] = {"q", "cache", "w_uk", "w_uv"};

MlaOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale"), .rope = spec.integer("rope")};
}

class Mla : public Operator {
 public:
  explicit Mla(const MlaOptions& options) : options_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    const View q = array(in, "q", "mla"), w = array(in, "w_uv", "mla");
    if (q.rank != 4) throw Error(ErrorKind::kArgument, "mla", "q", to_string(q), "must have 4 axes");
    if (w.rank != 3) throw Error(ErrorKind::kArgument, "mla", "w_uv", to_string(w), "must have 3 axes");
    return {{"out", {DType::kF32, 4, {q.shape[0], q.shape[1], q.shape[2], w.shape[1]}}},
            {"lse", {DType::kF32, 3, {q.shape[0], q.shape[1], q.shape[2]}}}};
  }

  void forward(const Tensors& in, const Tensors& out, Form form, Context& context) const override {
    if (form != Form::kAny && form != Form::kParallel)
      throw Error(ErrorKind::kArgument, "mla", "form", "", "must be parallel");
    mla_attention(arguments(in), options_, {array(out, "out", "mla"), array(out, "lse", "mla")}, context);
  }

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context& context) const override {
    auto to = [&](std::string_view name) { return array(grad_in, name, "mla"); };
    mla_attention_backward(arguments(in), options_, {array(grad_out, "out", "mla"), array(grad_out, "lse", "mla")},
                           {to("q"), to("cache"), to("w_uk"), to("w_uv")}, context);
  }

 private:
  static MlaIn arguments(const Tensors& in) {
    for (const auto& [name, arg] : in)
      if (std::none_of(std::begin(kIn), std::end(kIn),
                       [known = std::string_view(name)](const Port& port) { return port.name == known; }))
        throw Error(ErrorKind::kArgument, "mla", "port", name, "is not one of this operator's");
    auto port = [&](std::string_view name) { return array(in, name, "mla"); };
    return {.q = port("q"),
            .cache = port("cache"),
            .w_uk = port("w_uk"),
            .w_uv = port("w_uv"),
            .kv_lens = port("kv_lens"),
            .q_positions = port("q_positions")};
  }

  MlaOptions options_;
};

// `n`: of absorbed queries and the cache. What comes down through W_uv is rounded Dv + 2 times, and counts as much more
// in every gradient of a score.
double gradient_bound(const bound::SoftmaxNorms& n, const Tensors& in, std::string_view port) {
  const View q = array(in, "q", "mla"), cache = array(in, "cache", "mla"), w_uk = array(in, "w_uk", "mla"),
             w_uv = array(in, "w_uv", "mla"), d_out = array(in, "grad out", "mla");
  const int64_t rank = w_uk.shape[2], dv = w_uv.shape[1], sums = q.shape[0] * q.shape[2];
  const double ranks = static_cast<double>(rank), rows = static_cast<double>(sums),
               down = std::sqrt(static_cast<double>(dv * rank)) * exact::largest(w_uv);
  const bound::SoftmaxGradientNorms g{.forward = n,
                                      .rows = q.shape[1] * q.shape[2],
                                      .dv = rank,
                                      .value = exact::largest_row(cache),
                                      .d_out = down * exact::largest_row(d_out),
                                      .d_lse = exact::largest(array(in, "grad lse", "mla")),
                                      .q_max = n.query,
                                      .k_max = exact::largest(cache)};
  const double slope = bound::softmax_slope(g), come_down = bound::gamma(dv + 2),
               absorbed = bound::softmax_dq(g) + n.scale * g.k_max * come_down * slope;
  if (port == "q")
    return std::max(1.0, ranks * exact::largest(w_uk)) *
           (absorbed + bound::gamma(rank + 2) * n.scale * g.k_max * slope);
  if (port == "cache") {
    const double heads = static_cast<double>(g.rows), of_keys = heads * n.scale * g.q_max * slope,
                 of_values = heads * g.d_out;
    return bound::softmax_dk(g) + bound::softmax_dv(g) + (come_down + 2 * bound::kEpsilon) * (of_keys + of_values);
  }
  if (port == "w_uk") return rows * exact::largest(q) * (absorbed + bound::gamma(sums + 2) * n.scale * g.k_max * slope);
  return rows * exact::largest(d_out) * (bound::softmax(n) + bound::gamma(sums + 2) * n.value) + 1e-37;
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  const View q = array(in, "q", "mla"), cache = array(in, "cache", "mla"), w_uk = array(in, "w_uk", "mla"),
             w_uv = array(in, "w_uv", "mla");
  bound::SoftmaxNorms n = exact::norms_of(spec, q, cache, cache);
  const double width = std::sqrt(static_cast<double>(w_uk.shape[1] * w_uk.shape[2])) * exact::largest(w_uk);
  const double rank = static_cast<double>(w_uk.shape[2]);
  // |[W' n, t]| <= max(|W|, 1) |q|; its rounding counts as more steps of the dot products.
  n.query *= std::max(1.0, width);
  n.d = cache.shape[3] + 2 * q.shape[3];
  if (output == "lse") return bound::softmax_lse(n);
  const double most = exact::largest(w_uv);
  if (output.starts_with("grad")) return gradient_bound(n, in, output.substr(5));
  return rank * most * (bound::softmax(n) + 2 * bound::gamma(w_uk.shape[2] + 1) * n.value) + 1e-37;
}

constexpr Entry kMla = {
    .kind = Kind::kMechanism,
    .name = "mla",
    .room = "exact",
    .equation =
        "o[h,i] = sum_j w[h,i,j] W_uv[h] c[j],  w[h,i,.] = softmax over visible j of scale * q[h,i].[W_uk[h] c[j], "
        "r[j]],  cache[j] = [c[j], r[j]]",
    .summary = "multi-head latent attention, absorbed: one latent a token, read once for all heads",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes =
        "The absorbed form; its reference is the expanded one. R + rope is at most 512. 232: the decoding part; making "
        "such a model from another (partial RoPE, joint SVD) is not here.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> { return std::make_unique<Mla>(options_from(spec)); },
    .reference = [](const Spec& spec) { return make_mla_reference(options_from(spec)); },
    .bound = error_bound,
    .axis = [](std::string_view name, const Spec& spec, const Sizes& sizes) -> int64_t {
      constexpr int64_t kRank = 24;
      return name == "R"   ? kRank
             : name == "C" ? kRank + spec.integer("rope")
             : name == "N" ? sizes.d - spec.integer("rope")
                           : -1;
    },
    .cascade =
        "s[i,j] = q[i,d] * cache[j,d]\n"
        "m[i] = max_j s[i,j]\n"
        "p[i,j] = exp(s[i,j] - m[i])\n"
        "z[i] = sum_j p[i,j]\n"
        "u[i,e] = sum_j p[i,j] / z[i] * cache[j,e]\n"
        "o[i,c] = u[i,e] * up[e,c]",
    .passes = 1,
    .refuses = [](const Spec& spec, const Sizes& sizes) -> std::string_view {
      return spec.integer("rope") < sizes.d && spec.integer("rope") <= 480 ? "" : "has a rotary part as wide as a head";
    },
};

}  // namespace

void register_mla(Registry& registry) {
  registry.add(kMla);
}

}  // namespace attend
