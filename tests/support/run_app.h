#pragma once
// Runs the attend command as a user would and shows what came of it.
#include <string>
#include <vector>

namespace attend::test {

struct Outcome {
  int code;  // exit code, or 128 + signal
  std::string out, error;
};

struct RunOptions {
  std::string input = {};                     // standard input
  std::vector<std::string> environment = {};  // "NAME=value", beside the test's own
  std::vector<std::string> prefix = {};       // a program before it, e.g. {"timeout", "5"}
  std::string out_path = {};                  // standard output goes there instead
  int interrupt_after_ms = 0;                 // SIGINT then, if not 0
};

Outcome run_app(const std::vector<std::string>& arguments, const RunOptions& options = {});

}  // namespace attend::test
