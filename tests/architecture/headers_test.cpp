// What CONTRIBUTING.md asks of a mechanism's header: source, shapes, cost and errors, each where a line begins.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <string>

namespace {

namespace fs = std::filesystem;

TEST(Headers, OfMechanismsSayWhatAReaderNeeds) {
  const fs::path include = fs::path(ATTEND_TEST_DATA).parent_path().parent_path() / "include" / "attend";
  const std::regex label("^// (Source|Shapes|Cost|Errors) +[^ ]"),
      displaced("^//.*[^ /].* (Source|Shapes|Cost|Empty|Errors|Numerics)   ");
  int checked = 0;
  for (const auto& reference : fs::directory_iterator(include / "reference")) {
    const fs::path header = include / "exact" / reference.path().filename();
    ASSERT_TRUE(fs::exists(header)) << header;
    std::map<std::string, int> said;
    std::ifstream file(header);
    for (std::string line; std::getline(file, line);) {
      std::smatch found;
      if (std::regex_search(line, found, label)) ++said[found[1]];
      EXPECT_FALSE(std::regex_search(line, displaced)) << header << ": " << line;
    }
    EXPECT_EQ(said.size(), 4u) << header;
    ++checked;
  }
  EXPECT_GT(checked, 30);
}

}  // namespace
