#pragma once
// A file of head gates for the time of a test.
#include <fmt/format.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "attend/kv/head_gates.h"

namespace attend::test {

struct GateFile {
  explicit GateFile(const HeadGates& gates) {
    char name[] = "/tmp/attend-gates-XXXXXX";
    folder = mkdtemp(name);
    path = folder / "heads.json";
    std::ofstream(path) << to_json(gates);
  }
  ~GateFile() { std::filesystem::remove_all(folder); }
  std::string policy(std::string_view options, std::string_view plan = "duo") const {
    return fmt::format("{}:plan=\"{}\",{}", plan, path.native(), options);
  }
  std::filesystem::path folder, path;
};

}  // namespace attend::test
