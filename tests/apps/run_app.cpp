#include "support/run_app.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <thread>

extern char** environ;

namespace attend::test {
namespace {

std::string slurp(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> result;
  for (std::string& text : texts) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

}  // namespace

Outcome run_app(const std::vector<std::string>& arguments, const RunOptions& options) {
  char name[] = "/tmp/attend-run-XXXXXX";
  if (!mkdtemp(name)) throw std::runtime_error("no folder for a test");
  const std::filesystem::path folder = name;
  std::ofstream(folder / "in", std::ios::binary) << options.input;
  const std::string out = options.out_path.empty() ? folder / "out" : std::filesystem::path(options.out_path);

  std::vector<std::string> command = options.prefix, environment = options.environment;
  command.push_back(ATTEND_APP);
  command.insert(command.end(), arguments.begin(), arguments.end());
  for (char** e = environ; *e; ++e) {
    const std::string variable = *e, key = variable.substr(0, variable.find('=') + 1);
    bool replaced = false;
    for (const std::string& given : options.environment) replaced |= given.starts_with(key);
    if (!replaced) environment.push_back(variable);
  }

  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, 0, (folder / "in").c_str(), O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&files, 1, out.c_str(), O_WRONLY | O_CREAT, 0600);
  posix_spawn_file_actions_addopen(&files, 2, (folder / "error").c_str(), O_WRONLY | O_CREAT, 0600);
  pid_t child = 0;
  const int failed =
      posix_spawnp(&child, command[0].c_str(), &files, nullptr, pointers(command).data(), pointers(environment).data());
  posix_spawn_file_actions_destroy(&files);
  if (failed) throw std::runtime_error("can't run " + command[0]);
  if (options.interrupt_after_ms) {
    std::this_thread::sleep_for(std::chrono::milliseconds(options.interrupt_after_ms));
    kill(child, SIGINT);
  }
  int status = 0;
  waitpid(child, &status, 0);
  Outcome outcome{WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), slurp(folder / "out"),
                  slurp(folder / "error")};
  std::filesystem::remove_all(folder);
  return outcome;
}

}  // namespace attend::test
