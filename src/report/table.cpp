#include "attend/report/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "attend/tensor/error.h"
#include "attend/tensor/text.h"

namespace attend {
namespace {

constexpr size_t kLongestCell = 400;

size_t characters(std::string_view text) {
  size_t count = 0;
  for (size_t i = 0; i < text.size(); i += static_cast<size_t>(utf8_at(text, i).bytes)) ++count;
  return count;
}

std::string padded(const std::string& text, size_t width, bool left) {
  const std::string space(width - std::min(width, characters(text)), ' ');
  return left ? text + space : space + text;
}

}  // namespace

void Table::row(std::vector<Cell> cells) {
  if (cells.size() != columns_.size()) {
    throw Error(ErrorKind::kArgument, "table", "cells", std::to_string(cells.size()),
                fmt::format("must be one a column, {}", columns_.size()));
  }
  rows_.push_back(std::move(cells));
}

bool Table::is_best(size_t row, size_t column) const {
  const Better better = columns_[column].better;
  const std::optional<double>& value = rows_[row][column].value;
  if (better == Better::kNone || rows_.size() < 2 || !value || !std::isfinite(*value)) return false;
  return std::none_of(rows_.begin(), rows_.end(), [&](const std::vector<Cell>& other) {
    const std::optional<double>& rival = other[column].value;
    return rival && (better == Better::kLower ? *rival < *value : *rival > *value);
  });
}

std::string Table::text(bool colour) const {
  std::vector<std::vector<std::string>> cells;
  std::vector<size_t> widths;
  for (const Column& column : columns_) widths.push_back(characters(printable(column.title, kLongestCell)));
  for (const auto& row : rows_) {
    std::vector<std::string>& shown = cells.emplace_back();
    for (size_t c = 0; c < row.size(); ++c) {
      shown.push_back(printable(row[c].text, kLongestCell));
      widths[c] = std::max(widths[c], characters(shown.back()));
    }
  }
  std::string result, line;
  auto end_line = [&] {
    if (!colour) line.erase(line.find_last_not_of(' ') + 1);
    result += line + '\n';
    line.clear();
  };
  for (size_t c = 0; c < columns_.size(); ++c) {
    if (c) line += "  ";
    const std::string title = padded(printable(columns_[c].title, kLongestCell), widths[c], columns_[c].left);
    line += colour ? "\x1b[2m" + title + "\x1b[0m" : title;
  }
  end_line();
  for (size_t r = 0; r < rows_.size(); ++r) {
    for (size_t c = 0; c < columns_.size(); ++c) {
      if (c) line += "  ";
      const std::string cell = padded(cells[r][c], widths[c], columns_[c].left);
      line += colour && is_best(r, c) ? "\x1b[1m" + cell + "\x1b[0m" : cell;
    }
    end_line();
  }
  return result;
}

std::string Table::html() const {
  std::string result = "<div class=\"scroll\"><table>\n<thead><tr>";
  for (const Column& column : columns_) {
    result += fmt::format("<th{}{}>{}</th>", column.left ? " class=\"left\"" : "",
                          column.help.empty() ? "" : fmt::format(" title=\"{}\"", escape_html(column.help)),
                          escape_html(column.title));
  }
  result += "</tr></thead>\n<tbody>\n";
  for (size_t r = 0; r < rows_.size(); ++r) {
    result += "<tr>";
    for (size_t c = 0; c < columns_.size(); ++c) {
      const std::string cell = escape_html(rows_[r][c].text);
      result += fmt::format("<td{}>{}</td>", columns_[c].left ? " class=\"left\"" : "",
                            is_best(r, c) ? "<b>" + cell + "</b>" : cell);
    }
    result += "</tr>\n";
  }
  return result + "</tbody></table></div>\n";
}

std::string bytes_text(int64_t bytes) {
  constexpr std::array<const char*, 4> units = {"kB", "MB", "GB", "TB"};
  if (bytes < 1000) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes) / 1000;
  size_t unit = 0;
  while (value >= 999.5 && unit + 1 < units.size()) {
    value /= 1000;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", value, value < 9.995 ? 2 : value < 99.95 ? 1 : 0, units[unit]);
}

std::string number_text(double value) {
  if (!std::isfinite(value)) return std::isnan(value) ? "-" : value > 0 ? "inf" : "-inf";
  if (value == 0) return "0";
  const double size = std::abs(value);
  if (size < 1e-4 || size >= 1e7) return fmt::format("{:.2g}", value);
  const int digits = std::max(0, 2 - static_cast<int>(std::floor(std::log10(size))));
  return fmt::format("{:.{}f}", value, digits);
}

std::string escape_html(std::string_view text) {
  std::string result;
  result.reserve(text.size() + text.size() / 8);
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = utf8_at(text, i);
    const bool control = (c.code < 0x20 && c.code != '\n' && c.code != '\t') || (c.code >= 0x7f && c.code < 0xa0);
    if (c.code == '&') {
      result += "&amp;";
    } else if (c.code == '<') {
      result += "&lt;";
    } else if (c.code == '>') {
      result += "&gt;";
    } else if (c.code == '"') {
      result += "&quot;";
    } else if (c.code == '\'') {
      result += "&#39;";
    } else if (control || !c.valid) {
      append_utf8(result, 0xfffd);
    } else {
      result.append(text.substr(i, static_cast<size_t>(c.bytes)));
    }
    i += static_cast<size_t>(c.bytes);
  }
  return result;
}

}  // namespace attend
