#pragma once
// What a subcommand's file sees of the command line: it declares its options and returns an exit code.
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace attend::app {

// The options of one subcommand. Names as "-f,--file", or "file" for a positional one. Targets keep their value when an
// option is absent.
class Options {
 public:
  virtual ~Options() = default;
  virtual void text(const char* names, std::string& target, const char* help, bool required = false) = 0;
  virtual void texts(const char* names, std::vector<std::string>& target, const char* help) = 0;
  virtual void integer(const char* names, int64_t& target, int64_t min, int64_t max, const char* help) = 0;
  virtual void real(const char* names, double& target, double min, double max, const char* help) = 0;
  virtual void flag(const char* names, bool& target, const char* help) = 0;
  virtual bool given(const char* name) const = 0;  // after parsing, by one of its names
};

struct Command {
  const char* name;
  const char* summary;
  const char* details;                                // examples, below the options
  std::function<int()> (*declare)(Options& options);  // what it returns is run after parsing
};

extern const Command kRun, kCompare, kScore, kTokenize, kList, kInfo, kApply, kCheck, kBench, kIsa, kModels, kPull;

}  // namespace attend::app
