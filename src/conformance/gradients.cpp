// Gradients: the definition's against differences of the definition, the kernel's against the definition's.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "conformance/suite.h"

namespace attend::conformance {
namespace {

constexpr double kLargestBoundShare = 0.05;

using Arrays = std::map<std::string, Array, std::less<>>;

Tensors views(const Arrays& arrays) {
  Tensors t;
  for (const auto& [name, array] : arrays) t[name] = array.view;
  return t;
}

// f64 copies of the float arrays; the others as they are.
Tensors widened(const Tensors& in, Arrays& storage) {
  Tensors wide;
  for (const auto& [name, arg] : in) {
    const View& v = std::get<View>(arg);
    wide[name] = v;
    if (v.type == DType::kI32 || v.type == DType::kI64) continue;
    Array& copy = storage.emplace(name, make_array(DType::kF64, v.rank, v.shape)).first->second;
    for (int64_t i = 0; i < v.count(); ++i) copy.view.as<double>()[i] = value_at(v, i);
    wide[name] = copy.view;
  }
  return wide;
}

Arrays outputs_of(const Operator& op, const Tensors& in) {
  Arrays out;
  for (const auto& [name, spec] : op.infer(in)) out.emplace(name, make_array(spec.type, spec.rank, spec.shape));
  return out;
}

// The loss: outputs times their weights; rows without a finite output (lse of an empty row) don't count.
double loss_of(const Operator& op, const Tensors& in, const Tensors& weights, Context& context) {
  Arrays out = outputs_of(op, in);
  op.forward(in, views(out), Form::kAny, context);
  double loss = 0;
  for (const auto& [name, arg] : weights) {
    const View &weight = std::get<View>(arg), &value = out.find(name)->second.view;
    for (int64_t i = 0; i < weight.count(); ++i)
      if (const double x = value_at(value, i); std::isfinite(x)) loss += value_at(weight, i) * x;
  }
  return loss;
}

}  // namespace

std::string Suite::compare_gradients(const Call& call, const Tensors& loss) {
  const Spec complete = registry_.complete(call.spec);
  const auto op = registry_.make<Operator>(call.spec);
  const auto reference = entry_.reference(complete);
  const Tensors in = call.tensors();
  Context context(1);
  context.isa = isa_;
  const Outputs out = result(call);

  auto gradients = [&](int threads, std::string_view alone = {}) {
    std::map<std::string, Guarded, std::less<>> arrays;
    Tensors to;
    for (const std::string_view port : entry_.traits.gradients)
      if (const auto found = call.arrays.find(port); found != call.arrays.end() && (alone.empty() || alone == port)) {
        const View& v = found->second.view();
        to[std::string(port)] =
            arrays.emplace(port, Guarded(DType::kF32, v.rank, v.shape, call.layout)).first->second.view();
      }
    const std::unique_lock<std::mutex> pool = pool_for(threads);
    Context several(threads);
    several.isa = isa_;
    op->backward(in, out.tensors(), loss, to, several);
    return arrays;
  };
  const auto got = gradients(1), with_threads = gradients(3);
  if (got.empty()) return "no gradient is declared for any of the inputs";

  const std::string& one = std::next(got.begin(), gradients_checked_++ % std::ssize(got))->first;
  const auto alone = gradients(1, one);
  if (const int64_t at = first_difference(got.find(one)->second.view(), alone.find(one)->second.view()); at >= 0)
    return fmt::format("grad {}[{}] depends on which others are asked for", one, at);

  Arrays wide, want;
  const Tensors wide_in = widened(in, wide);
  for (const auto& [name, array] : got)
    want.emplace(name, make_array(DType::kF64, array.view().rank, array.view().shape));
  Arrays exact = outputs_of(*reference, wide_in);
  reference->forward(wide_in, views(exact), Form::kAny, context);
  reference->backward(wide_in, views(exact), loss, views(want), context);

  Tensors with_loss = in;
  for (const auto& [name, arg] : loss) with_loss["grad " + name] = arg;
  for (const auto& [name, array] : got) {
    const std::string output = "grad " + name;
    if (!array.intact()) return output + ": memory outside its elements was written";
    if (const int64_t at = first_difference(array.view(), with_threads.find(name)->second.view()); at >= 0)
      return fmt::format("{}[{}] depends on the number of threads", output, at);
    const double limit = entry_.bound(complete, with_loss, output);
    const View& wanted = want.find(name)->second.view;
    if (std::string failure = compare(output, array.view(), wanted, limit); !failure.empty()) return failure;
    double most = 0;
    for (int64_t i = 0; i < wanted.count(); ++i) most = std::max(most, std::abs(value_at(wanted, i)));
    double& share = bound_share_.try_emplace(name, std::numeric_limits<double>::infinity()).first->second;
    if (most > 0) share = std::min(share, limit / most);
  }
  return {};
}

// Central differences with step h: their error is h^2 / 6 times a third derivative and, from rounding, eps |loss| / h.
std::string Suite::compare_differences(const Call& call, const Tensors& loss) {
  const auto reference = entry_.reference(registry_.complete(call.spec));
  Arrays wide, gradient;
  const Tensors in = widened(call.tensors(), wide);
  Context context(1);
  for (const std::string_view port : entry_.traits.gradients)
    if (const auto found = wide.find(port); found != wide.end())
      gradient.emplace(port, make_array(DType::kF64, found->second.view.rank, found->second.view.shape));
  Arrays out = outputs_of(*reference, in);
  reference->forward(in, views(out), Form::kAny, context);
  reference->backward(in, views(out), loss, views(gradient), context);
  for (auto& [port, array] : gradient) {
    double* x = wide.find(port)->second.view.as<double>();
    for (int64_t i = 0; i < array.view.count(); ++i) {
      constexpr double kStep = 1e-5;
      const double kept = x[i];
      x[i] = kept + kStep;
      const double above = loss_of(*reference, in, loss, context);
      x[i] = kept - kStep;
      const double below = loss_of(*reference, in, loss, context);
      x[i] = kept;
      const double difference = (above - below) / (2 * kStep), analytic = array.view.as<double>()[i];
      if (!(std::abs(difference - analytic) <= 1e-6 * (1 + std::abs(analytic))))
        return fmt::format("grad {}[{}]: definition {}, difference quotient {}", port, i, analytic, difference);
    }
  }
  return {};
}

void Suite::check_gradients() {
  if (entry_.traits.gradients.empty()) return;
  const Sizes shapes[] = {
      {1, 2, 1, 3, 5, 4, 3},       {1, 1, 1, 1, 1, 1, 1},     {2, 4, 2, 7, 13, 16, 16},  {1, 3, 1, 31, 17, 5, 9},
      {1, 6, 2, 133, 133, 24, 40}, {1, 2, 1, 67, 67, 80, 33}, {1, 2, 2, 5, 531, 64, 64}, {1, 1, 1, 3, 25, 512, 512},
      {1, 2, 1, 130, 700, 16, 48}, {1, 1, 1, 29, 0, 8, 8},    {1, 2, 1, 5, 5, 4, 3},
  };
  // Definitions walk all pairs, some of them all pairs of keys of each query.
  constexpr double kMostPairs = 0x1p21;
  const Spec plain = registry_.complete(spec({}));
  for (const Sizes& sizes : shapes) {
    if (entry_.pairs && entry_.pairs(plain, sizes) * static_cast<double>(sizes.hq) > kMostPairs) continue;
    for (const Spec& s : option_grid(sizes)) {
      if (!takes(sizes, s)) continue;
      const bool tiny = (sizes.tq * sizes.hq + sizes.tk * sizes.hkv) * (sizes.d + sizes.dv) < 200,
                 small = sizes.tq * sizes.tk * sizes.hq < 4000;
      if (!small && !s.options.empty() && random_() % 4 != 0) continue;
      std::vector<std::set<std::string, std::less<>>> port_sets = {{}};
      if (small)
        for (const Port& port : entry_.in)
          if (!port.required && port.name != "v") port_sets.push_back({std::string(port.name)});
      for (const auto& ports : port_sets) {
        const DType type = std::array{DType::kF32, DType::kF16, DType::kBF16}[random_() % 3];
        Call call = make_call(sizes, s, type, random_() % 2 ? Layout::kStrided : Layout::kDense, ports);
        std::map<std::string, Guarded, std::less<>> weights;
        Tensors loss;
        for (const Port& port : entry_.out) {
          if (port.name != "out" && random_() % 2) continue;
          int rank = 0;
          const Shape shape = port_shape(entry_, port, registry_.complete(s), sizes, rank);
          auto& array = weights.emplace(port.name, Guarded(DType::kF32, rank, shape, call.layout)).first->second;
          fill(array.view(), port, sizes, 1, random_);
          loss[std::string(port.name)] = array.view();
        }
        record("gradients", call.text(), [&] { return compare_gradients(call, loss); });
        // The definition is the same on every instruction set.
        if (tiny && isa_ == std::ranges::find_if(isa_list(), &IsaInfo::usable)->isa)
          record("definition's gradients", call.text(), [&] { return compare_differences(call, loss); });
      }
    }
  }
  // A bound that no error exceeds would prove nothing.
  for (const auto& each : bound_share_)
    record("gradients' bounds", each.first, [&]() -> std::string {
      if (each.second <= kLargestBoundShare) return {};
      return fmt::format("the bound of grad {} is never below {:.2g} of the largest gradient", each.first, each.second);
    });
}

}  // namespace attend::conformance
