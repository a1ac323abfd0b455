#include "attend/tensor/error.h"
#include "mechanism/alibi.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {
    {"causal", "", "a query sees no key after its own position", "false", OptionType::kFlag, 0, 0},
};
constexpr Port kIn[] = {
    {"q", "B Hq Tq D", "f32", true, "queries"},
    {"k", "B Hkv Tk D", "f32 f16 bf16", true, "keys"},
    {"v", "B Hkv Tk Dv", "f32 f16 bf16", true, "values"},
};
constexpr Port kOut[] = {
    {"out", "B Hq Tq Dv", "f32", true, "weighted values"},
    {"lse", "B Hq Tq", "f32", false, "natural log of the softmax denominator"},
};
constexpr Paper kPapers[] = {
    {"Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation", "2108.12409", ""},
};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "grouped"};

class Alibi : public Operator {
 public:
  explicit Alibi(const AlibiOptions& options) : options_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    const View q = array(in, "q"), v = array(in, "v");
    return {{"out", {DType::kF32, 4, {q.shape[0], q.shape[1], q.shape[2], v.shape[3]}}},
            {"lse", {DType::kF32, 3, {q.shape[0], q.shape[1], q.shape[2]}}}};
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context& context) const override {
    for (const auto& [name, value] : in) {
      if (name != "q" && name != "k" && name != "v")
        throw Error(ErrorKind::kArgument, "alibi", "port", name, "unknown");
    }
    const View lse = out.contains("lse") ? array(out, "lse") : View{};
    alibi_attention({.q = array(in, "q"), .k = array(in, "k"), .v = array(in, "v")}, options_, {array(out, "out"), lse},
                    context);
  }

 private:
  static View array(const Tensors& tensors, std::string_view name) {
    const auto found = tensors.find(name);
    if (found == tensors.end() || !std::holds_alternative<View>(found->second)) {
      throw Error(ErrorKind::kArgument, "alibi", name, "", "must be given as an array");
    }
    return std::get<View>(found->second);
  }

  AlibiOptions options_;
};

constexpr Entry kAlibi = {
    .kind = Kind::kMechanism,
    .name = "alibi",
    .room = "exact",
    .equation = "w[i,.] = softmax over visible j of scale * q[i].k[j] - m[h] |i - j|,  m[h] = 2^(-8 (h + 1) / Hq)",
    .summary = "softmax attention with linear biases",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input", .forms = kForms, .patterns = kPatterns, .same_bits = SameBits::kAny},
    .notes = "",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return std::make_unique<Alibi>(AlibiOptions{.causal = spec.flag("causal")});
    },
    .reference = [](const Spec& spec) { return make_alibi_reference({.causal = spec.flag("causal")}); },
};

}  // namespace

void register_example(Registry& registry) {
  registry.add(kAlibi);
}

}  // namespace attend
