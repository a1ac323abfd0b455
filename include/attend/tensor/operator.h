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
  double min, max;  // inclusive; of numbers
};

struct Port {
  std::string_view name, shape;  // shape: axis names, "B Hq Tq D"
  std::string_view types;        // "f32", or "f32 f16 bf16"
  bool required;
  std::string_view help;
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
};

}  // namespace attend
