#pragma once
// One entry under test on one instruction set: builds calls, runs properties, records cases.
#include <functional>
#include <mutex>
#include <set>
#include <string>

#include "attend/conformance/conformance.h"
#include "attend/tensor/compute.h"
#include "conformance/arrays.h"

namespace attend::conformance {

// Inputs of one call, by port.
struct Call {
  Sizes sizes;
  Spec spec;
  Layout layout = Layout::kDense;
  DType kv_type = DType::kF32;
  std::set<std::string, std::less<>> optional_ports;
  std::map<std::string, Guarded, std::less<>> arrays;

  Tensors tensors() const;
  std::string text() const;
};

struct Outputs {
  std::map<std::string, Guarded, std::less<>> arrays;
  Tensors tensors() const;
};

class Suite {
 public:
  Suite(const Registry& registry, const Entry& entry, Isa isa, uint64_t seed, Context& context,
        ConformanceReport& report)
      : registry_(registry), entry_(entry), isa_(isa), random_(seed), seed_(seed), context_(context), report_(report) {}

  void run();

 private:
  void check_reference();
  void check_threads();
  void check_batch();
  void check_future();
  void check_hidden_nan();
  void check_chunks();
  void check_limits();
  void check_key_views();
  void check_refusals();
  void check_gradients();

  bool has_option(std::string_view name) const;
  bool has_port(std::string_view name) const { return in_port(name) != nullptr; }
  const Port* in_port(std::string_view name) const;
  bool takes(const Sizes& sizes, const Spec& spec) const;
  // `sizes`, or the nearest that the entry takes: as many kv heads as query heads, then as many queries as keys.
  Sizes fit(Sizes sizes, const Spec& spec) const;
  Spec spec(std::initializer_list<std::pair<std::string_view, std::string>> options) const;
  std::vector<Spec> option_grid(const Sizes& sizes);
  Call make_call(const Sizes& sizes, const Spec& spec, DType kv_type, Layout layout,
                 std::set<std::string, std::less<>> optional_ports);
  Outputs outputs(const Call& call) const;
  // Held while a call has several threads: only one at a time gets the process's pool, others would run on one thread.
  static std::unique_lock<std::mutex> pool_for(int threads);
  void forward(const Call& call, const Tensors& in, const Outputs& out, int threads);
  Outputs result(const Call& call, int threads = 1);
  // What the reference gives, by output.
  std::map<std::string, Array, std::less<>> definition(const Call& call, const Tensors& in);
  // Empty if `out` is within the bound of the reference, everything is written and no guard is broken.
  std::string compare_with_reference(const Call& call, const Outputs& out);
  // Empty if the definition gives the same numbers for `in` as for `also`.
  std::string compare_references(const Call& call, const Tensors& in, const Tensors& also);
  static std::string compare_bits(const Outputs& a, const Outputs& b);
  // Empty if `got` is within `limit` of `want` everywhere.
  static std::string compare(std::string_view name, const View& got, const View& want, double limit);
  // Runs one case; what `body` returns is the failure, empty for a pass.
  // Gradients of random loss weights `loss` by the operator, by its reference, and by differences of the reference.
  std::string compare_gradients(const Call& call, const Tensors& loss);
  std::string compare_differences(const Call& call, const Tensors& loss);
  void record(std::string_view property, const std::string& shape, const std::function<std::string()>& body);

  const Registry& registry_;
  const Entry& entry_;
  Isa isa_;
  Random random_;
  uint64_t seed_;
  std::map<std::string, double, std::less<>> bound_share_;  // of gradients: the least bound to the largest element
  int64_t gradients_checked_ = 0;
  Compute compute_ = Compute::kF32;  // of the specs of properties, where the entry has such an option
  Context& context_;
  ConformanceReport& report_;
};

}  // namespace attend::conformance
