// The registry's entry for softmax attention: options, ports, and the operator that calls the typed function.
#include <fmt/format.h>

#include "attend/exact/register.h"
#include "attend/exact/softmax.h"
#include "attend/reference/softmax.h"
#include "attend/tensor/error.h"
#include "exact/problem.h"

namespace attend {
namespace {

constexpr double kMaxTokens = 1e15;

constexpr Option kOptions[] = {
    {"causal", "", "a query sees no key after its own position", "false", OptionType::kFlag, 0, 0},
    {"scale", "", "multiplies the dot products; 0 means 1/sqrt(D)", "0", OptionType::kReal, -1e30, 1e30},
    {"window", "tokens", "keys a query sees, its own counted; 0 means all", "0", OptionType::kInteger, 0, kMaxTokens},
    {"sinks", "tokens", "first keys that a window keeps visible", "0", OptionType::kInteger, 0, kMaxTokens},
    {"prefix", "tokens", "first keys that every query sees", "0", OptionType::kInteger, 0, kMaxTokens},
    {"softcap", "", "scores become softcap * tanh(score / softcap); 0 means none", "0", OptionType::kReal, 0, 1e30},
};

constexpr Port kIn[] = {
    {"q", "B Hq Tq D", "f32", true, "queries"},
    {"k", "B Hkv Tk D", "f32 f16 bf16", true, "keys, or a store's key views"},
    {"v", "B Hkv Tk Dv", "f32 f16 bf16", false, "values; absent where k is key views"},
    {"kv_lens", "B", "i32 i64", false, "keys beyond a length don't exist"},
    {"q_positions", "B Tq", "i32", false, "positions of the queries; the last query sits on the last key if absent"},
    {"bias", "B Hq Tq Tk", "f32", false, "added to the scores; axes of 1 are repeated; -inf hides a key"},
    {"sink_logits", "Hq", "f32", false, "a learned logit a head that joins the denominator"},
    {"documents", "B T", "i32", false, "document of each position, non-decreasing; only keys of one's own are seen"},
};

constexpr Port kOut[] = {
    {"out", "B Hq Tq Dv", "f32", true, "weighted values"},
    {"lse", "B Hq Tq", "f32", false, "natural log of the softmax denominator"},
};

constexpr Paper kPapers[] = {
    {"FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", "2205.14135", "274"},
    {"Efficient Streaming Language Models with Attention Sinks", "2309.17453", "115"},
    {"Fast Transformer Decoding: One Write-Head is All You Need", "1911.02150", "191"},
};

constexpr std::string_view kForms[] = {"parallel", "split"};
constexpr std::string_view kPatterns[] = {"full",   "causal", "self",   "cross",    "grouped",
                                          "window", "sinks",  "prefix", "documents"};

SoftmaxOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"),
          .scale = spec.real("scale"),
          .window = spec.integer("window"),
          .sinks = spec.integer("sinks"),
          .prefix = spec.integer("prefix"),
          .softcap = spec.real("softcap")};
}

View array(const Tensors& tensors, std::string_view name) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) return {};
  if (const View* view = std::get_if<View>(&found->second)) return *view;
  throw Error(ErrorKind::kArgument, "softmax", name, "key views", "must be an array");
}

void require_known(const Tensors& tensors, std::span<const Port> ports) {
  for (const auto& [name, arg] : tensors) {
    bool known = false;
    for (const Port& port : ports) known = known || port.name == name;
    if (!known) throw Error(ErrorKind::kArgument, "softmax", "port", name, "is not one of this operator's");
  }
}

class Softmax : public Operator {
 public:
  explicit Softmax(const SoftmaxOptions& options) : options_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    const Qkv qkv = inputs(in, 0);
    if (!qkv.keys.empty())
      throw Error(ErrorKind::kArgument, "softmax", "k", "key views", "don't say Dv: give the outputs");
    exact::check(qkv, options_, "softmax");
    const Shape& q = qkv.q.shape;
    return {{"out", {DType::kF32, 4, {q[0], q[1], q[2], qkv.v.shape[3]}}},
            {"lse", {DType::kF32, 3, {q[0], q[1], q[2]}}}};
  }

  void forward(const Tensors& in, const Tensors& out, Form form, Context& context) const override {
    if (form != Form::kAny && form != Form::kParallel)
      throw Error(ErrorKind::kArgument, "softmax", "form", "", "must be parallel");
    require_known(out, kOut);
    const AttnOut result{array(out, "out"), array(out, "lse")};
    softmax_attention(inputs(in, result.out.rank == 4 ? result.out.shape[3] : 0), options_, result, context);
  }

  std::vector<KeyRange> needed_from(int64_t position) const override {
    SoftmaxOptions open = options_;
    open.causal = false;
    const exact::Visible seen = exact::visible_from(position, open, {0, kNoEnd});
    std::vector<KeyRange> ranges;
    for (const KeyRange& r : {seen.a, seen.b})
      if (r.begin < r.end) ranges.push_back(r);
    return ranges;
  }

 private:
  static Qkv inputs(const Tensors& in, int64_t dv) {
    require_known(in, kIn);
    Qkv qkv{.q = array(in, "q")};
    const auto k = in.find("k");
    if (k == in.end()) throw Error(ErrorKind::kArgument, "softmax", "k", "", "must be given");
    if (const auto* views = std::get_if<std::span<const KeyView>>(&k->second)) {
      qkv.keys = *views;
      qkv.dv = dv;
      if (views->empty()) throw Error(ErrorKind::kArgument, "softmax", "k", "no key views", "must be one a kv head");
    } else {
      qkv.k = std::get<View>(k->second);
    }
    qkv.v = array(in, "v");
    qkv.kv_lens = array(in, "kv_lens");
    qkv.q_positions = array(in, "q_positions");
    qkv.bias = array(in, "bias");
    qkv.sink_logits = array(in, "sink_logits");
    qkv.documents = array(in, "documents");
    return qkv;
  }

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
    .traits = {.exact_for = "every input: nothing is approximated",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny},
    .notes = "Forward only. 115: the mask; keys keep the positions of the text.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return std::make_unique<Softmax>(options_from(spec));
    },
    .reference = [](const Spec& spec) { return make_softmax_reference(options_from(spec)); },
};

}  // namespace

void register_exact(Registry& registry) {
  registry.add(kSoftmax);
}

}  // namespace attend
