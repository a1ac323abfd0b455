#pragma once
// Charts as SVG: lines and scatters on linear or logarithmic axes.
#include <string>
#include <utility>
#include <vector>

namespace attend {

struct Series {
  std::string name;
  std::vector<std::pair<double, double>> values;  // x ascending in lines; values that are not finite are left out
  bool points = false;                            // markers, the first with the series' name beside it; else a line
};

// A series keeps its colour from chart to chart by its place among the series.
struct Chart {
  std::string title, x_label, y_label;
  bool log_x = false;
  std::vector<Series> series;
  bool log_y = false;
  std::string caption = {};
};

// A <figure> with title, legend and an inline SVG; everything is escaped. Needs the style of a Page.
std::string chart_html(const Chart& chart);

// Round values that cover [low, high]: about `wanted` of them; 1, 2, 5 times powers of ten on logarithmic axes.
std::vector<double> axis_ticks(double low, double high, int wanted, bool logarithmic);

}  // namespace attend
