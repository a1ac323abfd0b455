// The policies that the documents run are ones that the registry takes.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>

#include "attend/tensor/error.h"
#include "attend/tensor/registry.h"

namespace attend {
namespace {

namespace fs = std::filesystem;

TEST(Docs, NamePoliciesThatRun) {
  const fs::path root = fs::path(ATTEND_TEST_DATA).parent_path().parent_path();
  std::vector<fs::path> files = {root / "README.md", root / "Makefile"};
  for (const auto& entry : fs::directory_iterator(root / "docs"))
    if (entry.path().extension() == ".md") files.push_back(entry.path());
  const std::regex given(
      "(?:--polic(?:y|ies)\\s+|POLICIES \\?= )(?:\"([^\"]*)\"|'([^']*)'|([^\\s`\"'$][^\\n`\"']*\\n))");
  int checked = 0;
  for (const fs::path& path : files) {
    std::ostringstream whole;
    whole << std::ifstream(path).rdbuf();
    const std::string text = std::regex_replace(whole.str(), std::regex(R"(\\\n)"), " ");
    for (std::sregex_iterator it(text.begin(), text.end(), given), end; it != end; ++it) {
      std::string policies = (*it)[1].matched ? (*it)[1] : (*it)[2].matched ? (*it)[2] : (*it)[3];
      if (policies == "P; P" || policies == "$(POLICIES)") continue;
      if ((*it)[3].matched && path.extension() == ".md") policies.resize(policies.find_first_of(" \n"));
      for (const std::string& policy : split_policies(policies))
        for (const std::string& reading : split_readings(policy)) {
          EXPECT_NO_THROW(registry().policy(reading)) << path << ": " << reading;
          ++checked;
        }
    }
  }
  EXPECT_GT(checked, 60);
}

}  // namespace
}  // namespace attend
