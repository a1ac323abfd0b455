#pragma once
// A table that a person reads: aligned in a terminal, or part of a page.
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace attend {

enum class Better { kNone, kLower, kHigher };

struct Column {
  std::string title;
  bool left = false;              // text to the left, numbers to the right
  Better better = Better::kNone;  // the best value of the column stands out
  std::string help = {};          // what the column means; shown in pages
};

// What a cell shows, and the number it stands for where columns are compared.
struct Cell {
  Cell(std::string shown) : text(std::move(shown)) {}  // NOLINT: cells are written as texts
  Cell(const char* shown) : text(shown) {}             // NOLINT
  Cell(std::string shown, double number) : text(std::move(shown)), value(number) {}

  std::string text;
  std::optional<double> value;
};

class Table {
 public:
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

  // Throws Error(kArgument) if there is not one cell a column.
  void row(std::vector<Cell> cells);

  bool empty() const { return rows_.empty(); }

  // Lines of aligned columns; control characters are escaped. With colour, the head is dim and best values are bold.
  std::string text(bool colour = false) const;
  // A <table>; everything is escaped.
  std::string html() const;

 private:
  bool is_best(size_t row, size_t column) const;

  std::vector<Column> columns_;
  std::vector<std::vector<Cell>> rows_;
};

// "12.3 MB" (powers of 1000), "450 B".
std::string bytes_text(int64_t bytes);

// Three significant digits without an exponent where that is short: "0.0123", "45.6", "1230", "1.2e-06".
std::string number_text(double value);

// Text inside HTML: markup characters, control characters and invalid UTF-8 are made harmless.
std::string escape_html(std::string_view text);

}  // namespace attend
