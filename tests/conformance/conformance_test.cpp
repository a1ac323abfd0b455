#include "attend/conformance/conformance.h"

#include <gtest/gtest.h>

namespace {

TEST(Conformance, EveryEntryOnEveryUsableInstructionSet) {
  attend::Context context(2);
  const auto report = attend::check_conformance(attend::registry(), {}, context);
  EXPECT_GT(report.passed, 500);
  int shown = 0;
  for (const auto& failure : report.failures)
    if (++shown <= 20) ADD_FAILURE() << failure.name << ": " << failure.detail;
  EXPECT_EQ(report.failures.size(), 0u);
}

}  // namespace
