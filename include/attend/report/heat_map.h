#pragma once
// Tables of numbers as coloured cells.
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace attend {

struct HeatMap {
  std::string name;
  std::vector<double> values;  // [rows, columns]; one that is not finite leaves its cell empty
};

// Maps side by side, with rows, columns and colours in common.
struct HeatMaps {
  std::string title, x_label, y_label;
  std::vector<std::string> columns, rows;
  std::vector<HeatMap> maps;
  std::optional<std::pair<double, double>> range = {};  // of the colours; none: what the values cover
  bool percent = false;                                 // values are shares
  std::string caption = {};
};

// A <figure> with a scale and an SVG a map; each cell shows its value. Larger values are darker, so that the colours
// can be told apart without colour too. Everything is escaped. Needs the style of a Page. Throws Error(kArgument) for a
// map whose values are not one a cell.
std::string heat_maps_html(const HeatMaps& maps);

}  // namespace attend
