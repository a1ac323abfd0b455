#include "exact/rope_spec.h"

#include <algorithm>
#include <vector>

#include "attend/tensor/error.h"

namespace attend::exact {

RopeOptions rope_options(const Spec& spec) {
  auto has = [&](std::string_view name) { return spec.find(name) != nullptr; };
  auto set = [&](std::string_view name, double& value) {
    if (has(name)) value = spec.real(name);
  };
  RopeOptions o;
  if (has("dims")) o.dims = spec.integer("dims");
  if (has("original")) o.original = spec.integer("original");
  if (has("interleaved")) o.interleaved = spec.flag("interleaved");
  set("base", o.base);
  set("factor", o.factor);
  set("magnitude", o.magnitude);
  set("extrapolation", o.extrapolation);
  set("beta_fast", o.beta_fast);
  set("beta_slow", o.beta_slow);
  set("low_factor", o.low_factor);
  set("high_factor", o.high_factor);
  if (has("scaling")) {
    const std::string& name = spec.text("scaling");
    const auto found = std::find(std::begin(kRopeScalings), std::end(kRopeScalings), name);
    o.scaling = static_cast<RopeScaling>(found - std::begin(kRopeScalings));
  }
  return o;
}

RopeTable divided_table(const RopeOptions& options, std::span<const float> divisors) {
  std::vector<float> values(divisors.begin(), divisors.end());
  return rope_table(options, options.dims, 1,
                    {.short_factors = dense_view(values.data(), DType::kF32, {static_cast<int64_t>(values.size())})});
}

void refuse_divisors(std::string_view op) {
  throw Error(ErrorKind::kUnsupported, op, "scaling", "",
              "must not depend on the text's length where pairs are divided");
}

std::string_view rope_refuses(const RopeOptions& o, int64_t d) {
  const int64_t dims = o.dims == 0 ? d : o.dims;
  if (dims % 2) return "rotated elements come in pairs";
  if (dims > d) return "no more elements can be rotated than a head has";
  if (dims < 4 && (o.scaling == RopeScaling::kNtk || o.scaling == RopeScaling::kDynamicNtk))
    return "ntk scaling needs two pairs";
  if (o.scaling == RopeScaling::kYarn && o.beta_slow > o.beta_fast) return "beta_slow must not exceed beta_fast";
  if (o.scaling == RopeScaling::kLlama3 && o.low_factor >= o.high_factor) return "low_factor must be below high_factor";
  return "";
}

}  // namespace attend::exact
