#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "support/model_file.h"
#include "support/run_app.h"

namespace attend::test {
namespace {

class Tokenize : public testing::Test {
 protected:
  void SetUp() override { ASSERT_FALSE(model_file(kSmollmFile).empty() || model_file(kGemmaFile).empty()); }

  static void expect_out(const std::vector<std::string>& arguments, const std::string& input, const std::string& out) {
    const Outcome outcome = run(arguments, input);
    EXPECT_EQ(outcome.code, 0);
    EXPECT_EQ(outcome.error, "");
    EXPECT_EQ(outcome.out, out);
  }

  static void expect_failure(int code, const std::string& part, const std::vector<std::string>& arguments,
                             const std::string& input = "") {
    const Outcome outcome = run(arguments, input);
    EXPECT_EQ(outcome.code, code);
    EXPECT_EQ(outcome.out, "");
    EXPECT_NE(outcome.error.find(part), std::string::npos) << outcome.error;
    EXPECT_EQ(std::count(outcome.error.begin(), outcome.error.end(), '\n'), 1) << outcome.error;
  }

 private:
  static Outcome run(std::vector<std::string> arguments, const std::string& input) {
    arguments.insert(arguments.begin(), "tokenize");
    return run_app(arguments, {.input = input});
  }
};

TEST_F(Tokenize, TextToIds) {
  expect_out({}, "Hello, world!", "[19556, 28, 905, 17]\n");
  expect_out({}, "", "[]\n");
  expect_out({"--special"}, "<|im_start|>Hello<|endoftext|>", "[1, 19556, 0]\n");
  expect_out({"-m", "gemma3-270m"}, "Hello, world!", "[2, 9259, 236764, 1902, 236888]\n");
  expect_out({"-m", "gemma3-270m", "--no-bos", "--json"}, "Hello, world!",
             "{\"tokens\":[9259, 236764, 1902, 236888]}\n");
  expect_out({"-m", "gemma3-270m"}, "\xe4\xbd", "[2, 466, 427]\n");
}

TEST_F(Tokenize, IdsToText) {
  expect_out({"--decode"}, "[19556, 28, 905, 17]", "Hello, world!");
  expect_out({"--decode"}, "{\"tokens\": [1, 19556, 0]}", "Hello");
  expect_out({"--decode", "--special"}, "[1, 19556, 0]", "<|im_start|>Hello<|endoftext|>");
  expect_out({"--decode", "-m", "gemma3-270m"}, "[2, 466, 427]", "\xe4\xbd");
  expect_out({"--decode", "-m", "gemma3-270m", "--json"}, "[2, 466, 427]", "{\"text\":\"\xef\xbf\xbd\"}\n");
  expect_out({"--decode"}, "[]", "");
}

TEST_F(Tokenize, Refusals) {
  expect_failure(1, "id = 49152, is outside the vocabulary of 49152 tokens", {"--decode"}, "[49152]");
  expect_failure(1, "has the id -1, which is negative", {"--decode"}, "[-1]");
  expect_failure(1, "where an integer id is wanted", {"--decode"}, "[1.5]");
  expect_failure(1, "is no valid JSON", {"--decode"}, "[1, 2");
  expect_failure(1, "is no valid JSON", {"--decode"}, "");
  expect_failure(2, "--no-bos", {"--decode", "--no-bos"}, "[1]");
  expect_failure(1, "", {"-m", "/nowhere/model.gguf"}, "a");
  expect_failure(1, "is a directory", {"-m", "/tmp/"}, "a");
  expect_failure(1, "is not a GGUF file",
                 {"-m", std::string(ATTEND_TEST_DATA) + "/golden/gemma3-270m/tokenization.json"}, "a");
}

// A real file cut short anywhere: one line and exit code 1.
TEST_F(Tokenize, TruncatedModels) {
  const std::filesystem::path whole = model_file(kSmollmFile);
  const std::filesystem::path cut = testing::TempDir() + "attend-truncated.gguf";
  std::ifstream in(whole, std::ios::binary);
  std::string head(3 << 20, '\0');
  in.read(head.data(), static_cast<std::streamsize>(head.size()));
  for (size_t bytes :
       {size_t{1}, size_t{4}, size_t{23}, size_t{1000}, size_t{100'000}, size_t{1'769'507}, head.size()}) {
    std::ofstream(cut, std::ios::binary).write(head.data(), static_cast<std::streamsize>(bytes));
    expect_failure(1, "attend: [gguf] file = " + cut.string() + ", is ", {"-m", cut.string()}, "a");
  }
  std::filesystem::remove(cut);
}

}  // namespace
}  // namespace attend::test
