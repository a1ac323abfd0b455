// The registry's entry for gaam.
#include <cmath>
#include <numbers>

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
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"self"}, kGradients[] = {"x", "offset", "width"};

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

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context& context) const override {
    gaam_attention_backward(
        array(in, "x", "gaam"), array(in, "offset", "gaam"), array(in, "width", "gaam"), options_,
        array(grad_out, "out", "gaam"),
        {array(grad_in, "x", "gaam"), array(grad_in, "offset", "gaam"), array(grad_in, "width", "gaam")}, context);
  }

 private:
  GaamOptions options_;
  int64_t gaussians_;
};

// Weights err by `relative`, and by what is below 2^-126; all else is in double. Rows are walked for the magnitudes of
// what the gradients add up.
double gradient_bound(const GaamOptions& options, const Tensors& in, std::string_view port, double relative) {
  const View x = array(in, "x", "gaam"), offset = array(in, "offset", "gaam"), width = array(in, "width", "gaam"),
             loss = array(in, "grad out", "gaam");
  const int64_t heads = x.shape[1], tokens = x.shape[2], d = x.shape[3], n = options.tokens ? tokens : d,
                gaussians = width.shape[1];
  double worst = 0;
  std::vector<double> sums(static_cast<size_t>(heads * gaussians), 0);
  for (int64_t line = 0; line < x.shape[0] * heads * (options.tokens ? d : tokens); ++line) {
    const int64_t row = options.tokens ? line / d * tokens * d + line % d : line * d, step = options.tokens ? d : 1,
                  h = line / (options.tokens ? d : tokens) % heads;
    auto at = [&](const View& of, int64_t i) { return value_at(of, row + i * step); };
    double mean = 0, var = 0, total = 0, gain = 0, height = 1;
    for (int64_t i = 0; i < n; ++i) mean += at(x, i) / static_cast<double>(n);
    for (int64_t i = 0; i < n && n > 1; ++i) var += std::pow(at(x, i) - mean, 2) / static_cast<double>(n - 1);
    var += options.epsilon;
    std::vector<double> exponent(static_cast<size_t>(n), 0), slope(exponent), share(exponent);
    for (int64_t m = 0; m < gaussians; ++m) {
      const double w = value_at(width, h * gaussians + m);
      height /= std::sqrt(2 * std::numbers::pi * w * w);
      for (int64_t i = 0; i < n; ++i) {
        const double z = at(x, i) - mean - value_at(offset, h * gaussians + m), part = z / (w * w * var);
        exponent[static_cast<size_t>(i)] += part * z / 2;
        slope[static_cast<size_t>(i)] += std::abs(part);
      }
    }
    for (int64_t i = 0; i < n; ++i) total += height * std::exp(-exponent[static_cast<size_t>(i)]);
    for (int64_t i = 0; i < n; ++i) {
      share[static_cast<size_t>(i)] =
          height * std::exp(-exponent[static_cast<size_t>(i)]) / std::max(total, options.epsilon);
      gain += share[static_cast<size_t>(i)] * std::abs(at(x, i) * at(loss, i));
    }
    double shared = 0;
    std::vector<double> moved;  // errors of the gradients of exponents
    for (size_t i = 0; i < share.size(); ++i) {
      const double one = std::abs(at(x, static_cast<int64_t>(i)) * at(loss, static_cast<int64_t>(i)));
      moved.push_back(3 * relative * share[i] * (one + gain) + 1e-37);
      shared += moved[i] * (slope[i] / static_cast<double>(n) + exponent[i] / var);
    }
    for (size_t i = 0; i < share.size(); ++i) {
      const double away = std::abs(at(x, static_cast<int64_t>(i)) - mean) + 1, own = share[i] + moved[i];
      worst = std::max(worst, 2 * relative * std::abs(at(loss, static_cast<int64_t>(i))) * own + moved[i] * slope[i] +
                                  2 * shared * away);
    }
    for (int64_t m = 0; m < gaussians; ++m) {
      const double w = std::abs(value_at(width, h * gaussians + m));
      for (size_t i = 0; i < share.size(); ++i) {
        const double z = at(x, static_cast<int64_t>(i)) - mean - value_at(offset, h * gaussians + m),
                     part = std::abs(z) / (w * w * var);
        double& sum = sums[static_cast<size_t>(h * gaussians + m)];
        sum += moved[i] * (port == "offset" ? part : part * std::abs(z) / w + 1 / w);
      }
    }
  }
  for (const double sum : sums)
    if (port != "x") worst = std::max(worst, sum);
  return worst + 1e-37;
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  const View x = array(in, "x", "gaam");
  // Weights of at most 1: exponents round once (t e^-t eps), exponentials and their sum, four more operations.
  const double terms = static_cast<double>(std::max(x.shape[2], x.shape[3])) / 16 + 24;
  if (output == "out") return exact::largest(x) * bound::kEpsilon * terms + 1e-37;
  // Here a weight's own error: exponents below 104.
  return gradient_bound(options_from(spec), in, output.substr(5), bound::kEpsilon * (terms + 110));
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
    .traits = {.exact_for = "every input",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes = "Over features; over tokens with that option, where every token sees all.",
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
