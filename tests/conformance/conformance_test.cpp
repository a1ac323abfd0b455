#include "attend/conformance/conformance.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "attend/tensor/error.h"

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

// Of gaam, which is quick to check, and of the same with a bound that most cases miss.
ConformanceReport report_with(int threads, std::vector<std::string>& finished) {
  static const Entry strict = [] {
    Entry entry = *registry().find("gaam");
    entry.name = "strict";
    entry.bound = [](const Spec&, const Tensors&, std::string_view) { return 1e-9; };
    return entry;
  }();
  Registry two;
  two.add(strict);
  two.add(*registry().find("gaam"));
  Context context(threads);
  ConformanceOptions options;
  options.finished = [&](const ConformanceEntry& e) {
    finished.push_back(fmt::format("{} {} {}", e.name, e.passed, e.failed));
  };
  return check_conformance(two, options, context);
}

TEST(CheckReport, IsOneForAnyNumberOfThreads) {
  std::vector<std::string> finished, finished_by_one;
  const ConformanceReport several = report_with(3, finished), one = report_with(1, finished_by_one);
  EXPECT_EQ(finished, finished_by_one);
  ASSERT_EQ(finished.size(), 2u);
  EXPECT_TRUE(finished[0].starts_with("strict ")) << finished[0];
  EXPECT_EQ(several.passed, one.passed);
  for (const auto cases : {&ConformanceReport::failures, &ConformanceReport::skipped}) {
    ASSERT_EQ((several.*cases).size(), (one.*cases).size());
    EXPECT_FALSE((one.*cases).empty());
    for (size_t i = 0; i < (one.*cases).size(); ++i) {
      EXPECT_EQ((several.*cases)[i].name, (one.*cases)[i].name);
      EXPECT_EQ((several.*cases)[i].detail, (one.*cases)[i].detail);
    }
  }
}

TEST(CheckReport, IsNotMadeOnceStopped) {
  std::stop_source source;
  Context context(2);
  context.stop = source.get_token();
  ConformanceOptions options{.names = {"gaam", "lla"}};
  options.finished = [&](const ConformanceEntry&) { source.request_stop(); };
  try {
    check_conformance(registry(), options, context);
    FAIL() << "went on";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kCancelled);
  }
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
