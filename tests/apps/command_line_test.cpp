#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "attend/tensor/registry.h"
#include "support/run_app.h"

namespace attend::test {
namespace {

TEST(CommandLine, ShowsHelpWithoutArguments) {
  const Outcome bare = run_app({});
  EXPECT_EQ(bare.code, 0);
  EXPECT_NE(bare.out.find("Usage: attend COMMAND"), std::string::npos);
  EXPECT_EQ(bare.out, run_app({"--help"}).out);
  EXPECT_EQ(bare.out.find('\x1b'), std::string::npos);
  EXPECT_EQ(run_app({"--version"}).out, "attend 0.1.0\n");
}

TEST(CommandLine, RefusesWhatItDoesNotKnow) {
  const Outcome command = run_app({"modls"});
  EXPECT_EQ(command.code, 2);
  EXPECT_EQ(command.out, "");
  EXPECT_EQ(command.error, "attend: \"modls\" is no command; did you mean models?\n");
  const Outcome option = run_app({"models", "--jsn"});
  EXPECT_EQ(option.code, 2);
  EXPECT_EQ(option.error, "attend: models: \"--jsn\" is no option; did you mean --json?\n");
  EXPECT_EQ(run_app({"models", "extra"}).code, 2);
  EXPECT_EQ(run_app({"pull"}).code, 2);
}

TEST(CommandLine, ExplainsEntriesInLinesThatFit) {
  for (const char* name : {"softmax", "duo", "offloaded"}) {
    std::istringstream lines(run_app({"info", name}).out);
    bool fields = false;
    for (std::string line; std::getline(lines, line);) {
      fields |= line.starts_with("  exact for");
      if (fields) {
        EXPECT_LE(line.size(), 120u) << line;
      }
    }
    EXPECT_TRUE(fields) << name;
  }
  EXPECT_NE(run_app({"info", "duo"}).out.find("a path"), std::string::npos);
}

// The second of two entries begins at a half: its name stands at the bar at once, not when its part takes long.
TEST(CommandLine, ShowsOneBarForAllThatIsChecked) {
  const Outcome shown =
      run_app({"check", "relu", "reversed"}, {.prefix = {"/bin/sh", "-c", "script -qec \"$*\" /dev/null", "sh"}});
  EXPECT_EQ(shown.code, 0) << shown.error;
  const size_t half = shown.out.find(" 50%");
  ASSERT_NE(half, std::string::npos) << shown.out;
  EXPECT_NE(shown.out.rfind("reversed", half), std::string::npos);
}

TEST(CommandLine, TellsOfEachMechanismThatIsChecked) {
  const Outcome checked = run_app({"check", "gaam"});
  EXPECT_EQ(checked.code, 0) << checked.error;
  EXPECT_TRUE(checked.out.starts_with("gaam ")) << checked.out;
  const std::string line = checked.out.substr(0, checked.out.find('\n'));
  EXPECT_NE(line.find(" passed    0 failed "), std::string::npos) << line;
  EXPECT_TRUE(line.ends_with(" s")) << line;
}

// A benchmark over all rows once stopped at the first that refused its inputs.
TEST(CommandLine, EveryBenchmarkRowOfAMechanismIsRight) {
  const Outcome checked = run_app({"bench", "--check"});
  EXPECT_EQ(checked.code, 0) << checked.out << checked.error;
  EXPECT_NE(checked.out.find("exact/sentinel-prefill-f32-d64"), std::string::npos) << checked.out;
  EXPECT_NE(checked.out.find("exact/threads-backward-all"), std::string::npos) << checked.out;
  for (const Entry* entry : registry().entries())
    if (entry->kind == Kind::kMechanism && entry->name != "softmax") {
      EXPECT_NE(checked.out.find(fmt::format("/{}-backward-", entry->name)), std::string::npos) << entry->name;
    }
  EXPECT_NE(checked.out.find(" 0 wrong\n"), std::string::npos) << checked.out;
}

TEST(CommandLine, KeepsControlCharactersOffTheTerminal) {
  const Outcome outcome = run_app({"\x1b[31mred\nline"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_EQ(outcome.error, "attend: \"\xef\xbf\xbd[31mred line\" is no command (attend --help lists them)\n");
}

TEST(CommandLine, SaysWhenOutputCantBeWritten) {
  const Outcome outcome = run_app({"models"}, {.out_path = "/dev/full"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_NE(outcome.error.find("standard output can't be written"), std::string::npos);
}

TEST(CommandLine, InterruptedPullLeavesNothing) {
  char name[] = "/tmp/attend-app-XXXXXX";
  const std::filesystem::path folder = mkdtemp(name);
  std::ofstream(folder / "pip") << "#!/bin/sh\nsleep 60\n";
  std::filesystem::permissions(folder / "pip", std::filesystem::perms::owner_all);
  const std::vector<std::string> environment = {"ATTEND_MODELS_DIR=" + (folder / "models").string(),
                                                "PATH=" + folder.string() + ":/usr/bin:/bin"};
  const Outcome pulled = run_app({"pull", "smollm2-135m"}, {.environment = environment, .interrupt_after_ms = 700});
  EXPECT_EQ(pulled.code, 130);
  EXPECT_EQ(pulled.error,
            "Obtaining smollm2-135m (98 MB). SmolLM2-135M-Instruct by Hugging Face, licence Apache-2.0.\n");
  EXPECT_FALSE(std::filesystem::exists(folder / "models" / ".pull-smollm2-135m"));
  const Outcome listed = run_app({"models", "--json"}, {.environment = environment});
  EXPECT_NE(listed.out.find("\"path\": null"), std::string::npos) << listed.out;
  std::filesystem::remove_all(folder);
}

TEST(CommandLine, EveryCommandExplainsItself) {
  const std::string all = run_app({}).out;
  size_t line = 0, shown = 0;
  while ((line = all.find('\n', line)) != std::string::npos) {
    ++line;
    if (all.compare(line, 2, "  ") != 0 || !std::islower(static_cast<unsigned char>(all[line + 2]))) continue;
    const std::string name = all.substr(line + 2, all.find_first_of(" \n", line + 2) - line - 2);
    if (name == "attend" || all[line + 2 + name.size()] != ' ') continue;
    SCOPED_TRACE(name);
    const Outcome help = run_app({name, "--help"});
    EXPECT_EQ(help.code, 0);
    EXPECT_NE(help.out.find("Usage: attend " + name), std::string::npos);
    EXPECT_EQ(help.out, run_app({"help", name}).out);
    ++shown;
  }
  EXPECT_GE(shown, 2u);
}

}  // namespace
}  // namespace attend::test
