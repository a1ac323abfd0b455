#include "lm/child_process.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <string_view>
#include <system_error>
#include <thread>

#include "attend/tensor/error.h"

extern char** environ;

namespace attend {
namespace {

struct SpawnSettings {
  SpawnSettings() {
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attributes);
    // A group of its own, so that all of it can be ended, and default signals, whatever this process does with its own.
    sigset_t none, all;
    sigemptyset(&none);
    sigemptyset(&all);
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGPIPE}) sigaddset(&all, number);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  }
  ~SpawnSettings() {
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
  }
  SpawnSettings(const SpawnSettings&) = delete;
  SpawnSettings& operator=(const SpawnSettings&) = delete;

  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
};

}  // namespace

std::optional<ChildProcess> ChildProcess::start(const std::vector<std::string>& command,
                                                const std::vector<std::string>& environment, int out,
                                                const std::filesystem::path& errors) {
  std::vector<char*> arguments, variables;
  for (const std::string& argument : command) arguments.push_back(const_cast<char*>(argument.c_str()));
  for (const std::string& variable : environment) variables.push_back(const_cast<char*>(variable.c_str()));
  for (char** variable = environ; *variable; ++variable) {
    const std::string_view name = std::string_view(*variable).substr(0, std::string_view(*variable).find('='));
    const bool replaced = std::any_of(environment.begin(), environment.end(), [&](const std::string& given) {
      return given.starts_with(name) && given.size() > name.size() && given[name.size()] == '=';
    });
    if (!replaced) variables.push_back(*variable);
  }
  arguments.push_back(nullptr);
  variables.push_back(nullptr);

  SpawnSettings settings;
  posix_spawn_file_actions_addopen(&settings.files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&settings.files, out, STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&settings.files, STDERR_FILENO, errors.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  pid_t id = 0;
  const int error =
      posix_spawnp(&id, arguments[0], &settings.files, &settings.attributes, arguments.data(), variables.data());
  if (error == ENOENT) return std::nullopt;
  if (error) {
    throw Error(ErrorKind::kFile, "process", "program", command[0],
                "can't be started: " + std::generic_category().message(error));
  }
  return ChildProcess(id);
}

std::optional<int> ChildProcess::reap(int options) {
  int status = 0;
  pid_t got = 0;
  do {
    got = waitpid(id_, &status, options);
  } while (got < 0 && errno == EINTR);
  if (got == 0) return std::nullopt;
  id_ = 0;
  if (got < 0) return 127;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

std::optional<int> ChildProcess::poll() {
  return reap(WNOHANG);
}

int ChildProcess::wait() {
  return *reap(0);
}

ChildProcess::~ChildProcess() {
  if (id_ == 0) return;
  kill(-id_, SIGTERM);
  for (int tries = 0; tries < 40; ++tries) {
    std::this_thread::sleep_for(std::chrono::milliseconds(25));
    if (poll()) return;
  }
  kill(-id_, SIGKILL);
  wait();
}

}  // namespace attend
