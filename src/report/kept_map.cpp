#include "attend/report/kept_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "attend/report/plot.h"
#include "attend/report/table.h"
#include "attend/tensor/error.h"

namespace attend {
namespace {

constexpr int kLevels = 8;           // of colour; the page's style has them as k1 to k8
constexpr int64_t kStretches = 220;  // of the text, at most
constexpr int64_t kWhole = 3000;     // tokens: longer texts are shown in part
constexpr int64_t kEnds = 1000;      // then, tokens at each end
constexpr int64_t kAround = 200;     // and on each side of a mark
constexpr double kWidth = 880, kLeft = 64, kRight = 12, kBottom = 42;

int level_of(double share) {
  return share <= 0 ? 0 : std::clamp(static_cast<int>(std::lround(share * kLevels)), 1, kLevels);
}

// Levels of the stretches of one head.
std::vector<int> levels(const std::vector<int32_t>& positions, int64_t tokens, int64_t stretches) {
  std::vector<double> held(static_cast<size_t>(stretches)), all = held;
  auto stretch = [&](int64_t position) { return static_cast<size_t>(position * stretches / tokens); };
  for (int64_t position = 0; position < tokens; ++position) all[stretch(position)] += 1;
  for (int32_t position : positions) held[stretch(position)] += 1;
  std::vector<int> result;
  for (size_t i = 0; i < held.size(); ++i) result.push_back(level_of(held[i] / all[i]));
  return result;
}

std::string strips(const KeptFigure& figure) {
  const KeptMap& map = figure.map;
  const int64_t stretches = std::min(map.tokens, kStretches);
  const double line = std::clamp(340.0 / static_cast<double>(map.positions.size()), 2.0, 12.0), gap = 1.5;
  const double layer_height = line * map.kv_heads + gap, height = layer_height * map.layers + kBottom;
  const double width = (kWidth - kLeft - kRight) / static_cast<double>(stretches);
  std::array<std::string, kLevels + 1> paths;  // one for each colour: far shorter than a rectangle a stretch
  for (int layer = 0; layer < map.layers; ++layer)
    for (int head = 0; head < map.kv_heads; ++head) {
      const std::vector<int> row =
          levels(map.positions[static_cast<size_t>(layer * map.kv_heads + head)], map.tokens, stretches);
      const double y = layer_height * layer + line * head;
      for (size_t i = 0, end; i < row.size(); i = end) {
        for (end = i; end < row.size() && row[end] == row[i];) ++end;
        if (row[i])
          paths[static_cast<size_t>(row[i])] +=
              fmt::format("M{:.1f} {:.1f}h{:.1f}v{:.1f}h{:.1f}z", kLeft + width * static_cast<double>(i), y,
                          width * static_cast<double>(end - i), line, -width * static_cast<double>(end - i));
      }
    }
  std::string out = fmt::format("<svg viewBox=\"0 0 {} {:.1f}\" role=\"img\" aria-label=\"{}\">\n", kWidth, height,
                                escape_html(figure.title));
  for (int level = 1; level <= kLevels; ++level)
    out += fmt::format("<path class=\"s0\" fill=\"currentColor\" fill-opacity=\"{:.3f}\" d=\"{}\"/>\n",
                       static_cast<double>(level) / kLevels, paths[static_cast<size_t>(level)]);
  const int every = std::max(1, static_cast<int>(std::ceil(14 / layer_height)));
  for (int layer = 0; layer < map.layers; layer += every)
    out += fmt::format("<text class=\"tick\" x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>\n", kLeft - 8,
                       layer_height * (layer + 0.5) + 4, layer);
  const double base = height - kBottom;
  for (const auto& [begin, end] : figure.marks) {
    const double x =
        kLeft + (kWidth - kLeft - kRight) * static_cast<double>(begin + end) / 2 / static_cast<double>(map.tokens);
    out += fmt::format("<line class=\"mark\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"0\" y2=\"{1:.1f}\"/>\n", x, base + 4);
  }
  for (const double tick : axis_ticks(0, static_cast<double>(map.tokens), 8, false)) {
    const double x = kLeft + (kWidth - kLeft - kRight) * tick / static_cast<double>(map.tokens);
    out += fmt::format(
        "<line class=\"axis\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1:.1f}\" y2=\"{2:.1f}\"/>"
        "<text class=\"tick\" x=\"{0:.1f}\" y=\"{3:.1f}\" text-anchor=\"middle\">{4:g}</text>\n",
        x, base, base + 4, base + 18, tick);
  }
  out += fmt::format("<text class=\"label\" x=\"{}\" y=\"{:.1f}\" text-anchor=\"middle\">token</text>\n",
                     (kLeft + kWidth - kRight) / 2, height - 4);
  out += fmt::format(
      "<text class=\"label\" x=\"14\" y=\"{0:.1f}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {0:.1f})\">layer"
      "</text>\n",
      base / 2);
  return out + "</svg>\n";
}

struct Look {
  int level = 0;
  bool marked = false, shown = true;
  bool operator==(const Look&) const = default;
};

std::vector<Look> looks(const KeptFigure& figure) {
  const int64_t tokens = figure.map.tokens;
  std::vector<Look> all(static_cast<size_t>(tokens));
  const std::vector<float> shares = figure.map.shares();
  for (int64_t i = 0; i < tokens; ++i)
    all[static_cast<size_t>(i)] = {.level = level_of(static_cast<double>(shares[static_cast<size_t>(i)])),
                                   .shown = tokens <= kWhole || i < kEnds || i >= tokens - kEnds};
  for (const auto& [begin, end] : figure.marks)
    for (int64_t i = std::max<int64_t>(begin - kAround, 0); i < std::min(end + kAround, tokens); ++i) {
      Look& look = all[static_cast<size_t>(i)];
      look.shown = true;
      look.marked |= i >= begin && i < end;
    }
  for (Look& look : all)
    if (!look.shown) look.level = 0;
  return all;
}

// The text, tokens that look alike together. A character that several tokens make looks like the last.
std::string shaded(const KeptFigure& figure) {
  std::string out, run;
  Look last;
  int64_t left_out = 0;
  auto flush = [&] {
    if (left_out) out += fmt::format("\n<i>{} tokens are left out</i>\n", left_out);
    left_out = 0;
    const std::string text = escape_html(run);
    const std::string level = last.level ? fmt::format("k{}", last.level) : "", mark = last.marked ? "marked" : "";
    if (!run.empty())
      out += last.level || last.marked ? fmt::format("<span class=\"{}{}{}\">{}</span>", level,
                                                     last.level && last.marked ? " " : "", mark, text)
                                       : text;
    run.clear();
  };
  Utf8Stream characters;
  const std::vector<Look> all = looks(figure);
  for (size_t i = 0; i < all.size(); ++i) {
    const std::string text = characters.push(figure.pieces[i]);
    if (all[i] != last) flush();
    last = all[i];
    if (last.shown)
      run += text;
    else
      ++left_out;
  }
  run += characters.finish();
  flush();
  return out;
}

}  // namespace

std::string kept_html(const KeptFigure& figure) {
  const int64_t tokens = figure.map.tokens;
  if (static_cast<int64_t>(figure.pieces.size()) != tokens)
    throw Error(ErrorKind::kArgument, "kept map", "pieces", std::to_string(figure.pieces.size()),
                fmt::format("must be one a token, {}", tokens));
  for (const auto& [begin, end] : figure.marks)
    if (begin < 0 || begin >= end || end > tokens)
      throw Error(ErrorKind::kArgument, "kept map", "marks", fmt::format("[{}, {})", begin, end),
                  fmt::format("must lie in the text, [0, {})", tokens));
  std::string out = fmt::format("<figure class=\"chart\">\n<figcaption>{}</figcaption>\n", escape_html(figure.title));
  if (tokens == 0 || figure.map.empty()) return out + "</figure>\n";
  size_t held = 0;
  for (const std::vector<int32_t>& head : figure.map.positions) held += head.size();
  out += fmt::format(
      "<p class=\"caption\">A line is a kv head, from layer 0 on; the stronger the colour, the more of the tokens are "
      "held. {:.1f} % of all keys are. In the text, the more heads hold a token, the stronger its colour.{}</p>\n",
      100 * static_cast<double>(held) / static_cast<double>(figure.map.positions.size()) / static_cast<double>(tokens),
      figure.marks.empty() ? "" : " What is marked has a frame there, and a line through all heads here.");
  out += strips(figure);
  out += "<div class=\"kept\">" + shaded(figure);
  return out + "</div>\n</figure>\n";
}

}  // namespace attend
