#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "attend/report/page.h"
#include "attend/tensor/error.h"

namespace attend {
namespace {

size_t count(const std::string& text, const std::string& what) {
  size_t n = 0;
  for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += what.size()) ++n;
  return n;
}

TEST(Table, AlignsColumnsByCharacters) {
  Table table({{.title = "policy", .left = true}, {.title = "nll"}});
  table.row({"softmax", {"1.5", 1.5}});
  table.row(
      {"gr\xc3\xb6\xc3\x9f"
       "er",
       {"12.25", 12.25}});
  EXPECT_EQ(table.text(),
            "policy     nll\nsoftmax    1.5\ngr\xc3\xb6\xc3\x9f"
            "er   12.25\n");
  EXPECT_THROW(table.row({"one"}), Error);
}

TEST(Table, BestValuesStandOut) {
  Table table({{.title = "a", .better = Better::kLower}, {.title = "b", .better = Better::kHigher}, {.title = "c"}});
  table.row({{"1", 1}, {"1", 1}, {"1", 1}});
  table.row({{"2", 2}, {"2", 2}, {"2", 2}});
  table.row({{"-", NAN}, "-", "-"});
  EXPECT_EQ(count(table.html(), "<b>"), 2u);
  EXPECT_NE(table.html().find("<td><b>1</b></td><td>1</td><td>1</td>"), std::string::npos);
  EXPECT_NE(table.html().find("<td>2</td><td><b>2</b></td><td>2</td>"), std::string::npos);
  EXPECT_EQ(count(table.text(true), "\x1b[1m"), 2u);
  EXPECT_EQ(count(table.text(), "\x1b"), 0u);
}

TEST(Table, ControlCharactersStayOut) {
  Table table({{.title = "a\x1b[31m", .left = true}});
  table.row({"b\r\n\x07"});
  EXPECT_EQ(count(table.text(), "\x1b") + count(table.text(), "\r") + count(table.text(), "\x07"), 0u);
  EXPECT_EQ(count(table.text(), "\n"), 2u);
}

TEST(Text, WritesNumbersAndBytesShort) {
  EXPECT_EQ(bytes_text(999), "999 B");
  EXPECT_EQ(bytes_text(1000), "1.00 kB");
  EXPECT_EQ(bytes_text(12'345'678), "12.3 MB");
  EXPECT_EQ(bytes_text(999'999'999), "1.00 GB");
  EXPECT_EQ(number_text(0), "0");
  EXPECT_EQ(number_text(0.012345), "0.0123");
  EXPECT_EQ(number_text(45.61), "45.6");
  EXPECT_EQ(number_text(1234.4), "1234");
  EXPECT_EQ(number_text(1.24e-6), "1.2e-06");
  EXPECT_EQ(number_text(NAN), "-");
}

TEST(Chart, TicksAreRoundAndInside) {
  EXPECT_EQ(axis_ticks(0, 10, 5, false), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(axis_ticks(1, 1000, 5, true), (std::vector<double>{1, 10, 100, 1000}));
  EXPECT_EQ(axis_ticks(3, 40, 8, true), (std::vector<double>{5, 10, 20}));
  EXPECT_TRUE(axis_ticks(1, 1, 5, false).empty());
  EXPECT_TRUE(axis_ticks(NAN, 1, 5, false).empty());
  for (const double high : {1e-12, 0.3, 7.0, 1e15}) {
    const auto ticks = axis_ticks(-high, high, 6, false);
    EXPECT_GE(ticks.size(), 3u);
    EXPECT_LE(ticks.size(), 14u);
  }
}

TEST(Chart, LeavesOutWhatCantBeDrawn) {
  const double inf = std::numeric_limits<double>::infinity();
  Chart chart{
      .title = "t",
      .x_label = "x",
      .y_label = "y",
      .log_x = true,
      .series = {
          {"line", {{1, 1}, {2, NAN}, {-1, 2}, {4, inf}, {8, 2}, {9, 3}}}, {"point", {{0, 1}}, true}, {"empty", {}}}};
  const std::string html = chart_html(chart);
  EXPECT_EQ(count(html, "nan") + count(html, "inf"), 0u);
  EXPECT_EQ(count(html, "<circle"), 0u);
  EXPECT_EQ(count(html, "M"), 2u);  // two strokes
  EXPECT_NE(chart_html({}).find("no data"), std::string::npos);
}

TEST(Chart, StandsAloneAsAPicture) {
  const Chart chart{.title = "a < b",
                    .x_label = "x",
                    .y_label = "y",
                    .series = {{"first", {{1, 1}, {2, 3}}}, {"second & last", {{1, 2}, {2, 2}}}},
                    .caption = "means"};
  const std::string svg = chart_svg(chart);
  EXPECT_EQ(svg.rfind("<svg xmlns=", 0), 0u);
  EXPECT_EQ(count(svg, "<svg"), 1u);
  EXPECT_EQ(count(svg, "<path"), 2u);
  for (const char* text : {"a &lt; b", ">first<", "second &amp; last", ">means<"})
    EXPECT_EQ(count(svg, text) > 0, true) << text;
  EXPECT_EQ(count(svg, "http"), 1u);  // the name space
}

TEST(Chart, MovingMeansAreThoseOfTheLastValues) {
  const std::vector<float> values = {1, 3, 5, 7};
  EXPECT_EQ(moving_mean(values, 10, 2), (std::vector<std::pair<double, double>>{{11, 2.0}, {12, 4.0}, {13, 6.0}}));
  EXPECT_EQ(moving_mean(values, 0, 9), (std::vector<std::pair<double, double>>{{3, 4.0}}));
  EXPECT_LE(moving_mean(std::vector<float>(100000, 1.0f), 0, 1).size(), 402u);
}

TEST(HeatMaps, DarkerCellsAreLargerValues) {
  HeatMaps maps{.title = "t",
                .x_label = "x",
                .y_label = "y",
                .columns = {"a", "b", "c"},
                .rows = {"r", "s"},
                .maps = {{"first", {0, 0.25, 0.5, 0.75, 1, NAN}}, {"second", {NAN, NAN, NAN, NAN, NAN, INFINITY}}}};
  const std::string html = heat_maps_html(maps);
  EXPECT_EQ(count(html, "nan") + count(html, "inf"), 0u);
  EXPECT_EQ(count(html, "<svg"), 3u);  // the scale and two maps
  int last = 3 * 256;
  for (size_t at = html.find("first"), cells = 0; cells < 5; ++cells) {
    at = html.find("rx=\"3\" fill=\"#", at) + 14;
    const int red = std::stoi(html.substr(at, 2), nullptr, 16), green = std::stoi(html.substr(at + 2, 2), nullptr, 16),
              blue = std::stoi(html.substr(at + 4, 2), nullptr, 16);
    const int light = (299 * red + 587 * green + 114 * blue) / 1000;
    EXPECT_LT(light, last - 20);
    last = light;
  }
  EXPECT_EQ(count(html, "rx=\"3\""), 5u);
  EXPECT_EQ(count(html, ">0.750<"), 1u);
  maps.percent = true;
  EXPECT_EQ(count(heat_maps_html(maps), ">75%<"), 1u);
  maps.range = {0.0, 4.0};
  EXPECT_NE(heat_maps_html(maps).find("400%"), std::string::npos);
  maps.maps[1].values.pop_back();
  EXPECT_THROW(heat_maps_html(maps), Error);
  EXPECT_EQ(count(heat_maps_html({}), "<svg"), 0u);
}

TEST(Kept, DrawsSharesOfHeadsAndText) {
  // 2 layers of 1 kv head, 4 tokens; the third and fourth make one character.
  const KeptMap map{.layers = 2, .kv_heads = 1, .tokens = 4, .positions = {{0, 3}, {0}}};
  const std::vector<std::string> pieces = {"<b>", " gap ", "\xc3", "\xa9"};
  const std::string html = kept_html({"t", map, pieces});
  EXPECT_NE(html.find("<span class=\"k8\">&lt;b&gt;</span> gap <span class=\"k4\">\xc3\xa9</span></div>"),
            std::string::npos)
      << html;
  EXPECT_NE(html.find("37.5 % of all keys"), std::string::npos);
  EXPECT_EQ(count(html, "<path"), 8u);
  EXPECT_EQ(count(html, "h201.0v12.0"), 3u);  // a quarter of 804: tokens 0 and 3 of one head, 0 of the other
  EXPECT_EQ(count(html, "nan") + count(html, "inf"), 0u);
  EXPECT_THROW(kept_html({"t", map, {"one"}}), Error);
  EXPECT_EQ(count(kept_html({"t", {}, {}}), "<svg"), 0u);
  const std::string marked = kept_html({"t", map, pieces, {{0, 2}}});
  EXPECT_NE(marked.find("<span class=\"k8 marked\">&lt;b&gt;</span><span class=\"marked\"> gap </span>"),
            std::string::npos)
      << marked;
  EXPECT_EQ(count(marked, "class=\"mark\""), 1u);
  for (std::pair<int64_t, int64_t> wrong : {std::pair{-1, 1}, {1, 1}, {3, 5}})
    EXPECT_THROW(kept_html({"t", map, pieces, {wrong}}), Error);

  KeptMap large{.layers = 30, .kv_heads = 3, .tokens = 9000, .positions = {}};
  for (int head = 0; head < 90; ++head) {
    std::vector<int32_t>& positions = large.positions.emplace_back();
    for (int32_t p = 0; p < 9000; ++p)
      if (p * 7919 % 64 < head) positions.push_back(p);
  }
  const std::string page = kept_html({"t", large, std::vector<std::string>(9000, "w ")});
  EXPECT_EQ(count(page, "w "), 2000u);
  EXPECT_NE(page.find("7000 tokens are left out"), std::string::npos);
  const std::string near = kept_html({"t", large, std::vector<std::string>(9000, "w "), {{5000, 5002}}});
  EXPECT_EQ(count(near, "w "), 2402u);
  EXPECT_EQ(count(near, "tokens are left out"), 2u);
  EXPECT_LT(page.size(), 800'000u);
}

TEST(Page, EscapesEverythingAndLoadsNothing) {
  const std::string evil = "<script>alert('&')</script>\"\x01\xff";
  Page page(evil, evil);
  page.heading(evil);
  page.text(evil);
  page.preformatted(evil);
  Table table({{.title = evil, .help = evil}});
  table.row({evil});
  page.table(table);
  page.chart({.title = evil,
              .x_label = evil,
              .y_label = evil,
              .series = {{evil, {{1, 1}, {2, 2}}}, {evil, {{1, 1}}, true}},
              .caption = evil});
  const KeptMap map{.layers = 1, .kv_heads = 1, .tokens = 1, .positions = {{0}}};
  page.kept({evil, map, {evil}});
  page.heat_maps({.title = evil,
                  .x_label = evil,
                  .y_label = evil,
                  .columns = {evil},
                  .rows = {evil},
                  .maps = {{evil, {1}}},
                  .caption = evil});
  const std::string html = page.html();
  EXPECT_EQ(count(html, "<script"), 1u);
  EXPECT_EQ(count(html, "alert('"), 0u);
  EXPECT_EQ(count(html, "\x01") + count(html, "\xff"), 0u);
  for (const char* loads : {"src=", "href=", "url(", "@import", "fetch(", "https://"})
    EXPECT_EQ(count(html, loads), 0u);
  EXPECT_EQ(count(html, "http://"), 1u);  // the name of SVG's namespace
}

}  // namespace
}  // namespace attend
