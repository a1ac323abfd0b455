#include "attend/report/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "attend/report/table.h"
#include "style.h"

namespace attend {
namespace {

constexpr double kWidth = 880, kHeight = 360, kLeft = 64, kRight = 24, kTop = 14, kBottom = 46;
constexpr int kColours = 8;

struct Axis {
  double low = 0, high = 1;
  bool logarithmic = false;
  double from = 0, to = 1;  // in the picture

  double at(double value) const {
    const auto scaled = [&](double x) { return logarithmic ? std::log10(x) : x; };
    return from + (to - from) * (scaled(value) - scaled(low)) / (scaled(high) - scaled(low));
  }
};

bool drawable(double value, bool logarithmic) {
  return std::isfinite(value) && (!logarithmic || value > 0);
}

// The range of an axis: what the values cover and a little more.
Axis axis_over(const Chart& chart, bool x) {
  Axis axis{.logarithmic = x ? chart.log_x : chart.log_y};
  double low = std::numeric_limits<double>::infinity(), high = -low;
  bool points = false;
  for (const Series& series : chart.series) {
    points |= series.points;
    for (const auto& [vx, vy] : series.values) {
      if (!drawable(vx, chart.log_x) || !drawable(vy, chart.log_y)) continue;
      low = std::min(low, x ? vx : vy);
      high = std::max(high, x ? vx : vy);
    }
  }
  if (low > high) low = axis.logarithmic ? 0.1 : 0, high = 1;
  if (axis.logarithmic) {
    const double room = std::pow(high / low, 0.06) * (low == high ? 2 : 1);
    axis.low = low / room;
    axis.high = high * room;
  } else {
    const double span = low == high ? std::max(1e-9, std::abs(low)) : high - low;
    const double room = x && !points ? 0 : 0.07 * span;
    axis.low = low >= 0 && low - room < 0 ? 0 : low - room;
    axis.high = high + (x && !points && low == high ? span : room);
    if (axis.low == axis.high) axis.high += span;
  }
  return axis;
}

std::string tick_text(double value) {
  const double size = std::abs(value);
  if (value == 0) return "0";
  if (size >= 1e9) return fmt::format("{:g}G", value / 1e9);
  if (size >= 1e6) return fmt::format("{:g}M", value / 1e6);
  if (size >= 1e4) return fmt::format("{:g}k", value / 1e3);
  return fmt::format("{:g}", value);
}

struct Box {
  double x0, y0, x1, y1;
  bool meets(const Box& other) const { return x0 < other.x1 && other.x0 < x1 && y0 < other.y1 && other.y0 < y1; }
};

class Drawing {
 public:
  // `scripted`: with the values that a page's script shows.
  Drawing(const Chart& chart, bool scripted)
      : chart_(chart), scripted_(scripted), x_(axis_over(chart, true)), y_(axis_over(chart, false)) {
    x_.from = kLeft;
    x_.to = kWidth - kRight;
    y_.from = kHeight - kBottom;
    y_.to = kTop;
  }

  std::string svg() {
    return fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n{}</svg>", kWidth, kHeight,
                       escape_html(chart_.title), body());
  }

  // Its elements, of kWidth x kHeight.
  std::string body() {
    axes();
    for (size_t i = 0; i < chart_.series.size(); ++i) {
      if (!chart_.series[i].points) line(i);
    }
    for (size_t i = 0; i < chart_.series.size(); ++i) {
      if (chart_.series[i].points) markers(i);
    }
    for (size_t i = 0; i < chart_.series.size(); ++i) {
      if (chart_.series[i].points) label(i);
    }
    if (chart_.series.empty()) {
      out_ += fmt::format("<text class=\"tick\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">no data</text>\n", kWidth / 2,
                          kHeight / 2);
    }
    return out_;
  }

  // After svg() or body(): every scatter has its name beside it, so that no legend is needed.
  bool named_all() const { return named_all_; }

 private:
  void axes() {
    for (const double tick : axis_ticks(y_.low, y_.high, 5, y_.logarithmic)) {
      out_ += fmt::format(
          "<line class=\"grid\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>"
          "<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>\n",
          x_.from, x_.to, y_.at(tick), y_.at(tick), x_.from - 8, y_.at(tick) + 4, tick_text(tick));
    }
    for (const double tick : axis_ticks(x_.low, x_.high, 8, x_.logarithmic)) {
      out_ += fmt::format(
          "<line class=\"axis\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>"
          "<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>\n",
          x_.at(tick), x_.at(tick), y_.from, y_.from + 4, x_.at(tick), y_.from + 18, tick_text(tick));
    }
    out_ += fmt::format("<line class=\"axis\" x1=\"{}\" x2=\"{}\" y1=\"{}\" y2=\"{}\"/>\n", x_.from, x_.to, y_.from,
                        y_.from);
    out_ += fmt::format("<text class=\"label\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
                        (x_.from + x_.to) / 2, kHeight - 8, escape_html(chart_.x_label));
    const double middle = (y_.from + y_.to) / 2;
    out_ += fmt::format(
        "<text class=\"label\" x=\"14\" y=\"{0}\" text-anchor=\"middle\" transform=\"rotate(-90 14 "
        "{0})\">{1}</text>\n",
        middle, escape_html(chart_.y_label));
  }

  void line(size_t index) {
    const Series& series = chart_.series[index];
    std::string path, values;
    bool pen_down = false;
    for (const auto& [vx, vy] : series.values) {
      const bool good = drawable(vx, chart_.log_x) && drawable(vy, chart_.log_y);
      if (good) {
        path += fmt::format("{}{:.1f} {:.1f}", pen_down ? "L" : "M", x_.at(vx), y_.at(vy));
        if (scripted_) values += fmt::format("{:.6g},{:.6g},{:.1f} ", vx, vy, x_.at(vx));
      }
      pen_down = good;
    }
    const std::string data =
        scripted_ ? fmt::format(" data-name=\"{}\" data-values=\"{}\"", escape_html(series.name), values) : "";
    out_ += fmt::format("<path class=\"line s{}\"{}{} d=\"{}\"/>\n", index % kColours,
                        index >= kColours ? " stroke-dasharray=\"6 4\"" : "", data, path);
  }

  void markers(size_t index) {
    const Series& series = chart_.series[index];
    for (const auto& [vx, vy] : series.values) {
      if (!drawable(vx, chart_.log_x) || !drawable(vy, chart_.log_y)) continue;
      const double x = x_.at(vx), y = y_.at(vy);
      taken_.push_back({x - 8, y - 8, x + 8, y + 8});
      out_ += fmt::format(
          "<circle class=\"point s{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"6\"><title>{}: {}, {}</title>"
          "</circle>\n",
          index % kColours, x, y, escape_html(series.name), number_text(vx), number_text(vy));
    }
  }

  // The series' name beside its first point, where no point and no other name is.
  void label(size_t index) {
    const Series& series = chart_.series[index];
    if (series.values.empty()) return;
    const auto [vx, vy] = series.values.front();
    if (!drawable(vx, chart_.log_x) || !drawable(vy, chart_.log_y)) return;
    const double x = x_.at(vx), y = y_.at(vy), width = 6.7 * static_cast<double>(series.name.size()) + 4;
    struct Place {
      double x, y;
      const char* anchor;
      Box box;
    };
    std::vector<Place> places;
    for (const double dy : {0.0, -14.0, 14.0, -28.0, 28.0, -42.0, 42.0}) {
      const double base = y + dy + 4;
      places.push_back({x + 11, base, "start", {x + 10, base - 12, x + 11 + width, base + 3}});
      places.push_back({x - 11, base, "end", {x - 11 - width, base - 12, x - 10, base + 3}});
    }
    const Place* chosen = nullptr;
    for (const Place& place : places) {
      const bool inside = place.box.x0 > kLeft && place.box.x1 < kWidth && place.box.y0 > 0 && place.box.y1 < y_.from;
      const bool free =
          std::none_of(taken_.begin(), taken_.end(), [&](const Box& box) { return box.meets(place.box); });
      if (inside && free) {
        chosen = &place;
        break;
      }
    }
    if (!chosen) {
      named_all_ = false;
      return;
    }
    taken_.push_back(chosen->box);
    out_ += fmt::format("<text class=\"name\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", chosen->x,
                        chosen->y, chosen->anchor, escape_html(series.name));
  }

  const Chart& chart_;
  bool scripted_;
  Axis x_, y_;
  std::vector<Box> taken_;
  bool named_all_ = true;
  std::string out_;
};

}  // namespace

std::vector<double> axis_ticks(double low, double high, int wanted, bool logarithmic) {
  std::vector<double> ticks;
  if (!(low < high) || !std::isfinite(low) || !std::isfinite(high) || (logarithmic && low <= 0)) return ticks;
  if (logarithmic) {
    const double decades = std::log10(high / low);
    const int every = std::max(1, static_cast<int>(std::ceil(decades / wanted)));
    for (int e = static_cast<int>(std::floor(std::log10(low))); e <= std::log10(high); ++e) {
      for (const double step : {1.0, 2.0, 5.0}) {
        const double tick = step * std::pow(10.0, e);
        const bool shown = step == 1 ? e % every == 0 : 2.5 * decades < wanted;
        if (shown && tick >= low * (1 - 1e-9) && tick <= high * (1 + 1e-9)) ticks.push_back(tick);
      }
    }
    if (ticks.size() >= 2) return ticks;
    ticks.clear();  // less than a decade: evenly spaced values read better than one
  }
  const double raw = (high - low) / wanted, power = std::pow(10.0, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double nice : {5.0, 2.0, 1.0}) {
    if (nice * power >= raw) step = nice * power;
  }
  for (double i = std::ceil(low / step - 1e-9); i * step <= high + 1e-9 * step && ticks.size() < 100; ++i) {
    ticks.push_back(i * step == 0 ? 0 : i * step);
  }
  return ticks;
}

std::string chart_html(const Chart& chart) {
  Drawing drawing(chart, true);
  const std::string svg = drawing.svg();
  std::string legend;
  const bool named = std::all_of(chart.series.begin(), chart.series.end(), [](const Series& s) { return s.points; });
  if (chart.series.size() > 1 && !(named && drawing.named_all())) {
    legend = "<div class=\"legend\">";
    for (size_t i = 0; i < chart.series.size(); ++i) {
      legend +=
          fmt::format("<span><i class=\"key s{}\"></i>{}</span>", i % kColours, escape_html(chart.series[i].name));
    }
    legend += "</div>\n";
  }
  const std::string caption =
      chart.caption.empty() ? "" : fmt::format("<p class=\"caption\">{}</p>\n", escape_html(chart.caption));
  return fmt::format("<figure class=\"chart\">\n<figcaption>{}</figcaption>\n{}{}{}\n</figure>\n",
                     escape_html(chart.title), caption, legend, svg);
}

std::string chart_svg(const Chart& chart) {
  constexpr double kEdge = 18, kTitle = 32, kRow = 20, kGlyph = 6.7, kKey = 14, kGap = 6;
  double y = kEdge + kTitle, x = kEdge;
  std::string head = fmt::format("<text class=\"title\" x=\"{}\" y=\"{}\">{}</text>\n", kEdge, kEdge + kTitle / 3,
                                 escape_html(chart.title));
  for (size_t i = 0; i < chart.series.size(); ++i) {
    const std::string& name = chart.series[i].name;
    const double width = kKey + kGap + kGlyph * static_cast<double>(name.size());
    if (x > kEdge && x + width > kWidth - kEdge) x = kEdge, y += kRow;
    head += fmt::format(
        "<rect class=\"s{}\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{}\" height=\"3\" rx=\"2\" "
        "fill=\"currentColor\"/>"
        "<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n",
        i % kColours, x, y - 5, kKey, x + kKey + kGap, y, escape_html(name));
    x += width + kEdge;
  }
  if (!chart.caption.empty())
    head +=
        fmt::format("<text class=\"tick\" x=\"{}\" y=\"{}\">{}</text>\n", kEdge, y += kRow, escape_html(chart.caption));
  const double top = y + kEdge / 2, height = top + kHeight + kEdge / 2;
  Drawing drawing(chart, false);
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" font-family=\"system-ui, sans-serif\" "
      "font-size=\"12\">\n<style>{2}{3}.title {{ fill: var(--ink); font-weight: 600; font-size: 15px; }}\n</style>\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"var(--page)\"/>\n{4}"
      "<g transform=\"translate(0 {5})\">\n{6}</g>\n</svg>\n",
      kWidth, height, kPalette, kChartStyle, head, top, drawing.body());
}

std::vector<std::pair<double, double>> moving_mean(std::span<const float> values, int64_t begin, int64_t window) {
  constexpr int64_t kPlaces = 400;
  std::vector<std::pair<double, double>> line;
  const int64_t n = static_cast<int64_t>(values.size()), step = std::max<int64_t>(1, n / kPlaces);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    sum += static_cast<double>(values[static_cast<size_t>(i)]);
    if (i >= window) sum -= static_cast<double>(values[static_cast<size_t>(i - window)]);
    if (i + 1 >= std::min(window, n) && (i % step == 0 || i + 1 == n))
      line.emplace_back(static_cast<double>(begin + i), sum / static_cast<double>(std::min(window, i + 1)));
  }
  return line;
}

}  // namespace attend
