// run, score and compare on a small model, as a user calls them.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "support/run_app.h"
#include "support/small_model.h"

namespace attend::test {
namespace {

using nlohmann::json;

class ModelCommands : public testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& text) const {
    const std::filesystem::path path = file_.folder / name;
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }
  json report(std::vector<std::string> arguments) const {
    arguments.push_back("--json");
    const Outcome outcome = run_app(arguments);
    EXPECT_EQ(outcome.code, 0) << outcome.error;
    EXPECT_EQ(outcome.error, "");
    return json::parse(outcome.out);
  }
  // One line on standard error that holds `part`, nothing on standard output.
  void refused(const std::vector<std::string>& arguments, int code, const std::string& part) const {
    const Outcome outcome = run_app(arguments);
    EXPECT_EQ(outcome.code, code) << outcome.error;
    EXPECT_EQ(outcome.out, "");
    EXPECT_NE(outcome.error.find(part), std::string::npos) << outcome.error;
    EXPECT_EQ(std::count(outcome.error.begin(), outcome.error.end(), '\n'), 1) << outcome.error;
  }

  SmallModel::File file_ = SmallModel{}.file();
  std::string model_ = file_.path;
  std::string text_ = write("text.txt", "the hello of the moon, the hello of the sun, and the rest of it all too.\n");
};

TEST_F(ModelCommands, RunReports) {
  const json first = report({"run", "-m", model_, "-p", "hello", "-n", "12"});
  for (const char* key : {"text", "tokens", "prefill_tps", "decode_tps", "kv_bytes", "peak_rss_bytes"})
    EXPECT_TRUE(first.contains(key)) << key;
  EXPECT_LE(first["tokens"].size(), 12u);
  EXPECT_EQ(first["tokens"],
            report({"run", "-m", model_, "-p", "hello", "-n", "12", "--threads", "3", "--chunk", "1"})["tokens"]);
  const std::vector<std::string> drawn = {"run", "-m", model_, "-p", "hello", "-n", "12", "--temp", "3", "--seed", "5"};
  EXPECT_EQ(report(drawn)["tokens"], report(drawn)["tokens"]);
}

TEST_F(ModelCommands, RunStreamsAndSumsUp) {
  const Outcome outcome = run_app({"run", "-m", model_, "-p", "hello", "-n", "5"});
  EXPECT_EQ(outcome.code, 0);
  EXPECT_NE(outcome.error.find("tok/s"), std::string::npos);
  EXPECT_NE(outcome.error.find("peak memory"), std::string::npos);
}

// Drafts change nothing but the number of steps, greedily and at random.
TEST_F(ModelCommands, RunDraftsTheSameText) {
  using Arguments = std::vector<std::string>;
  const std::vector<Arguments> choices = {
      {}, {"--temp", "0.8", "--seed", "4"}, {"--policy", "h2o:budget=24,stride=16"}};
  const std::vector<Arguments> drafts = {{"--draft", "ngram:n=2,max=4"},
                                         {"--draft-model", model_, "--draft-tokens", "3"},
                                         {"--draft-policy", "softmax:window=16,sinks=2"}};
  for (const Arguments& choice : choices) {
    Arguments plain = {"run", "-m", model_, "-f", text_, "-n", "40", "--ignore-eos"};
    plain.insert(plain.end(), choice.begin(), choice.end());
    const json wanted = report(plain);
    EXPECT_FALSE(wanted.contains("draft"));
    for (const Arguments& draft : drafts) {
      Arguments arguments = plain;
      arguments.insert(arguments.end(), draft.begin(), draft.end());
      const json got = report(arguments);
      EXPECT_EQ(got["tokens"], wanted["tokens"]) << draft[0];
      EXPECT_EQ(got["draft"]["tokens"], 39);
      EXPECT_LE(got["draft"]["steps"], 39);
    }
  }
  const Outcome outcome = run_app({"run", "-m", model_, "-p", "hello", "-n", "5", "--draft-model", model_});
  EXPECT_NE(outcome.error.find("tokens a step"), std::string::npos) << outcome.error;
  SmallModel other;
  other.first_token = "<|start|>";
  const SmallModel::File renamed = other.file();
  refused({"run", "-m", model_, "-p", "a", "--draft-model", renamed.path}, 2, "the vocabulary");
  refused({"run", "-m", model_, "-p", "a", "--draft", "gram"}, 2, "ngram");
  refused({"run", "-m", model_, "-p", "a", "--draft", "ngram", "--policy", "quest"}, 1, "selector");
  refused({"run", "-m", model_, "-p", "a", "--draft", "ngram", "--policy", "rope | dca"}, 1, "readings");
  refused({"run", "-m", model_, "-p", "a", "--draft", "ngram", "--draft-policy", "q8_0"}, 2, "--draft");
}

// Samples of one prompt are what separate runs with their seeds give.
TEST_F(ModelCommands, RunSamplesReadThePromptOnce) {
  for (const char* policy : {"paged:page=4", "h2o:budget=24,stride=16", "rope | rope:base=500"}) {
    const std::vector<std::string> one = {"run",          "-m",     model_, "-f",       text_,  "-n",    "20",
                                          "--ignore-eos", "--temp", "2",    "--policy", policy, "--seed"};
    std::vector<std::string> all = one;
    all.insert(all.end(), {"4", "--samples", "3"});
    const json samples = report(all)["samples"];
    ASSERT_EQ(samples.size(), 3u);
    for (size_t i = 0; i < 3; ++i) {
      std::vector<std::string> alone = one;
      alone.push_back(std::to_string(4 + i));
      EXPECT_EQ(samples[i]["tokens"], report(alone)["tokens"]) << policy << " " << i;
      EXPECT_EQ(samples[i]["seed"], 4 + i);
    }
    EXPECT_NE(samples[0]["tokens"], samples[1]["tokens"]);
  }
  const Outcome outcome =
      run_app({"run", "-m", model_, "-p", "hello", "-n", "5", "--temp", "1", "--samples", "2", "--draft", "ngram"});
  EXPECT_NE(outcome.out.find("sample 2, seed 1:"), std::string::npos) << outcome.out;
  refused({"run", "-m", model_, "-p", "a", "--samples", "2"}, 2, "--temp 0");
  refused({"run", "-m", model_, "-p", "a", "--samples", "2", "--temp", "1", "--save-state", "x"}, 2, "--save-state");
}

// A saved text goes on as if it had been read at once; whatever else is in the file is one line and code 1.
TEST_F(ModelCommands, RunSavesAndRestores) {
  const std::string state = file_.folder / "a.state";
  const json whole = report({"run", "-m", model_, "-p", "hello the sun", "-n", "9"});
  report({"run", "-m", model_, "-p", "hello", "-n", "0", "--save-state", state});
  const std::vector<std::string> more = {"run", "-m", model_, "-p", " the sun", "-n", "9", "--load-state", state};
  std::vector<std::string> elsewhere = more;
  elsewhere.insert(elsewhere.end(), {"--policy", "paged:page=3"});
  EXPECT_EQ(report(more)["tokens"], whole["tokens"]);
  EXPECT_EQ(report(elsewhere)["tokens"], whole["tokens"]);
  std::vector<std::string> other = more;
  other.insert(other.end(), {"--policy", "bf16"});
  refused(other, 1, "another policy");
  refused({"run", "-m", model_, "-p", "a", "--load-state", text_}, 1, "no saved state");
  refused({"run", "-m", model_, "-p", "a", "--load-state", state + ".absent"}, 1, "can't be read");
  refused({"run", "-m", model_, "-p", "a", "--save-state", state, "--policy", "rope | dca"}, 1, "not saved");
  refused({"run", "-m", model_, "-p", "a", "--save-state", state, "--chat"}, 2, "--chat");
  SmallModel other_weights;
  other_weights.weight_scale = 0.31f;
  const SmallModel::File changed = other_weights.file();
  refused({"run", "-m", changed.path, "-p", "a", "--load-state", state}, 1, "another model");
}

TEST_F(ModelCommands, ScoreReports) {
  const json score = report({"score", "-m", model_, "-f", text_, "--top", "3"});
  const size_t n = score["tokens"].get<size_t>();
  ASSERT_EQ(score["logprobs"].size(), n - 1);
  double sum = 0;
  for (double x : score["logprobs"]) sum += x;
  EXPECT_NEAR(score["nll"].get<double>(), -sum / static_cast<double>(n - 1), 1e-9);
  EXPECT_NEAR(score["ppl"].get<double>(), std::exp(score["nll"].get<double>()), 1e-9);
  ASSERT_EQ(score["top"].size(), 3u);
  EXPECT_GE(score["top"][0][1].get<double>(), score["top"][1][1].get<double>());
}

TEST_F(ModelCommands, ScoreCutsIntoChunksThatBeginWithBos) {
  const std::string ids = write("ids.json", "[10, 20, 30, 40, 50, 60, 70]");
  const json cut = report({"score", "-m", model_, "--ids", ids, "--ctx", "4"});
  EXPECT_EQ(cut["tokens"], 7);
  ASSERT_EQ(cut["logprobs"].size(), 7u);
  const json second = report({"score", "-m", model_, "--ids", write("b.json", "[1, 40, 50, 60]")});
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(cut["logprobs"][3 + i], second["logprobs"][i]);
}

TEST_F(ModelCommands, CompareReportsAndDraws) {
  const std::string html = file_.folder / "page.html";
  const json result = report({"compare", "-m", model_, "-f", text_, "--policies",
                              "softmax; softmax:window=8,sinks=2 + bf16", "--html", html, "--greedy", "6"});
  EXPECT_EQ(result["rows"].size(), 2u);
  for (const char* key : {"policy", "prefill_s", "decode_tps", "kv_bytes", "bytes_read_per_token", "nll", "kl", "top1",
                          "peak_kv_bytes", "greedy_same_tokens", "greedy_differs", "greedy_tokens"})
    EXPECT_TRUE(result["rows"][1].contains(key)) << key;
  EXPECT_EQ(result["rows"][0]["kl"], 0);
  std::ifstream in(html);
  const std::string page{std::istreambuf_iterator<char>(in), {}};
  EXPECT_NE(page.find("<svg"), std::string::npos);
  EXPECT_NE(page.find("window=8"), std::string::npos);
  for (const char* section : {"Tokens held after the prompt", "Greedy continuations", "--greedy 6", "attend 0."})
    EXPECT_NE(page.find(section), std::string::npos) << section;
  for (const char* outside : {"<script src", "<link", "@import", "src=\"http", "url("})
    EXPECT_EQ(page.find(outside), std::string::npos) << outside;
}

// One text under several policies at once, and texts beyond the model's context of 400 tokens.
TEST_F(ModelCommands, ReadingsRunEverywhere) {
  const char* readings = "rope:base=500 | rope:base=20000";
  std::string ids = "[1";
  for (int i = 0; i < 449; ++i) ids += fmt::format(", {}", (i * 97 + 5) % 269);
  const std::string file = write("long.json", ids + "]");
  const json merged = report({"score", "-m", model_, "--ids", file, "--ctx", "600", "--policy", readings});
  const json one = report({"score", "-m", model_, "--ids", file, "--ctx", "600", "--policy", "rope:base=500"});
  ASSERT_EQ(merged["logprobs"].size(), 450u);
  EXPECT_NE(merged["nll"], one["nll"]);
  const json answer = report({"run", "-m", model_, "-f", text_, "-n", "5", "--ignore-eos", "--policy", readings});
  EXPECT_EQ(answer["tokens"].size(), 5u);
  const std::string text = write("long.txt", std::string(700, 'e') + " and the rest of it");
  const json result = report({"compare", "-m", model_, "-f", text, "--ctx", "1000", "--policies",
                              fmt::format("{}; rope; streaming:window=300,sinks=4", readings)});
  ASSERT_GT(result["tokens"], 400);
  EXPECT_EQ(result["rows"][0]["policy"], "rope:base=500 | rope:base=20000");
  EXPECT_GT(result["rows"][0]["kl"], 0);
  EXPECT_EQ(result["rows"][1]["kl"], 0) << "the exact run";
  EXPECT_GT(result["rows"][0]["kv_bytes"], result["rows"][1]["kv_bytes"]);
  EXPECT_LT(result["rows"][2]["kv_bytes"], result["rows"][1]["kv_bytes"]);
}

TEST_F(ModelCommands, ComparesOnTasks) {
  SmallModel larger;
  larger.context = 2400;
  const SmallModel::File file = larger.file();
  const std::string html = file_.folder / "tasks.html", window = "softmax:window=50,sinks=4";
  const std::vector<std::string> arguments = {
      "compare",   "-m", file.path, "--task", "niah_single_1,fwe", "--lengths",          "1200",   "--depths", "0,100",
      "--samples", "2",  "--seed",  "5",      "--policies",        "softmax; " + window, "--html", html};
  const json result = report(arguments);
  EXPECT_EQ(result["samples"], 6);
  EXPECT_EQ(result["seed"], 5);
  EXPECT_TRUE(result["haystack"].is_null());
  ASSERT_EQ(result["rows"].size(), 2u);
  ASSERT_EQ(result["rows"][1]["cells"].size(), 3u);
  EXPECT_EQ(result["rows"][1]["policy"], window);
  EXPECT_GT(result["rows"][1]["nll"], 0);
  EXPECT_LT(result["rows"][1]["kv_bytes"], result["rows"][0]["kv_bytes"]);
  EXPECT_GE(result["rows"][1]["peak_kv_bytes"], result["rows"][1]["kv_bytes"]);
  const json& cell = result["rows"][0]["cells"][1];
  EXPECT_EQ(cell["task"], "niah_single_1");
  EXPECT_EQ(cell["depth"], 100);
  EXPECT_TRUE(cell["match"].is_null());
  EXPECT_TRUE(result["rows"][0]["cells"][2]["depth"].is_null());
  // Again, and by threads and chunks: the same numbers.
  std::vector<std::string> again = arguments;
  EXPECT_FALSE(result["late_question"]);
  again.insert(again.end(), {"--threads", "1", "--chunk", "37"});
  EXPECT_EQ(report(again)["rows"][1]["cells"], result["rows"][1]["cells"]);
  std::ifstream in(html);
  const std::string page{std::istreambuf_iterator<char>(in), {}};
  for (const char* part :
       {"depth, %", "Tokens held", "class=\"mark\"", "--task niah_single_1,fwe", "--seed 5", "window=50"})
    EXPECT_NE(page.find(part), std::string::npos) << part;

  const std::vector<std::string> task = {"compare", "-m", file.path, "--policies", "softmax", "--task"};
  auto refused_task = [&](std::vector<std::string> more, int code, const std::string& part) {
    more.insert(more.begin(), task.begin(), task.end());
    refused(more, code, part);
  };
  refused_task({"neddle"}, 2, "needle");
  refused_task({"fwe", "--lengths", "1000,x"}, 2, "--lengths");
  refused_task({"fwe", "--lengths", "1000,"}, 2, "--lengths");
  refused_task({"fwe", "--depths", "101"}, 2, "--depths");
  refused_task({"fwe", "--prompt", "5"}, 2, "--prompt");
  refused_task({"fwe", "--greedy", "5"}, 2, "--greedy");
  refused_task({"fwe", "--lengths", "2401"}, 1, "the context holds 2400");
  refused_task({"cwe", "--lengths", "300"}, 1, "cwe needs at least");
  refused_task({"needle", "-f", write("empty-essay", "")}, 1, "is empty");
  refused({"compare", "-m", model_, "--policies", "softmax"}, 2, "--task");
  refused({"compare", "-m", model_, "-f", text_, "--policies", "softmax", "--seed", "1"}, 2, "--task");
  const Outcome stopped = run_app(
      {"compare", "-m", file.path, "--policies", "softmax", "--task", "fwe", "--lengths", "2000", "--samples", "10000"},
      {.interrupt_after_ms = 800});
  EXPECT_EQ(stopped.code, 130);
  EXPECT_EQ(stopped.error, "");
}

TEST_F(ModelCommands, InterruptsCleanly) {
  SmallModel endless;
  endless.context = 1 << 24;
  const SmallModel::File file = endless.file();
  const Outcome outcome =
      run_app({"run", "-m", file.path, "-p", "hello", "-n", "16000000", "--ignore-eos"}, {.interrupt_after_ms = 800});
  EXPECT_EQ(outcome.code, 130);
  EXPECT_EQ(outcome.error, "");
}

TEST_F(ModelCommands, RefuseInOneLine) {
  const std::string binary = write("binary", std::string("text\0more", 9)), empty = write("empty", "");
  const std::string folder = file_.folder;
  refused({"run", "-m", model_}, 2, "-p PROMPT");
  refused({"run", "-m", model_, "-p", ""}, 1, "is empty");
  refused({"run", "-m", model_, "-f", empty}, 1, "is empty");
  refused({"run", "-m", model_, "-f", folder}, 1, "directory");
  refused({"run", "-m", model_, "-f", binary}, 1, "is not UTF-8 text");
  refused({"run", "-m", model_, "-f", folder + "/none"}, 1, "No such file");
  refused({"run", "-m", model_, "-p", std::string(500, 'x')}, 1, "the context holds 400");
  refused({"run", "-m", model_, "-p", "x", "--ctx", "401"}, 1, "400 tokens");
  refused({"run", "-m", model_, "-p", "x", "--policy", "softmax:windw=3"}, 2, "window");
  refused({"run", "-m", model_, "-p", "x", "--chat"}, 1, "chat template");
  refused({"run", "-m", model_, "-p", "x", "--temp", "-1"}, 2, "--temp");
  refused({"run", "-m", model_, "-p", "x", "--compute", "f64"}, 2, "--compute");
  refused({"run", "-m", folder, "-p", "x"}, 1, "directory");
  refused({"run", "-m", text_, "-p", "x"}, 1, "GGUF");
  refused({"score", "-m", model_}, 2, "--ids");
  refused({"score", "-m", model_, "-f", text_, "--ids", text_}, 2, "--ids");
  refused({"score", "-m", model_, "--ids", write("a.json", "[1, 269]")}, 1, "269");
  refused({"score", "-m", model_, "--ids", write("c.json", "[1, -2]")}, 1, "-2");
  refused({"score", "-m", model_, "--ids", write("d.json", "[1]")}, 1, "at least 2");
  refused({"score", "-m", model_, "--ids", text_}, 1, "JSON");
  refused({"compare", "-m", model_, "-f", text_, "--policies", "softmax; sofmax"}, 2, "softmax");
  refused({"compare", "-m", model_, "-f", text_, "--policies", "softmax", "--prompt", "5000"}, 1, "none to force");
  refused({"compare", "-m", model_, "-f", text_, "--policies", "softmax", "--html", folder + "/no/page.html"}, 1,
          "page.html");
  // A mechanism that reads no keys in a store says so, and before another policy runs for nothing.
  for (const char* name : {"sigmoid", "mla", "relative", "t5-bias"}) {
    refused({"run", "-m", model_, "-p", "x", "--policy", name}, 1, std::string("[policy] ") + name);
    for (const char* command : {"compare", "score"})
      refused({command, "-m", model_, "-f", text_, "--policies", std::string("softmax; ") + name}, 1, "[policy]");
  }
  refused({"run", "-m", model_, "-p", "x", "--policy", "softmax | "}, 2, "must not be empty");
}

// Nothing is read or answered first where the result would then be lost.
TEST_F(ModelCommands, RefuseAPlaceThatCantBeWrittenBeforeTheWork) {
  const std::string folder = file_.folder;
  for (const std::string& place : {folder, folder + "/no/file"}) {
    refused({"run", "-m", model_, "-p", "hello", "-n", "3", "--save-state", place}, 1, "can't be written");
    refused({"score", "-m", "no-model", "-f", text_, "--svg", place}, 1, "can't be written");
    refused({"compare", "-m", "no-model", "-f", text_, "--policies", "softmax", "--html", place}, 1,
            "can't be written");
    refused({"fit", "duo", "-m", "no-model", "-f", text_, "-o", place}, 1, "can't be written");
    refused({"apply", "softmax", "--q", "no-array", "-o", place}, 1, "can't be written");
  }
  refused({"apply", "softmax", "--q", "no-array", "-o", folder + "/o", "--out", "lse=" + folder + "/o"}, 2, "both");
}

}  // namespace
}  // namespace attend::test
