#pragma once
// What a subcommand's file sees of the command line: it declares its options and returns an exit code.
#include <cstdint>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace attend::app {

// The options of one subcommand. Names as "-f,--file", or "file" for a positional one; a word after a space is what
// --help calls the value: "-f,--file TEXTFILE". Targets keep their value when an option is absent and must live until
// the command has run.
class Options {
 public:
  virtual ~Options() = default;
  virtual void text(const char* names, std::string& target, const char* help, bool required = false) = 0;
  virtual void texts(const char* names, std::vector<std::string>& target, const char* help) = 0;  // any number
  virtual void integer(const char* names, int64_t& target, int64_t min, int64_t max, const char* help) = 0;
  virtual void real(const char* names, double& target, double min, double max, const char* help) = 0;
  virtual void flag(const char* names, bool& target, const char* help) = 0;
  virtual void group(const char* title) = 0;       // --help shows what follows under this title
  virtual bool given(const char* name) const = 0;  // after parsing, by one of its names; while the command runs too
};

struct Command {
  const char* name;
  const char* summary;
  const char* details;                                // examples, below the options
  std::function<int()> (*declare)(Options& options);  // what it returns is run after parsing
};

// Commands as the overview shows them.
struct CommandGroup {
  const char* title;
  std::vector<const Command*> commands;
};

// A wrong combination of options, found by a command: exit code 2. Everything else that a command throws is 1.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

extern const Command kRun, kCompare, kFit, kScore, kTokenize, kList, kInfo, kApply, kCheck, kBench, kIsa, kModels,
    kPull;

// Finds the command that the arguments name, parses its options and runs it. Throws UsageError, and what it throws.
int run_command_line(std::span<const CommandGroup> groups, int argc, char** argv);

}  // namespace attend::app
