#pragma once
// What a person at a terminal sees and does: colour, width, safe text, progress, Ctrl-C.
#include <chrono>
#include <stop_token>
#include <string>
#include <string_view>

#include "attend/tensor/context.h"

namespace attend::app {

enum class Stream { kOut = 1, kError = 2 };

bool is_terminal(Stream stream);
bool has_colour(Stream stream);  // a terminal that is not dumb, unless NO_COLOR is set
int terminal_width();            // columns; 100 where there is no terminal

// `text` with control characters and invalid UTF-8 replaced by U+FFFD. Tabs stay; line feeds stay in kMany and become
// spaces in kOne.
enum class Lines { kOne, kMany };
std::string safe_text(std::string_view text, Lines lines);

// Text of unknown origin to standard output: as it is into a pipe or file, safe on a terminal.
void write_out(std::string_view text);

// Words of `text` in lines that begin at `column` and fit the terminal, within 60 to 120 columns.
std::string wrapped(std::string_view text, int column);

// `text` in a terminal colour if `on`.
enum class Colour { kBold, kDim, kRed, kGreen, kYellow, kBlue };
std::string coloured(std::string_view text, Colour colour, bool on);

// A token that Ctrl-C (or a request to terminate) stops; from the first call on. The second Ctrl-C ends the process.
std::stop_token stop_on_interrupt();
int interrupted();  // the signal, or 0

// A bar on standard error after 0.3 s of work, if that is a terminal; wiped when it ends.
class ProgressBar : public Progress {
 public:
  ProgressBar();
  ~ProgressBar() override;
  void update(std::string_view what, int64_t done, int64_t total) override;
  void wipe();

 private:
  using Clock = std::chrono::steady_clock;
  bool on_, drawn_ = false;
  Clock::time_point begin_, last_;
  std::string what_;
  int64_t done_ = 0, total_ = 0;
};

}  // namespace attend::app
