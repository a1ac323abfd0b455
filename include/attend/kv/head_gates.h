#pragma once
// How much each kv head of a model needs its whole context, as `attend fit duo` writes it and the plan `duo` reads it:
//
//   {"head_gates": 1, "model": {"name": "..", "layers": 2, "kv_heads": 3}, "gates": [[1, 0.2, 0], [0, 0, 0.7]],
//    "made_by": ".."}
//
// A layer whose own window leaves no choice has an empty list.
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace attend {

struct HeadGates {
  std::string model;  // its name
  int layers = 0, kv_heads = 0;
  static constexpr double kNone = -1;
  std::vector<double> gates;  // [layers, kv_heads], 0 to 1, or kNone in all heads of a layer
  std::string made_by;        // for people

  double gate(int layer, int kv_head) const { return gates[static_cast<size_t>(layer * kv_heads + kv_head)]; }
};

// `name` is for messages. Throws Error(kFile) for anything but the above.
HeadGates parse_head_gates(std::string_view json, std::string_view name);

// At most 4 MiB. Throws Error(kFile).
HeadGates read_head_gates(const std::filesystem::path& path);

// Throws Error(kSpec) if the gates of the plan `op` are those of another model.
void require_model(const HeadGates& gates, std::string_view op, std::string_view model, int layers, int kv_heads);

std::string to_json(const HeadGates& gates);

}  // namespace attend
