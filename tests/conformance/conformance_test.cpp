#include "attend/conformance/conformance.h"

#include <gtest/gtest.h>

namespace attend {
namespace {

std::vector<std::string> mechanisms() {
  std::vector<std::string> names;
  for (const Entry* entry : registry().entries())
    if (entry->kind == Kind::kMechanism) names.emplace_back(entry->name);
  return names;
}

class Conformance : public testing::TestWithParam<std::string> {};

TEST_P(Conformance, OnEveryUsableInstructionSet) {
  Context context(2);
  const ConformanceReport report = check_conformance(registry(), {.names = {GetParam()}}, context);
  EXPECT_GT(report.passed, 50);
  for (size_t i = 0; i < report.failures.size() && i < 20; ++i)
    ADD_FAILURE() << report.failures[i].name << ": " << report.failures[i].detail;
  EXPECT_EQ(report.failures.size(), 0u);
}

TEST(Mechanisms, HaveGradients) {
  for (const std::string& name : mechanisms()) EXPECT_FALSE(registry().find(name)->traits.gradients.empty()) << name;
}

INSTANTIATE_TEST_SUITE_P(Entries, Conformance, testing::ValuesIn(mechanisms()), [](const auto& entry) {
  std::string name = entry.param;
  for (char& c : name)
    if (c == '-') c = '_';
  return name;
});

}  // namespace
}  // namespace attend
