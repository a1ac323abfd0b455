#include "attend/report/page.h"

#include <fmt/format.h>

#include "style.h"

namespace attend {
namespace {

constexpr std::string_view kStyle = R"css(
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 40px 0 8px; }
p { margin: 10px 0; max-width: 76ch; }
.subtitle, .caption { color: var(--soft); margin-top: 6px; }
.caption { font-size: 13px; margin: 2px 0 4px; }
pre { background: var(--raised); border: 1px solid var(--rule); border-radius: 8px; padding: 12px 14px;
  overflow-x: auto; font: 13px/1.5 ui-monospace, "SF Mono", Menlo, "Liberation Mono", monospace; }
.scroll { overflow-x: auto; margin: 20px 0; background: var(--raised); border: 1px solid var(--rule);
  border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 11px; text-align: right; white-space: nowrap; }
th { font-weight: 500; font-size: 13px; color: var(--soft); border-bottom: 1px solid var(--rule); }
th[title] { text-decoration: underline dotted var(--axis); text-underline-offset: 4px; cursor: help; }
tbody tr + tr td { border-top: 1px solid var(--rule); }
td b { font-weight: 650; }
.left { text-align: left; }
td.left { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, "Liberation Mono", monospace; }
.chart { position: relative; margin: 20px 0; padding: 16px 18px 10px; background: var(--raised);
  border: 1px solid var(--rule); border-radius: 8px; }
figcaption { font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 6px 0 2px; font-size: 13px; color: var(--soft); }
.legend span { display: inline-flex; align-items: center; gap: 6px; }
.key { width: 14px; height: 3px; border-radius: 2px; display: inline-block; background: currentColor; }
svg { display: block; width: 100%; height: auto; font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; }
@media (max-width: 680px) {
  main { padding: 24px 12px 48px; }
  .chart { overflow-x: auto; }
  .chart > svg { min-width: 620px; }
  .chart > figcaption, .chart > .caption, .chart > .legend, .chart > .kept { position: sticky; left: 0; } }
.maps { display: flex; flex-wrap: wrap; gap: 18px 28px; margin-top: 8px; }
.maps div, .maps svg { max-width: 100%; }
.kept { max-height: 320px; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere; margin-top: 10px;
  border-top: 1px solid var(--rule); padding-top: 8px; font: 12px/1.6 ui-monospace, "SF Mono", Menlo,
  "Liberation Mono", monospace; color: var(--soft); }
.marked { outline: 2px solid var(--s1); outline-offset: -1px; border-radius: 2px; }
.mark { stroke: var(--s1); stroke-width: 1.5; }
.kept span { color: var(--ink); }
.k1 { background: rgb(42 120 214 / 9%); } .k2 { background: rgb(42 120 214 / 16%); }
.k3 { background: rgb(42 120 214 / 23%); } .k4 { background: rgb(42 120 214 / 30%); }
.k5 { background: rgb(42 120 214 / 37%); } .k6 { background: rgb(42 120 214 / 44%); }
.k7 { background: rgb(42 120 214 / 51%); } .k8 { background: rgb(42 120 214 / 58%); }
code { font: 12px/1.5 ui-monospace, "SF Mono", Menlo, "Liberation Mono", monospace; }
.cursor { stroke: var(--axis); stroke-width: 1; visibility: hidden; }
.tip { position: absolute; pointer-events: none; visibility: hidden; background: var(--page); color: var(--ink);
  border: 1px solid var(--rule); border-radius: 6px; padding: 6px 10px; font-size: 12px; white-space: nowrap;
  box-shadow: 0 2px 10px rgb(0 0 0 / 15%); font-variant-numeric: tabular-nums; }
.tip i { margin-right: 6px; vertical-align: middle; }
footer { color: var(--soft); font-size: 13px; margin-top: 40px; }
)css";

// Under the pointer, a line through the chart and each series' value there.
constexpr std::string_view kScript = R"js(
for (const figure of document.querySelectorAll('.chart')) {
  const svg = figure.querySelector('svg');
  const series = [...svg.querySelectorAll('.line')].map(path => ({
    name: path.dataset.name, kind: path.classList[1],
    values: path.dataset.values.trim().split(' ').filter(Boolean).map(v => v.split(',').map(Number)) }))
    .filter(s => s.values.length);
  if (!series.length) continue;
  const cursor = document.createElementNS('http://www.w3.org/2000/svg', 'line');
  cursor.setAttribute('class', 'cursor');
  cursor.setAttribute('y1', 14);
  cursor.setAttribute('y2', svg.viewBox.baseVal.height - 46);
  svg.append(cursor);
  const tip = document.createElement('div');
  tip.className = 'tip';
  figure.append(tip);
  const nearest = (values, x) => {
    let low = 0, high = values.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (values[middle][2] <= x) low = middle; else high = middle;
    }
    return x - values[low][2] < values[high][2] - x ? values[low] : values[high];
  };
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    const at = nearest(series[0].values, x);
    cursor.setAttribute('x1', at[2]);
    cursor.setAttribute('x2', at[2]);
    tip.replaceChildren(Object.assign(document.createElement('div'), { textContent: at[0].toLocaleString('en') }));
    for (const s of series) {
      const row = document.createElement('div'), key = document.createElement('i');
      key.className = 'key ' + s.kind;
      row.append(key, s.name + '  ' + nearest(s.values, at[2])[1].toPrecision(3));
      tip.append(row);
    }
    const left = event.clientX - figure.getBoundingClientRect().left + figure.scrollLeft;
    const flip = left > box.width / 2;
    tip.style.left = flip ? 'auto' : left + 16 + 'px';
    tip.style.right = flip ? figure.clientWidth - left + 16 + 'px' : 'auto';
    tip.style.top = event.clientY - figure.getBoundingClientRect().top + 12 + 'px';
    cursor.style.visibility = tip.style.visibility = 'visible';
  });
  svg.addEventListener('pointerleave', () => { cursor.style.visibility = tip.style.visibility = 'hidden'; });
}
)js";

}  // namespace

Page::Page(std::string title, std::string subtitle) : title_(std::move(title)), subtitle_(std::move(subtitle)) {}

void Page::heading(const std::string& text) {
  body_ += fmt::format("<h2>{}</h2>\n", escape_html(text));
}

void Page::text(const std::string& paragraph) {
  body_ += fmt::format("<p>{}</p>\n", escape_html(paragraph));
}

void Page::preformatted(const std::string& lines) {
  body_ += fmt::format("<pre>{}</pre>\n", escape_html(lines));
}

void Page::table(const Table& table) {
  body_ += table.html();
}

void Page::chart(const Chart& chart) {
  body_ += chart_html(chart);
}

void Page::heat_maps(const HeatMaps& maps) {
  body_ += heat_maps_html(maps);
}

void Page::kept(const KeptFigure& figure) {
  body_ += kept_html(figure);
}

std::string Page::html() const {
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
      "script-src 'unsafe-inline'\">\n"
      "<title>{0}</title>\n<style>{1}{2}{3}</style>\n</head>\n<body>\n<main>\n<h1>{0}</h1>\n<p "
      "class=\"subtitle\">{4}</p>\n"
      "{5}</main>\n<script>{6}</script>\n</body>\n</html>\n",
      escape_html(title_), kPalette, kStyle, kChartStyle, escape_html(subtitle_), body_, kScript);
}

}  // namespace attend
