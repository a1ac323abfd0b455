#pragma once
// All entries of the library, and specs and policies checked against them.
#include <array>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "attend/tensor/error.h"
#include "attend/tensor/operator.h"

namespace attend {

// Specs by kind, at most one of each.
struct Policy {
  std::array<std::optional<Spec>, kKindCount> by_kind;

  const std::optional<Spec>& operator[](Kind kind) const { return by_kind[static_cast<int>(kind)]; }
  std::optional<Spec>& operator[](Kind kind) { return by_kind[static_cast<int>(kind)]; }
};

class Registry {
 public:
  // Throws Error(kArgument) if the name is taken.
  void add(const Entry& entry);

  const std::vector<const Entry*>& entries() const { return entries_; }
  const Entry* find(std::string_view name) const;

  // Throws Error(kSpec) naming the nearest entry.
  const Entry& at(std::string_view name) const;

  // The spec with every option of its entry present, in the entry's order and checked for type and range.
  // Throws Error(kSpec) for an unknown name or option (naming the nearest) and for a value out of range.
  Spec complete(const Spec& spec) const;

  // Specs of a policy; a mechanism is always present (`softmax` if omitted), as are codec `f16` and store `contiguous`.
  Policy policy(std::string_view text) const;

  // The component of a spec, as T.
  template <class T>
  std::unique_ptr<T> make(const Spec& spec) const {
    std::unique_ptr<Component> made = at(spec.name).make(complete(spec));
    if (T* typed = dynamic_cast<T*>(made.get())) return made.release(), std::unique_ptr<T>(typed);
    throw Error(ErrorKind::kSpec, "spec", spec.name, "", "is not of the kind that is wanted here");
  }

 private:
  std::vector<const Entry*> entries_;
};

// Shortest form of a completed policy: options at their default are left out.
std::string to_string(const Policy& policy, const Registry& registry);

// The name of `candidates` nearest to `name` by edit distance, or none if all are far.
std::optional<std::string_view> nearest_name(std::string_view name, const std::vector<std::string_view>& candidates);

// The registry of the whole library (target attend::attend).
const Registry& registry();

}  // namespace attend
