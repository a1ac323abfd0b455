#pragma once
// Colours for light and dark screens, and how charts are drawn: of pages, and of pictures that stand alone.
#include <string_view>

namespace attend {

inline constexpr std::string_view kPalette = R"css(
:root { color-scheme: light dark;
  --page: #fcfcfb; --raised: #ffffff; --ink: #16181d; --soft: #5d6470; --rule: #e4e5e8; --axis: #b9bdc4;
  --s0: #2a78d6; --s1: #eb6834; --s2: #1baf7a; --s3: #c98500; --s4: #d6568b; --s5: #008300; --s6: #6a56c9;
  --s7: #c93c3c; }
@media (prefers-color-scheme: dark) { :root {
  --page: #15171b; --raised: #1c1f24; --ink: #eceef2; --soft: #a3aab6; --rule: #30343b; --axis: #555b66;
  --s0: #5598e7; --s1: #f08a5d; --s2: #35c892; --s3: #e5ae3c; --s4: #ec8fb3; --s5: #55b355; --s6: #9c8df0;
  --s7: #ef7676; } }
)css";

inline constexpr std::string_view kChartStyle = R"css(
.grid { stroke: var(--rule); stroke-width: 1; }
.axis { stroke: var(--axis); stroke-width: 1; }
.tick { fill: var(--soft); font-variant-numeric: tabular-nums; }
.label, .name { fill: var(--ink); }
.line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.point { fill: currentColor; stroke: var(--raised); stroke-width: 2; }
.s0 { color: var(--s0); } .s1 { color: var(--s1); } .s2 { color: var(--s2); } .s3 { color: var(--s3); }
.s4 { color: var(--s4); } .s5 { color: var(--s5); } .s6 { color: var(--s6); } .s7 { color: var(--s7); }
)css";

}  // namespace attend
