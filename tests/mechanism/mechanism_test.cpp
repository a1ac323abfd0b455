// docs/adding-a-mechanism.md, kept true: its example is built here, found by name, and passes the conformance suite.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "attend/conformance/conformance.h"
#include "mechanism/alibi.h"

namespace attend {
namespace {

Registry extended() {
  Registry all;
  for (const Entry* entry : registry().entries()) all.add(*entry);
  register_example(all);
  return all;
}

TEST(AddingAMechanism, TheExampleConforms) {
  const Registry all = extended();
  Context context(2);
  const ConformanceReport report = check_conformance(all, {.names = {"alibi"}}, context);
  EXPECT_GT(report.passed, 50);
  for (size_t i = 0; i < report.failures.size() && i < 5; ++i) {
    ADD_FAILURE() << report.failures[i].name << ": " << report.failures[i].detail;
  }
}

TEST(AddingAMechanism, TheExampleIsFoundByName) {
  const Registry all = extended();
  const Policy policy = all.policy("alibi:causal=true + f32");
  EXPECT_EQ(to_string(policy, all), "alibi:causal=true + f32");
  try {
    all.policy("alib");
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("did you mean \"alibi\"?"), std::string::npos);
  }
}

std::string slurp(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

// Each ```cpp block of a document begins with the name of a file and is a part of it, word for word.
int shown(const std::filesystem::path& root, const std::string& page) {
  const std::string document = slurp(root / page), fence = "```cpp\n// ";
  int blocks = 0;
  for (size_t at = 0; (at = document.find(fence, at)) != std::string::npos; ++blocks) {
    at += fence.size();
    const size_t line = document.find('\n', at), end = document.find("```", line);
    const std::string name = document.substr(at, line - at), code = document.substr(line + 1, end - line - 1);
    EXPECT_NE(slurp(root / name).find(code), std::string::npos) << name << " does not hold:\n" << code;
    at = end;
  }
  return blocks;
}

TEST(Documents, ShowCodeThatIsTested) {
  const std::filesystem::path root = std::filesystem::path(ATTEND_TEST_DATA).parent_path().parent_path();
  EXPECT_GE(shown(root, "docs/adding-a-mechanism.md"), 4);
  EXPECT_GE(shown(root, "docs/hooks.md"), 1);
  EXPECT_GE(shown(root, "README.md"), 1);
}

}  // namespace
}  // namespace attend
