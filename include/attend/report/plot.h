#pragma once
// Charts as SVG: lines and scatters on linear or logarithmic axes.
#include <cstdint>
#include <span>
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

// The same as a picture that stands alone, for light and dark screens: an SVG document.
std::string chart_svg(const Chart& chart);

// Means over the last `window` values, at no more than about 400 places; x counts from `begin`.
std::vector<std::pair<double, double>> moving_mean(std::span<const float> values, int64_t begin, int64_t window);

// Round values that cover [low, high]: about `wanted` of them; 1, 2, 5 times powers of ten on logarithmic axes.
std::vector<double> axis_ticks(double low, double high, int wanted, bool logarithmic);

}  // namespace attend
