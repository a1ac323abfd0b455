#include "attend/report/heat_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>

#include "attend/report/table.h"
#include "attend/tensor/error.h"

namespace attend {
namespace {

constexpr double kCellWidth = 58, kCellHeight = 30, kLeft = 64, kTop = 6, kBottom = 40;

struct Colour {
  double red, green, blue;
};

// From light to dark: each stop is darker than the one before.
constexpr std::array<Colour, 5> kStops = {
    Colour{255, 247, 217}, {250, 206, 134}, {232, 137, 96}, {168, 62, 97}, {68, 21, 82}};

// At a share of the way from the first colour to the last.
Colour colour_at(double share) {
  const double at = std::clamp(share, 0.0, 1.0) * (kStops.size() - 1);
  const size_t i = std::min(static_cast<size_t>(at), kStops.size() - 2);
  const double t = at - static_cast<double>(i);
  auto mix = [t](double a, double b) { return a + (b - a) * t; };
  return {mix(kStops[i].red, kStops[i + 1].red), mix(kStops[i].green, kStops[i + 1].green),
          mix(kStops[i].blue, kStops[i + 1].blue)};
}

std::string fill(const Colour& colour) {
  return fmt::format("#{:02x}{:02x}{:02x}", static_cast<int>(std::lround(colour.red)),
                     static_cast<int>(std::lround(colour.green)), static_cast<int>(std::lround(colour.blue)));
}

const char* ink_on(const Colour& colour) {
  return 0.299 * colour.red + 0.587 * colour.green + 0.114 * colour.blue > 140 ? "#16181d" : "#ffffff";
}

std::string value_text(double value, bool percent) {
  return percent ? fmt::format("{:.0f}%", 100 * value) : number_text(value);
}

std::string svg(const HeatMaps& maps, const HeatMap& map, double low, double high) {
  const double width = kLeft + kCellWidth * static_cast<double>(maps.columns.size()) + 2;
  const double cells = kCellHeight * static_cast<double>(maps.rows.size());
  const double top = kTop + std::max(0.0, 7.2 * static_cast<double>(maps.y_label.size()) - cells) / 2;  // for the label
  const double height = 2 * top - kTop + cells + kBottom;
  std::string out = fmt::format(
      "<svg viewBox=\"0 0 {0:.0f} {1:.0f}\" style=\"width:{0:.0f}px\" role=\"img\" aria-label=\"{2}: {3}\">\n", width,
      height, escape_html(maps.title), escape_html(map.name));
  for (size_t r = 0; r < maps.rows.size(); ++r) {
    const double y = top + kCellHeight * static_cast<double>(r);
    out += fmt::format("<text class=\"tick\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n", kLeft - 8,
                       y + kCellHeight / 2 + 4, escape_html(maps.rows[r]));
    for (size_t c = 0; c < maps.columns.size(); ++c) {
      const double value = map.values[r * maps.columns.size() + c], x = kLeft + kCellWidth * static_cast<double>(c);
      if (!std::isfinite(value)) continue;
      const Colour colour = colour_at(high > low ? (value - low) / (high - low) : 0);
      const std::string shown = value_text(value, maps.percent);
      out += fmt::format(
          "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"3\" fill=\"{}\"><title>{}, {}: {}</title></rect>"
          "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"{}\" pointer-events=\"none\">{}</text>\n",
          x + 1, y + 1, kCellWidth - 2, kCellHeight - 2, fill(colour), escape_html(maps.rows[r]),
          escape_html(maps.columns[c]), shown, x + kCellWidth / 2, y + kCellHeight / 2 + 4, ink_on(colour), shown);
    }
  }
  const double base = height - kBottom;
  for (size_t c = 0; c < maps.columns.size(); ++c)
    out += fmt::format("<text class=\"tick\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
                       kLeft + kCellWidth * (static_cast<double>(c) + 0.5), base + 16, escape_html(maps.columns[c]));
  out += fmt::format("<text class=\"label\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n", (kLeft + width) / 2,
                     height - 6, escape_html(maps.x_label));
  const double middle = (kTop + base) / 2;
  out += fmt::format(
      "<text class=\"label\" x=\"12\" y=\"{0}\" text-anchor=\"middle\" transform=\"rotate(-90 12 {0})\">{1}</text>\n",
      middle, escape_html(maps.y_label));
  return out + "</svg>";
}

std::string scale(double low, double high, bool percent) {
  std::string out = fmt::format("<div class=\"legend\"><span>{}", value_text(low, percent));
  out += "<svg viewBox=\"0 0 160 10\" style=\"width:160px\" aria-hidden=\"true\">";
  constexpr int kSteps = 32;
  for (int i = 0; i < kSteps; ++i)
    out += fmt::format("<rect x=\"{}\" width=\"5.5\" height=\"10\" fill=\"{}\"/>", 5 * i,
                       fill(colour_at(i / (kSteps - 1.0))));
  return out + fmt::format("</svg>{}</span></div>\n", value_text(high, percent));
}

}  // namespace

std::string heat_maps_html(const HeatMaps& maps) {
  double low = INFINITY, high = -INFINITY;
  for (const HeatMap& map : maps.maps) {
    if (map.values.size() != maps.rows.size() * maps.columns.size())
      throw Error(ErrorKind::kArgument, "heat map", "values", std::to_string(map.values.size()),
                  fmt::format("must be one a cell, {}", maps.rows.size() * maps.columns.size()));
    for (double value : map.values)
      if (std::isfinite(value)) low = std::min(low, value), high = std::max(high, value);
  }
  if (maps.range) std::tie(low, high) = *maps.range;
  std::string out = fmt::format("<figure class=\"chart\">\n<figcaption>{}</figcaption>\n", escape_html(maps.title));
  if (!maps.caption.empty()) out += fmt::format("<p class=\"caption\">{}</p>\n", escape_html(maps.caption));
  if (low <= high) out += scale(low, high, maps.percent);
  out += "<div class=\"maps\">\n";
  for (const HeatMap& map : maps.maps)
    out += fmt::format("<div><code>{}</code>\n{}</div>\n", escape_html(map.name), svg(maps, map, low, high));
  return out + "</div>\n</figure>\n";
}

}  // namespace attend
