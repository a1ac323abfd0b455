#pragma once
// Every mechanism of the registry over key views that a test makes.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <initializer_list>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "attend/tensor/npy.h"
#include "attend/tensor/registry.h"

namespace attend::test {

// One mechanism at one size, its required inputs but keys and values drawn from `random`.
class KeyReader {
 public:
  const Sizes sizes;

  KeyReader(const Entry& entry, const Spec& spec, const Sizes& wanted, std::mt19937_64& random)
      : sizes(wanted), random_(random), op_(registry().make<Operator>(spec)) {
    for (const Port& port : entry.in) {
      if (!port.required || port.name == "k" || port.name == "v") continue;
      int rank = 0;
      const Shape shape = port_shape(entry, port, spec, sizes, rank);
      const View& view = arrays_.emplace(port.name, make_array(DType::kF32, rank, shape)).first->second.view;
      std::uniform_real_distribution<float> uniform(static_cast<float>(port.low), static_cast<float>(port.high));
      for (int64_t i = 0; i < view.count(); ++i)
        view.as<float>()[i] = port.low < port.high ? uniform(random_) : normal_(random_);
      in_[std::string(port.name)] = view;
    }
  }

  std::vector<float> normal(int64_t n) {
    std::vector<float> x(static_cast<size_t>(n));
    for (float& e : x) e = normal_(random_);
    return x;
  }

  // Its `out`; throws Error where it reads no key views.
  std::vector<float> run(std::span<const KeyView> keys) {
    Tensors in = in_;
    in["k"] = keys;
    Context context(2);
    op_->forward(in, {{"out", out_.view}}, Form::kAny, context);
    return {out_.view.as<float>(), out_.view.as<float>() + out_.view.count()};
  }

 private:
  std::mt19937_64& random_;
  std::normal_distribution<float> normal_;
  std::unique_ptr<Operator> op_;
  std::map<std::string, Array, std::less<>> arrays_;
  Tensors in_;
  Array out_ = make_array(DType::kF32, 4, {sizes.b, sizes.hq, sizes.tq, sizes.dv});
};

// f(reader) for every mechanism and those of the sizes that it takes.
template <class F>
void each_mechanism(unsigned seed, std::initializer_list<Sizes> all, F f) {
  std::mt19937_64 random(seed);
  for (const Entry* entry : registry().entries()) {
    if (entry->kind != Kind::kMechanism) continue;
    SCOPED_TRACE(fmt::format("{}, seed {}", entry->name, seed));
    const Spec spec = registry().complete(Spec{std::string(entry->name), {}});
    for (const Sizes& sizes : all) {
      if (entry->refuses && !entry->refuses(spec, sizes).empty()) continue;
      KeyReader reader(*entry, spec, sizes, random);
      f(reader);
    }
  }
}

}  // namespace attend::test
