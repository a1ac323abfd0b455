// The registry's entry for softmax attention: options, ports, and the operator that calls the typed function.
#include "attend/exact/attention_operator.h"
#include "attend/exact/register.h"
#include "attend/exact/weight_statistics.h"
#include "attend/reference/softmax.h"
#include "exact/entries.h"
#include "exact/problem.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {option::kCausal, option::kScale,   option::kWindow, option::kSinks,
                               option::kPrefix, option::kSoftcap, option::kCompute};
constexpr Port kIn[] = {port::kQ,          port::kK,    port::kV,          port::kKvLens,
                        port::kQPositions, port::kBias, port::kSinkLogits, port::kDocuments};
constexpr Port kOut[] = {port::kOut, port::kLse};
constexpr std::string_view kGradients[] = {"q", "k", "v", "bias", "sink_logits"};

constexpr Paper kPapers[] = {
    {"FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", "2205.14135", "274"},
    {"Efficient Streaming Language Models with Attention Sinks", "2309.17453", "115"},
    {"Fast Transformer Decoding: One Write-Head is All You Need", "1911.02150", "191"},
    {"Lean Attention: Hardware-Aware Scalable Attention Mechanism for the Decode-Phase of Transformers", "2405.10480",
     "052"},
    {"Self-attention Does Not Need O(n^2) Memory", "2112.05682", "197"},
    {"FuseMax: Leveraging Extended Einsums to Optimize Attention Accelerator Design", "2406.10491", "025"},
    {"FlashAttention-3: Fast and Accurate Attention with Asynchrony and Low-precision", "2407.08608", "148"},
    {"SageAttention: Accurate 8-Bit Attention for Plug-and-play Inference Acceleration", "2410.02367", ""},
    {"Live2Diff: Live Stream Translation via Uni-directional Attention in Video Diffusion Models", "2407.08701", "136"},
    {"Flex Attention: A Programming Model for Generating Optimized Attention Kernels", "2412.05496", "140"},
};

constexpr std::string_view kForms[] = {"parallel", "split"};
constexpr std::string_view kPatterns[] = {"full",   "causal", "self",   "cross",    "grouped",
                                          "window", "sinks",  "prefix", "documents"};

class Softmax : public AttentionOperator {
 public:
  explicit Softmax(const SoftmaxOptions& options) : AttentionOperator("softmax", kIn, kOut), options_(options) {}

  void backward(const Tensors& in, const Tensors& out, const Tensors& grad_out, const Tensors& grad_in,
                Context& context) const override {
    const AttnGrad gradients{array(grad_in, "q"), array(grad_in, "k"), array(grad_in, "v"), array(grad_in, "bias"),
                             array(grad_in, "sink_logits")};
    softmax_attention_backward(inputs(in, 0), options_, {array(out, "out"), array(out, "lse")},
                               {array(grad_out, "out"), array(grad_out, "lse")}, gradients, context);
  }

  bool gives_weights() const override { return true; }
  void add_weights(const Tensors& in, const View& lse, const WeightPlaces& to, Context& context) const override {
    attend::add_weights(inputs(in, 0), options_, lse, to, context);
  }
  void forward_and_add_weights(const Tensors& in, const Tensors& out, const WeightPlaces& to,
                               Context& context) const override {
    const AttnOut result = outputs(out);
    attend_and_add_weights(inputs(in, width(result)), options_, result, to, context);
  }

  std::vector<KeyRange> needed_from(int64_t position) const override { return exact::needed_from(position, options_); }

 protected:
  void attend(const Qkv& qkv, const Tensors&, const AttnOut& out, Context& context) const override {
    softmax_attention(qkv, options_, out, context);
  }
  void check(const Qkv& qkv, const Tensors&) const override { exact::check(qkv, options_, op()); }

 private:
  SoftmaxOptions options_;
};

constexpr Entry kSoftmax = {
    .kind = Kind::kMechanism,
    .name = "softmax",
    .room = "exact",
    .equation =
        "o[i] = sum_j w[i,j] v[j],  w[i,.] = softmax over visible j of bias[i,j] + cap(scale * q[i].k[j])\n"
        "j visible to i  <=>  j < prefix or (not causal or j <= i) and (i - j < window or j < sinks)",
    .summary = "attention over all visible keys, fused and tiled",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input: nothing is approximated, with compute=f32",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes =
        "compute: int8 and fp8 make rows of queries, keys and values, and 64 weights of a row, integers or e4m3 "
        "numbers "
        "times a scale; -hadamard turns queries and keys first, so that outliers spread; int8-qk takes off keys what "
        "they "
        "share (the mean of 64) and keeps weights and values in bf16. Error in attend bench prefill, quality by attend "
        "compare. "
        "136: the warm-up frames, which see each other, are the prefix, the frames before the current one the window; "
        "a "
        "store keeps these alone. 115: the mask; keys keep the positions of the text. 197: chunks are 512 keys (256 "
        "backward) instead of sqrt(n), so memory does not grow with n. 274: tiles of the forward pass fold once every "
        "512 "
        "positions. 148: compute=int8-hadamard and fp8-hadamard; a scale is a row's (64 weights'), not a tile's, so "
        "that "
        "keys which a row does not see change nothing; e4m3 numbers are multiplied in f32; values are not turned. Warp "
        "specialisation is the GPU's.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return std::make_unique<Softmax>(softmax_options(spec));
    },
    .reference = [](const Spec& spec) { return make_softmax_reference(softmax_options(spec)); },
    .bound = softmax_bound,
    .cascade =
        "s[i,j] = q[i,d] * k[j,d]\n"
        "m[i] = max_j s[i,j]\n"
        "p[i,j] = exp(s[i,j] - m[i])\n"
        "z[i] = sum_j p[i,j]\n"
        "w[i,j] = p[i,j] / z[i]\n"
        "o[i,c] = sum_j w[i,j] * v[j,c]",
    .passes = 1,
};

}  // namespace

void register_exact(Registry& registry) {
  registry.add(kSoftmax);
  register_coca(registry);
  register_cope(registry);
  register_dca(registry);
  register_fire(registry);
  register_harmonic(registry);
  register_kerple(registry);
  register_rcmha(registry);
  register_relative(registry);
  register_rope(registry);
  register_t5_bias(registry);
  register_urpe(registry);
  register_scores(registry);
}

}  // namespace attend
