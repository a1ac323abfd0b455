#pragma once
// A self-contained HTML page: it loads nothing from outside, escapes everything and suits light and dark screens.
#include <string>

#include "attend/report/heat_map.h"
#include "attend/report/kept_map.h"
#include "attend/report/plot.h"
#include "attend/report/table.h"

namespace attend {

class Page {
 public:
  Page(std::string title, std::string subtitle);

  void heading(const std::string& text);
  void text(const std::string& paragraph);
  void preformatted(const std::string& lines);  // a command, say
  void table(const Table& table);
  void chart(const Chart& chart);
  void heat_maps(const HeatMaps& maps);
  void kept(const KeptFigure& figure);

  std::string html() const;

 private:
  std::string title_, subtitle_, body_;
};

}  // namespace attend
