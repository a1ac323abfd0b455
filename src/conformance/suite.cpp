#include "conformance/suite.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "attend/simd/isa.h"

namespace attend::conformance {

Tensors Call::tensors() const {
  Tensors t;
  for (const auto& [name, array] : arrays) t[name] = array.view();
  return t;
}

std::string Call::text() const {
  std::string ports;
  for (const std::string& port : optional_ports) ports += "+" + port;
  return fmt::format("{} {}{}{} {}", text_of(sizes), name_of(kv_type), layout == Layout::kStrided ? " strided" : "",
                     ports, to_string(spec));
}

Tensors Outputs::tensors() const {
  Tensors t;
  for (const auto& [name, array] : arrays) t[name] = array.view();
  return t;
}

bool Suite::has_option(std::string_view name) const {
  for (const Option& option : entry_.options)
    if (option.name == name) return true;
  return false;
}

const Port* Suite::in_port(std::string_view name) const {
  for (const Port& port : entry_.in)
    if (port.name == name) return &port;
  return nullptr;
}

bool Suite::takes(const Sizes& sizes, const Spec& spec) const {
  return !entry_.refuses || entry_.refuses(registry_.complete(spec), sizes).empty();
}

Sizes Suite::fit(Sizes sizes, const Spec& spec) const {
  if (!takes(sizes, spec)) sizes.hkv = sizes.hq;
  if (!takes(sizes, spec)) sizes.tq = sizes.tk;
  if (!takes(sizes, spec)) sizes.dv = sizes.d;
  return sizes;
}

Spec Suite::spec(std::initializer_list<std::pair<std::string_view, std::string>> options) const {
  Spec s{std::string(entry_.name), {}};
  for (const auto& [name, value] : options)
    if (has_option(name)) s.set(name, value);
  if (compute_ != Compute::kF32) s.set("compute", std::string(name_of(compute_)));
  return s;
}

// Every option at a few values of its range, alone and with `causal`.
std::vector<Spec> Suite::option_grid(const Sizes& sizes) {
  std::vector<Spec> grid = {spec({})};
  for (const Option& option : entry_.options) {
    std::vector<std::string> values;
    auto number = [&](double x) {
      if (x >= option.min && x <= option.max) values.push_back(fmt::format("{}", x));
    };
    if (option.type == OptionType::kFlag) values = {"true", "false"};
    if (option.type == OptionType::kInteger)
      for (int64_t x : {int64_t{1}, int64_t{7}, sizes.tk / 2 + 1, sizes.tk + 3}) number(static_cast<double>(x));
    if (option.type == OptionType::kReal)
      for (double x : {0.3, 5.0}) number(x);
    for (size_t at = 0; option.type == OptionType::kText && at < option.choices.size();) {
      const size_t end = std::min(option.choices.find('|', at), option.choices.size());
      values.emplace_back(option.choices.substr(at, end - at));
      at = end + 1;
    }
    for (const std::string& value : values) {
      grid.push_back(spec({{option.name, value}}));
      if (option.name != "causal" && has_option("causal"))
        grid.push_back(spec({{"causal", "true"}, {option.name, value}}));
    }
  }
  if (has_option("window") && has_option("sinks"))
    for (const auto& [window, sinks] : {std::pair{"5", "2"}, {"64", "4"}, {"1", "1"}})
      grid.push_back(spec({{"causal", "true"}, {"window", window}, {"sinks", sinks}, {"prefix", "3"}}));
  return grid;
}

Call Suite::make_call(const Sizes& sizes, const Spec& spec, DType kv_type, Layout layout,
                      std::set<std::string, std::less<>> optional_ports) {
  Call call{sizes, registry_.complete(spec), layout, kv_type, std::move(optional_ports), {}};
  call.spec = spec;
  for (const Port& port : entry_.in) {
    if (port.name != "v" && !port.required && !call.optional_ports.contains(port.name)) continue;
    int rank = 0;
    const Shape shape = port_shape(entry_, port, registry_.complete(spec), sizes, rank);
    DType type = DType::kF32;
    if (port.types.starts_with("i32")) type = DType::kI32;
    if ((port.name == "k" || port.name == "v") && port.types.find("f16") != std::string_view::npos) type = kv_type;
    auto& array = call.arrays.emplace(port.name, Guarded(type, rank, shape, layout)).first->second;
    // Dot products of deviation 2 after the scale: weights neither flat nor one-hot.
    fill(array.view(), port, sizes, port.name == "q" ? 2.0 : 1.0, random_);
  }
  return call;
}

Outputs Suite::outputs(const Call& call) const {
  Outputs out;
  for (const Port& port : entry_.out) {
    int rank = 0;
    const Shape shape = port_shape(entry_, port, registry_.complete(call.spec), call.sizes, rank);
    out.arrays.emplace(port.name, Guarded(DType::kF32, rank, shape, call.layout));
  }
  return out;
}

void Suite::forward(const Call& call, const Tensors& in, const Outputs& out, int threads) {
  const std::unique_lock<std::mutex> pool = pool_for(threads);
  Context context(threads);
  context.isa = isa_;
  registry_.make<Operator>(call.spec)->forward(in, out.tensors(), Form::kAny, context);
}

std::unique_lock<std::mutex> Suite::pool_for(int threads) {
  static std::mutex pool;
  return threads > 1 ? std::unique_lock(pool) : std::unique_lock<std::mutex>();
}

Outputs Suite::result(const Call& call, int threads) {
  Outputs out = outputs(call);
  forward(call, call.tensors(), out, threads);
  return out;
}

std::string Suite::compare_bits(const Outputs& a, const Outputs& b) {
  for (const auto& [name, array] : a.arrays) {
    const View &x = array.view(), &y = b.arrays.find(name)->second.view();
    if (const int64_t at = first_difference(x, y); at >= 0)
      return fmt::format("{}[{}]: {} and {} differ in bits", name, at, value_at(x, at), value_at(y, at));
  }
  return {};
}

std::map<std::string, Array, std::less<>> Suite::definition(const Call& call, const Tensors& in) {
  const auto reference = entry_.reference(registry_.complete(call.spec));
  Tensors expected;
  std::map<std::string, Array, std::less<>> storage;
  for (const auto& [name, spec] : reference->infer(in)) {
    auto& array = storage.emplace(name, make_array(spec.type, spec.rank, spec.shape)).first->second;
    expected[name] = array.view;
  }
  Context context(1);
  reference->forward(in, expected, Form::kAny, context);
  return storage;
}

std::string Suite::compare_references(const Call& call, const Tensors& in, const Tensors& also) {
  const auto want = definition(call, in), got = definition(call, also);
  for (const auto& [name, array] : want) {
    const View &x = array.view, &y = got.find(name)->second.view;
    if (const int64_t at = first_difference(x, y); at >= 0)
      return fmt::format("definition of {}[{}]: {} and {}", name, at, value_at(x, at), value_at(y, at));
  }
  return {};
}

std::string Suite::compare_with_reference(const Call& call, const Outputs& out) {
  const Tensors in = call.tensors();
  const auto storage = definition(call, in);
  if (!entry_.bound) return "the entry has no bound";
  for (const auto& [name, guarded] : out.arrays) {
    if (!guarded.intact()) return fmt::format("{}: memory outside its elements was written", name);
    const double limit = entry_.bound(registry_.complete(call.spec), in, name);
    if (std::string failure = compare(name, guarded.view(), storage.find(name)->second.view, limit); !failure.empty())
      return failure;
  }
  return {};
}

std::string Suite::compare(std::string_view name, const View& got, const View& want, double limit) {
  double worst = 0;
  std::string failure;
  for (int64_t i = 0; i < got.count(); ++i) {
    const double x = value_at(got, i), y = value_at(want, i);
    if (std::isnan(x) && std::isnan(y)) continue;
    const double error = x == y ? 0 : std::abs(x - y);
    if (error <= limit || error <= worst) continue;
    if (!std::isnan(error)) worst = error;
    failure = fmt::format("{}[{}]: got {}, want {}, bound {:.3g}", name, i, x, y, limit);
  }
  return failure;
}

void Suite::record(std::string_view property, const std::string& shape, const std::function<std::string()>& body) {
  context_.throw_if_stopped();
  const std::string name = fmt::format("{}/{}/{}/{}", entry_.name, name_of(isa_), property, shape);
  std::string failure;
  try {
    failure = body();
  } catch (const Error& e) {
    if (e.kind() == ErrorKind::kCancelled) throw;
    failure = e.what();
  }
  if (failure.empty()) {
    ++report_.passed;
  } else {
    report_.failures.push_back({name, fmt::format("{} (seed {})", failure, seed_)});
  }
}

void Suite::run() {
  check_reference();
  check_refusals();
  for (const Compute compute :
       {Compute::kF32, Compute::kBF16, Compute::kInt8Hadamard, Compute::kFp8, Compute::kInt8Qk}) {
    if (compute != Compute::kF32 && !has_option("compute")) continue;
    compute_ = compute;
    check_threads();
    check_batch();
    check_future();
    check_hidden_nan();
    check_chunks();
    check_limits();
    check_key_views();
  }
  compute_ = Compute::kF32;
  check_gradients();
}

}  // namespace attend::conformance
