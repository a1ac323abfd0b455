// The registry's entry for gaam.
#include "attend/exact/gaam.h"
#include "attend/reference/gaam.h"
#include "attend/tensor/error.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {
    {"tokens", "", "weights over tokens instead of over features", "false", OptionType::kFlag, 0, 0},
    {"epsilon", "", "joins the variance; the least that weights are divided by", "1e-8", OptionType::kReal, 1e-30, 1},
    {"gaussians", "", "Gaussians a head, G", "4", OptionType::kInteger, 1, 64},
};
constexpr Port kIn[] = {
    {"x", "B Hq Tq D", "f32", true, "tokens, cut into heads"},
    {"offset", "Hq G", "f32", true, "added to the mean", -1, 1},
    {"width", "Hq G", "f32", true, "of each Gaussian, in standard deviations", 0.5, 3},
};
constexpr Port kOut[] = {{"out", "B Hq Tq D", "f32", true, "weighted tokens"}};
constexpr Paper kPapers[] = {
    {"Gaussian Adaptive Attention is All You Need: Robust Contextual Representations Across Multiple Modalities",
     "2401.11143", "198"},
};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"self"};

GaamOptions options_from(const Spec& spec) {
  return {.tokens = spec.flag("tokens"), .epsilon = spec.real("epsilon")};
}

class Gaam : public Operator {
 public:
  explicit Gaam(const Spec& spec) : options_(options_from(spec)), gaussians_(spec.integer("gaussians")) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    const View x = array(in, "x", "gaam");
    if (x.rank != 4) throw Error(ErrorKind::kArgument, "gaam", "x", to_string(x), "must have 4 axes");
    return {{"out", {DType::kF32, 4, x.shape}}};
  }

  void forward(const Tensors& in, const Tensors& out, Form form, Context& context) const override {
    if (form != Form::kAny && form != Form::kParallel)
      throw Error(ErrorKind::kArgument, "gaam", "form", "", "must be parallel");
    for (const auto& [name, arg] : in)
      if (name != "x" && name != "offset" && name != "width")
        throw Error(ErrorKind::kArgument, "gaam", "port", name, "is not one of this operator's");
    const View offset = array(in, "offset", "gaam");
    if (offset.rank == 2 && offset.shape[1] != gaussians_)
      throw Error(ErrorKind::kArgument, "gaam", "offset", to_string(offset), "must have `gaussians` columns");
    gaam_attention(array(in, "x", "gaam"), offset, array(in, "width", "gaam"), options_, array(out, "out", "gaam"),
                   context);
  }

 private:
  GaamOptions options_;
  int64_t gaussians_;
};

double error_bound(const Spec&, const Tensors& in, std::string_view) {
  const View x = array(in, "x", "gaam");
  // Weights of at most 1: exponents round once (t e^-t eps), exponentials and their sum, four more operations.
  const double terms = static_cast<double>(std::max(x.shape[2], x.shape[3])) / 16 + 24;
  return exact::largest(x) * bound::kEpsilon * terms + 1e-37;
}

constexpr Entry kGaam = {
    .kind = Kind::kMechanism,
    .name = "gaam",
    .room = "exact",
    .equation =
        "out[c] = x[c] g[c] / max(sum of g, epsilon),  g[c] = product over m of N((x[c] - mean - offset[m]) / sd; "
        "width[m])",
    .summary = "Gaussian adaptive attention: features weighted by Gaussians around their own mean",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input", .forms = kForms, .patterns = kPatterns, .same_bits = SameBits::kAny},
    .notes = "Over features; over tokens with that option, where every token sees all. Forward only.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> { return std::make_unique<Gaam>(spec); },
    .reference = [](const Spec& spec) { return make_gaam_reference(options_from(spec)); },
    .bound = error_bound,
    .axis = [](std::string_view name, const Spec& spec, const Sizes&) -> int64_t {
      return name == "G" ? spec.integer("gaussians") : -1;
    },
};

}  // namespace

void register_gaam(Registry& registry) {
  registry.add(kGaam);
}

}  // namespace attend
