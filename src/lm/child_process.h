#pragma once
// Other programs, started without a shell, that end with us.
#include <sys/types.h>

#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace attend {

class ChildProcess {
 public:
  // Standard input is empty; standard output goes to the descriptor `out`, errors to the file `errors`.
  // `environment` ("NAME=value") stands before that of this process. Throws Error(kFile) if the program can't be
  // started; none if it does not exist.
  static std::optional<ChildProcess> start(const std::vector<std::string>& command,
                                           const std::vector<std::string>& environment, int out,
                                           const std::filesystem::path& errors);

  ChildProcess(ChildProcess&& other) noexcept : id_(std::exchange(other.id_, 0)) {}
  ChildProcess& operator=(ChildProcess&&) = delete;
  ~ChildProcess();  // ends it, and what it started, if it still runs

  std::optional<int> poll();  // exit code (128 + signal if a signal ended it), or none while it runs
  int wait();

 private:
  explicit ChildProcess(pid_t id) : id_(id) {}
  std::optional<int> reap(int options);
  pid_t id_;
};

}  // namespace attend
