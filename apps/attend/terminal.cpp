#include "terminal.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "attend/tensor/text.h"

namespace attend::app {
namespace {

std::atomic<int> signal_seen = 0;
int signal_pipe[2] = {-1, -1};

// A stop source takes a lock, so a handler only writes a byte; a thread does the rest.
extern "C" void on_signal(int number) {
  const int kept = errno;
  signal_seen = number;
  [[maybe_unused]] const ssize_t n = write(signal_pipe[1], "", 1);
  errno = kept;
}

}  // namespace

bool is_terminal(Stream stream) {
  return isatty(static_cast<int>(stream)) == 1;
}

bool has_colour(Stream stream) {
  const char* term = std::getenv("TERM");
  const char* refused = std::getenv("NO_COLOR");
  return is_terminal(stream) && term && std::string_view(term) != "dumb" && !(refused && *refused);
}

int terminal_width() {
  winsize size{};
  for (const Stream stream : {Stream::kOut, Stream::kError}) {
    if (is_terminal(stream) && ioctl(static_cast<int>(stream), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
      return std::max<int>(20, size.ws_col);
    }
  }
  return 100;
}

std::string safe_text(std::string_view text, Lines lines) {
  std::string result;
  result.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = utf8_at(text, i);
    // C0, DEL, C1, and what turns the writing direction.
    const bool control = c.code < 0x20 || (c.code >= 0x7f && c.code < 0xa0) || (c.code >= 0x200e && c.code <= 0x200f) ||
                         (c.code >= 0x2028 && c.code <= 0x202e) || (c.code >= 0x2066 && c.code <= 0x2069);
    if (c.code == '\n') {
      result += lines == Lines::kMany ? '\n' : ' ';
    } else if (c.valid && (!control || c.code == '\t')) {
      result.append(text.substr(i, static_cast<size_t>(c.bytes)));
    } else {
      append_utf8(result, 0xfffd);
    }
    i += static_cast<size_t>(c.bytes);
  }
  return result;
}

void write_out(std::string_view text) {
  if (!is_terminal(Stream::kOut)) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    return;
  }
  const std::string safe = safe_text(text, Lines::kMany);
  std::fwrite(safe.data(), 1, safe.size(), stdout);
}

std::string wrapped(std::string_view text, int column) {
  const size_t width = static_cast<size_t>(std::clamp(terminal_width(), 60, 120));
  std::string result;
  size_t at = static_cast<size_t>(column);
  while (!text.empty()) {
    const size_t end = std::min(text.find(' '), text.size());
    if (at > static_cast<size_t>(column) && at + 1 + end > width) {
      result += '\n' + std::string(static_cast<size_t>(column), ' ');
      at = static_cast<size_t>(column);
    } else if (at > static_cast<size_t>(column)) {
      result += ' ';
      ++at;
    }
    result += text.substr(0, end);
    at += end;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return result;
}

std::string coloured(std::string_view text, Colour colour, bool on) {
  if (!on) return std::string(text);
  constexpr int codes[] = {1, 2, 31, 32, 33, 34};
  return fmt::format("\x1b[{}m{}\x1b[0m", codes[static_cast<int>(colour)], text);
}

std::stop_token stop_on_interrupt() {
  static std::stop_source source;
  static const bool installed = [] {
    if (pipe2(signal_pipe, O_CLOEXEC) != 0) return false;
    std::thread([stop = source]() mutable {
      char byte;
      while (read(signal_pipe[0], &byte, 1) < 0) {
      }
      stop.request_stop();
    }).detach();
    struct sigaction action {};
    action.sa_handler = on_signal;
    action.sa_flags = static_cast<int>(SA_RESETHAND);  // no SA_RESTART: a read of the keyboard ends too
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) sigaction(number, &action, nullptr);
    return true;
  }();
  (void)installed;
  return source.get_token();
}

int interrupted() {
  return signal_seen;
}

ProgressBar::ProgressBar() : on_(is_terminal(Stream::kError)), begin_(Clock::now()), last_(begin_) {}

ProgressBar::~ProgressBar() {
  wipe();
}

void ProgressBar::wipe() {
  if (drawn_) std::fputs("\r\x1b[K", stderr);
  drawn_ = false;
}

void ProgressBar::update(std::string_view what, int64_t done, int64_t total) {
  if (!on_) return;
  const auto now = Clock::now();
  if (done < done_ || total != total_) begin_ = now;  // other work; under another name the same work goes on
  const bool renamed = what != what_;
  what_ = what, done_ = done, total_ = total;
  using std::chrono::milliseconds;
  if (drawn_ ? !renamed && now - last_ < milliseconds(100) : now - begin_ < milliseconds(300)) return;
  last_ = now;
  const double seconds = std::chrono::duration<double>(now - begin_).count();
  const double share = total > 0 ? std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0) : 0;
  std::string tail = fmt::format(" {:3.0f}%", 100 * share);
  if (share > 0.02) {
    const int64_t left = static_cast<int64_t>(seconds / share - seconds + 0.5);
    tail += fmt::format("  {}:{:02} left", left / 60, left % 60);
  }
  const std::string name = safe_text(what, Lines::kOne);
  const int room = terminal_width() - static_cast<int>(name.size() + tail.size()) - 4;
  const int width = std::clamp(room, 0, 40), filled = static_cast<int>(share * width);
  std::string bar;
  for (int i = 0; i < width; ++i) bar += i < filled ? "\xe2\x96\x88" : "\xe2\x96\x91";
  fmt::print(stderr, "\r{} {}{}\x1b[K", name, bar, tail);
  std::fflush(stderr);
  drawn_ = true;
}

}  // namespace attend::app
