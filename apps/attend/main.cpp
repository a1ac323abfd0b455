#include <fmt/format.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <new>
#include <system_error>

#include "attend/tensor/error.h"
#include "command.h"
#include "terminal.h"

namespace attend::app {
namespace {

const std::vector<CommandGroup>& commands() {
  static const std::vector<CommandGroup> all = {
      {"Read and write text with a model",
       {
           &kRun,
           &kCompare,
           &kFit,
           &kScore,
           &kTokenize,
           &kModels,
           &kPull,
       }},
      {"Attention by itself", {&kList, &kInfo, &kApply, &kCheck, &kBench, &kIsa}},
  };
  return all;
}

int report(int code, std::string_view message) {
  std::fflush(stdout);
  fmt::print(stderr, "attend: {}\n", safe_text(message, Lines::kOne));
  return code;
}

int finish(int code) {
  if (std::fflush(stdout) == 0 && !std::ferror(stdout)) return code;
  return report(1, "standard output can't be written: " + std::generic_category().message(errno));
}

int run(int argc, char** argv) {
  try {
    return finish(run_command_line(commands(), argc, argv));
  } catch (const UsageError& error) {
    return report(2, error.what());
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kCancelled) return finish(interrupted() ? 128 + interrupted() : 1);
    return report(error.kind() == ErrorKind::kSpec ? 2 : 1, error.what());
  } catch (const std::bad_alloc&) {
    return report(1, "memory is exhausted");
  } catch (const std::exception& error) {
    return report(1, error.what());
  }
}

}  // namespace
}  // namespace attend::app

int main(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // a limit on file sizes is an error of write(), like a full disk
  return attend::app::run(argc, argv);
}
