// The registry's entry for attendre.
#include "attend/exact/attendre.h"
#include "attend/reference/attendre.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {
    {"chunk", "tokens", "that come at a time", "64", OptionType::kInteger, 1, option::kMaxTokens},
    {"memory", "tokens", "keys that are kept, at least those of a chunk; 0: all", "512", OptionType::kInteger, 0,
     option::kMaxTokens},
    {"delay", "tokens", "a query waits until so many later ones have come", "0", OptionType::kInteger, 0,
     option::kMaxTokens},
    {"top", "tokens", "keys that a query retrieves, those of largest score; 0: all", "0", OptionType::kInteger, 0,
     option::kMaxTokens},
    {"eviction", "", "which key leaves a full memory: the oldest, the least recently or frequently attended one", "lra",
     OptionType::kText, 0, 0, "fifo|lra|lfa"},
    option::kCausal,
    option::kScale};
constexpr Port kIn[] = {port::kQ, port::kK, {"v", "B Hkv Tk Dv", "f32 f16 bf16", true, "values"}};
constexpr Port kOut[] = {port::kOut, port::kLse};
constexpr Paper kPapers[] = {
    {"Attendre: Wait To Attend By Retrieval With Evicted Queries in Memory-Based Transformers for Long Context "
     "Processing",
     "2401.04881", "218"}};
constexpr std::string_view kForms[] = {"chunked"}, kPatterns[] = {"full", "causal", "self", "grouped"},
                           kGradients[] = {"q", "k", "v"};

AttendreOptions options_from(const Spec& spec) {
  const std::string_view eviction = spec.text("eviction");
  return {.chunk = spec.integer("chunk"),
          .memory = spec.integer("memory"),
          .delay = spec.integer("delay"),
          .top = spec.integer("top"),
          .eviction = eviction == "fifo"  ? Eviction::kFifo
                      : eviction == "lra" ? Eviction::kLra
                                          : Eviction::kLfa,
          .causal = spec.flag("causal"),
          .scale = spec.real("scale")};
}

// As softmax attention, but that sums run over the slots of the memory in one go. The same keys are retrieved.
double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  const bound::SoftmaxNorms n = softmax_norms(spec, in);
  if (output == "lse") return bound::softmax_lse(n) + bound::gamma(n.keys / 16 + 8);
  const bound::SoftmaxGradientNorms g = gradient_norms(n, in);
  if (output == "grad q") return exact::rows_gradient(g, 1, n.scale * g.k_max, n.keys);
  if (output == "grad k") return exact::rows_gradient(g, static_cast<double>(g.rows), n.scale * g.q_max, g.rows);
  if (output == "grad v") return exact::rows_weights(g, static_cast<double>(g.rows), g.d_out, g.rows);
  return n.value * (2 * bound::softmax_weight(n) + 2 * bound::gamma(n.keys + 16)) + 1e-37;
}

// Of each query with the keys in memory when it is served, but for those after it that causal hides.
double pairs(const Spec& spec, const Sizes& sizes) {
  const AttendreOptions o = options_from(spec);
  double total = 0;
  for (int64_t i = 0; i < sizes.tk; ++i) {
    const int64_t ready = std::min<int64_t>(sizes.tk, i + o.delay + 1);
    const int64_t come = std::min(sizes.tk, ((ready - 1) / o.chunk + 1) * o.chunk);
    const int64_t kept = o.memory == 0 ? come : std::min(come, std::max(o.memory, o.chunk));
    total += static_cast<double>(std::max<int64_t>(0, o.causal ? kept - (come - 1 - i) : kept));
  }
  return total;
}

constexpr Entry kAttendre = {
    .kind = Kind::kMechanism,
    .name = "attendre",
    .room = "exact",
    .equation =
        "o[i] = sum over j in S[i] of softmax(scale * q[i].k[j]) v[j],  S[i]: what q[i] retrieves of the memory of "
        "keys "
        "and values once `delay` later queries have come\n"
        "a full memory drops the oldest key, or the one last or least often given w[i,j] > 1 / |S[i]|",
    .summary = "a bounded memory of keys that a stream passes through, with queries that wait for later keys",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "texts that fit into the memory: with a delay as long all tokens see all, with none and "
                            "causal it is causal softmax attention",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes =
        "The layer: memories of keys and values and of queries, their evictions and the wait. Ours are: that a query "
        "attends to what it gives more than its mean weight (so do the retentions lra and lfa), that each kv head "
        "evicts by itself, that keys enter the memory before queries leave theirs, and that those left at the end see "
        "its last state. A delay needs no causal mask; with causal it only lets keys leave before they are asked for. "
        "Threads take batch entries and kv heads, for evictions follow one another. Gradients "
        "take what a query retrieves as a constant.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "attendre", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut& out, Context& context) {
            attendre_attention(qkv, o, out, context);
          },
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut&, const AttnOutGrad& grad_out,
                                   const Tensors& grad_in, Context& context) {
            auto to = [&](std::string_view name) { return array(grad_in, name, "attendre"); };
            attendre_attention_backward(qkv, o, grad_out, {.q = to("q"), .k = to("k"), .v = to("v")}, context);
          });
    },
    .reference = [](const Spec& spec) { return make_attendre_reference(options_from(spec)); },
    .bound = error_bound,
    .refuses = [](const Spec&, const Sizes& sizes) -> std::string_view {
      return sizes.tq == sizes.tk ? "" : "is self-attention: as many queries as keys";
    },
    .pairs = pairs,
};

}  // namespace

void register_attendre(Registry& registry) {
  registry.add(kAttendre);
}

}  // namespace attend
