// Any text: parsed or refused with attend::Error; what parses is written and parsed back to the same specs. The same
// for policies over a registry with options of every type.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "attend/tensor/error.h"
#include "attend/tensor/registry.h"
#include "attend/tensor/spec.h"

namespace {

using namespace attend;

constexpr Option kOptions[] = {{"n", "tokens", "", "0", OptionType::kInteger, 0, 1e15},
                               {"x", "", "", "0", OptionType::kReal, -1e30, 1e30},
                               {"f", "", "", "false", OptionType::kFlag, 0, 0},
                               {"t", "", "", "a", OptionType::kText, 0, 0, "a|b"},
                               {"p", "", "", "", OptionType::kText, 0, 0, {}, true}};

const Registry& small() {
  static const std::vector<Entry> entries = [] {
    std::vector<Entry> all;
    for (const auto& [kind, name] : {std::pair{Kind::kMechanism, "softmax"},
                                     {Kind::kRetention, "r"},
                                     {Kind::kSelector, "s"},
                                     {Kind::kStore, "contiguous"},
                                     {Kind::kCodec, "f16"}}) {
      Entry entry{};
      entry.kind = kind;
      entry.name = name;
      entry.options = kOptions;
      entry.make = [](const Spec&) { return std::make_unique<Component>(); };
      all.push_back(entry);
    }
    return all;
  }();
  static const Registry registry = [] {
    Registry made;
    for (const Entry& entry : entries) made.add(entry);
    return made;
  }();
  return registry;
}

template <class F>
void refused_or(F f) {
  try {
    f();
  } catch (const Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  refused_or([&] {
    std::string joined;
    const std::vector<Spec> specs = parse_specs(text);
    for (const Spec& spec : specs) joined += (joined.empty() ? "" : "+") + to_string(spec);
    if (parse_specs(joined) != specs) std::abort();
  });
  for (const auto split : {split_policies, split_readings})
    refused_or([&] {
      for (const std::string& part : split(text)) refused_or([&] { parse_specs(part); });
    });
  refused_or([&] {
    const std::string written = to_string(small().policy(text), small());
    std::string again;
    try {
      again = to_string(small().policy(written), small());
    } catch (const Error&) {  // what was taken once is taken again
    }
    if (again != written) std::abort();
  });
  return 0;
}
