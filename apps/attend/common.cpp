#include "common.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

#include "attend/tensor/error.h"
#include "attend/tensor/text.h"
#include "terminal.h"

namespace attend::app {
namespace {

constexpr int64_t kLongestText = int64_t{1} << 30;

[[noreturn]] void fail(const std::string& path, std::string_view rule) {
  throw Error(ErrorKind::kFile, "file", "path", fmt::format("\"{}\"", path), rule);
}

std::string reason() {
  return std::generic_category().message(errno);
}

}  // namespace

void declare_threads(Options& options, int64_t& threads) {
  options.integer("--threads N", threads, 1, 1024,
                  "threads to use (default: one per core); results don't depend on it");
}

void declare_json(Options& options, bool& json) {
  options.flag("--json", json, "report as JSON");
}

void declare_model(Options& options, std::string& model) {
  options.text("-m,--model MODEL", model,
               "a model's name (see attend models) or a GGUF file; a named model is obtained if it is missing "
               "(default: smollm2-135m)");
}

void declare_policy(Options& options, std::string& policy) {
  options.text("--policy SPECS", policy,
               "what to attend to and what to keep, specs joined by '+', e.g. \"softmax:window=512,sinks=4 + f16\" "
               "(see attend list); policies joined by '|' read side by side, their predictions merged by confidence");
}

void declare_chunk(Options& options, int64_t& chunk) {
  options.integer("--chunk N", chunk, 1, 1 << 20, "prompt tokens a step; results don't depend on it");
}

Context make_context(int64_t threads, Progress* progress) {
  Context context(static_cast<int>(threads));
  context.stop = stop_on_interrupt();
  context.progress = progress;
  return context;
}

std::string read_bytes(const std::string& path, int64_t limit) {
  const int fd = path == "-" ? dup(STDIN_FILENO) : open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(path, fmt::format("can't be opened: {}", reason()));
  std::string text, block(size_t{1} << 18, '\0');
  for (;;) {
    const ssize_t n = read(fd, block.data(), block.size());
    if (n < 0 && errno == EINTR && !interrupted()) continue;
    if (n < 0) {
      const std::string why = reason();
      close(fd);
      if (interrupted()) throw Error(ErrorKind::kCancelled, "stopped");
      fail(path, fmt::format("can't be read: {}", why));
    }
    if (n == 0) break;
    text.append(block, 0, static_cast<size_t>(n));
    if (static_cast<int64_t>(text.size()) > limit) {
      close(fd);
      fail(path, fmt::format("is larger than {} bytes", limit));
    }
  }
  close(fd);
  return text;
}

std::string read_text(const std::string& path) {
  std::string text = read_bytes(path, kLongestText);
  if (text.find('\0') != std::string::npos || !is_valid_utf8(text)) fail(path, "is not UTF-8 text");
  return text;
}

void check_writable(const std::string& path) {
  if (path.empty()) return;
  struct stat status {};
  const bool exists = stat(path.c_str(), &status) == 0;
  if (exists && S_ISDIR(status.st_mode)) errno = EISDIR, fail(path, fmt::format("can't be written: {}", reason()));
  // What is a file is replaced, which takes the right to write to its folder.
  const bool special = exists && !S_ISREG(status.st_mode);
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  const std::string place = special ? path : folder.empty() ? "." : folder.native();
  if (access(place.c_str(), special ? W_OK : W_OK | X_OK) != 0)
    fail(path, fmt::format("can't be written: {}", reason()));
}

void write_file(const std::string& path, std::string_view text) {
  struct stat status {};
  const bool special = stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode);
  const std::string target = special ? path : fmt::format("{}.{}.part", path, getpid());
  const int fd = open(target.c_str(), special ? O_WRONLY | O_CLOEXEC : O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) fail(path, fmt::format("can't be written: {}", reason()));
  bool good = true;
  while (good && !text.empty()) {
    const ssize_t n = write(fd, text.data(), text.size());
    if (n > 0) text.remove_prefix(static_cast<size_t>(n));
    good = n > 0 || (n < 0 && errno == EINTR);
  }
  int error = good ? 0 : errno;
  if (close(fd) != 0 && good) error = errno;
  if (!error && !special && rename(target.c_str(), path.c_str()) != 0) error = errno;
  if (!error) return;
  if (!special) unlink(target.c_str());
  fail(path, fmt::format("can't be written: {}", std::generic_category().message(error)));
}

}  // namespace attend::app
