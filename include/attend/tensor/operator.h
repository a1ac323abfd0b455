#pragma once
// The erased interface of everything with a name: entries with options and ports, and the operators that they make.
// The command line, the model, conformance and benchmarks call mechanisms through this alone.
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "attend/tensor/context.h"
#include "attend/tensor/key_view.h"
#include "attend/tensor/spec.h"
#include "attend/tensor/view.h"
#include "attend/tensor/weight_places.h"

namespace attend {

enum class Kind { kMechanism, kSelector, kPlan, kAllocator, kRetention, kStore, kCodec };
inline constexpr int kKindCount = 7;

constexpr std::string_view name_of(Kind kind) {
  constexpr std::string_view names[] = {"mechanism", "selector", "plan", "allocator", "retention", "store", "codec"};
  return names[static_cast<int>(kind)];
}

enum class OptionType { kInteger, kReal, kFlag, kText };

struct Option {
  std::string_view name, unit, help, fallback;  // fallback: the default, as a spec would write it
  OptionType type;
  double min, max;                // inclusive; of numbers
  std::string_view choices = {};  // of text: its values, separated by "|"; empty: any
  bool path = false;              // names a file or directory: a request over a network must not set it
};

struct Port {
  std::string_view name, shape;  // shape: axis names, "B Hq Tq D"
  std::string_view types;        // "f32", or "f32 f16 bf16"
  bool required;
  std::string_view help;
  double low = 0, high = 0;  // values lie in [low, high] if low < high
};

struct Paper {
  std::string_view title, arxiv, catalogue;  // arXiv id and catalogue id, empty where unknown
};

// What a result does not depend on (see docs/architecture.md, "Same bits").
enum class SameBits { kAny, kStride, kBound };

struct Traits {
  std::string_view exact_for;                  // one sentence
  std::span<const std::string_view> forms;     // ways of executing the definition
  std::span<const std::string_view> patterns;  // kinds of visibility it covers
  SameBits same_bits = SameBits::kAny;
  std::span<const std::string_view> gradients = {};  // input ports for which backward() gives a gradient
};

// Sizes by the axis names that ports use.
struct Sizes {
  int64_t b = 1, hq = 1, hkv = 1, tq = 1, tk = 1, d = 1, dv = 1;
};

// A port's value: an array, or (port "k" of exact attention, with no "v" beside it) the keys of a model's store, one
// view for each batch entry and kv head, [B * Hkv].
using Arg = std::variant<View, std::span<const KeyView>>;
using Tensors = std::map<std::string, Arg, std::less<>>;

struct TensorSpec {
  DType type;
  int rank;
  Shape shape;
};

enum class Form { kAny, kParallel, kChunked, kRecurrent };

struct Component {
  virtual ~Component() = default;
};

// One mechanism with its options fixed. Operators hold no state between calls and may be shared by threads.
struct Operator : Component {
  // Types and shapes of all outputs. Throws Error(kArgument) for inputs that don't fit the ports or each other.
  virtual std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const = 0;

  // Writes the outputs that `out` names. Everything is checked before anything is written.
  virtual void forward(const Tensors& in, const Tensors& out, Form form, Context& context) const = 0;

  // Gradients of a loss: `out` holds what forward() gave for `in` (every output of the entry), `grad_out` the gradients
  // of some outputs, by name; writes the gradients of the input ports that `grad_in` names. Throws
  // Error(kUnsupported) where the mechanism has no backward.
  virtual void backward(const Tensors& in, const Tensors& out, const Tensors& grad_out, const Tensors& grad_in,
                        Context& context) const;

  // Whether queries and keys are turned to their positions here (rotary embeddings of the mechanism's own). A model
  // then leaves both as they are and passes new keys, [1, Hkv, T, D] f32 at `positions`, through turn_keys(), in place,
  // before it stores them: key views that forward() gets hold such keys, where arrays hold unturned ones.
  virtual bool turns() const { return false; }
  virtual void turn_keys(const View& keys, std::span<const int32_t> positions, Context& context) const;

  // Whether add_weights() works: weights are those of a softmax over keys.
  virtual bool gives_weights() const { return false; }

  // Gathers the weights that the queries of `in` give to the keys; `lse` is what forward() gave for `in`. Throws
  // Error(kUnsupported) where gives_weights() is false.
  virtual void add_weights(const Tensors& in, const View& lse, const WeightPlaces& to, Context& context) const;
  // forward() and add_weights() in one, with the same bits; `out` names lse. Few queries read their keys once.
  virtual void forward_and_add_weights(const Tensors& in, const Tensors& out, const WeightPlaces& to,
                                       Context& context) const;

  // Positions of the keys that some query at `position` or later can see, ascending and disjoint. What lies outside may
  // be dropped for good.
  virtual std::vector<KeyRange> needed_from(int64_t position) const {
    (void)position;
    return {{0, kNoEnd}};
  }
};

struct Entry {
  Kind kind;
  std::string_view name, room, equation, summary;
  std::span<const Option> options;
  std::span<const Port> in, out;
  std::span<const Paper> papers;
  Traits traits;
  std::string_view notes;                                         // limits and departures from the source
  std::unique_ptr<Component> (*make)(const Spec&);                // from a completed spec
  std::unique_ptr<Operator> (*reference)(const Spec&) = nullptr;  // mechanisms: the double-precision definition

  // Mechanisms: the largest |computed - reference| of an output, or of the gradient of a port ("grad q"), from the
  // completed spec and the inputs; computed from lengths, epsilons and norms (attend/tensor/bound.h).
  double (*bound)(const Spec&, const Tensors& in, std::string_view output) = nullptr;
  // The size of an axis that `Sizes` does not name; -1 if it has none. Null where all axes of the ports are named
  // there.
  int64_t (*axis)(std::string_view name, const Spec&, const Sizes&) = nullptr;
  // The definition as einsums (attend/tensor/cascade.h) over queries i and keys j, and how often the kernel reads the
  // keys.
  std::string_view cascade = {};
  int passes = 0;
  // Why the mechanism does not take such sizes (say, fewer kv heads than query heads), empty if it does. Null: any.
  std::string_view (*refuses)(const Spec&, const Sizes&) = nullptr;
  // How often the definition multiplies a query with a key in one head, where it is not once for every pair that
  // options and patterns make visible: what benchmarks count as work. Null: as often.
  double (*pairs)(const Spec&, const Sizes&) = nullptr;
  // Other names that a spec may use.
  std::span<const std::string_view> aliases = {};
};

// The shape of a port for given sizes; a number in Port::shape stands for itself. Throws Error(kUnsupported) for an
// axis that neither `Sizes` nor the entry names.
Shape port_shape(const Entry& entry, const Port& port, const Spec& spec, const Sizes& sizes, int& rank);

}  // namespace attend
