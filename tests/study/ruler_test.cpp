// RULER's tasks: texts of its own generators (tests/data/ruler.jsonl, made by scripts/record_ruler.py) are put together
// again from what was drawn for them, and so are attend's own samples.
#include "study/ruler.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "attend/lm/model.h"
#include "attend/study/task.h"
#include "support/expect_error.h"
#include "support/small_model.h"

namespace attend {
namespace {

using test::expect_error;
using Texts = std::vector<std::string>;

Texts split(const std::string& text, const std::string& between) {
  Texts parts;
  size_t begin = 0;
  for (size_t at; (at = text.find(between, begin)) != std::string::npos; begin = at + between.size())
    parts.push_back(text.substr(begin, at - begin));
  parts.push_back(text.substr(begin));
  return parts;
}

// What stands between two texts; the first of each.
std::string between(const std::string& text, const std::string& before, const std::string& after) {
  const size_t begin = text.find(before);
  if (begin == std::string::npos) return "";
  const size_t from = begin + before.size();
  return text.substr(from, text.find(after, from) - from);
}

int64_t words_in(const std::string& text) {
  const std::regex word("\\S+");
  return std::distance(std::sregex_iterator(text.begin(), text.end(), word), std::sregex_iterator());
}

const std::regex kNeedle("One of the special magic (\\w+) for (\\S+) is: (\\S+)\\.");

std::string rebuilt_needle(const std::string& text) {
  std::smatch found;
  if (!std::regex_match(text, found, kNeedle)) return "no needle: " + text;
  return ruler::needle(found[1].str(), found[2].str(), found[3].str());
}

std::string rebuilt_needles(const std::string& task, const std::string& prompt, const Texts& targets,
                            const std::string& essay) {
  const bool one = targets.size() == 1;
  const std::string context = between(prompt, "afterwards.\n", "\nWhat ");
  const std::string query = between(prompt, "What ", " mentioned in");
  Texts queries = split(query.substr(query.find(" for ") + 5), ", ");
  if (queries.size() > 1) queries.back() = queries.back().substr(4);  // "and "
  const std::string kind = targets[0].size() == 36 ? "uuids" : "numbers";
  std::vector<ruler::Insertion> insertions;
  std::string whole;
  if (task.starts_with("niah_multikey_2") || task.starts_with("niah_multikey_3") || task == "niah_single_1") {
    Texts lines;
    for (const std::string& line : split(context, "\n")) {
      const bool inserted = task == "niah_single_1" ? line != ruler::kNoise : line.find(targets[0]) != line.npos;
      if (inserted)
        insertions.push_back({static_cast<int64_t>(lines.size()), rebuilt_needle(line)});
      else
        lines.push_back(task == "niah_single_1" ? std::string(ruler::kNoise) : rebuilt_needle(line));
    }
    EXPECT_EQ(insertions.size(), 1u);
    whole = ruler::lines_with(lines, insertions);
  } else {
    std::vector<int64_t> before;  // words of the essay
    int64_t own = 0;
    for (std::sregex_iterator at(context.begin(), context.end(), kNeedle), end; at != end; ++at) {
      before.push_back(words_in(context.substr(0, static_cast<size_t>(at->position()))) - own);
      insertions.push_back({0, rebuilt_needle(at->str())});
      own += words_in(at->str());
    }
    const Texts sentences = ruler::essay_sentences(essay, words_in(context) - own);
    int64_t words = 0, place = 0;
    for (size_t i = 0; i < before.size(); ++i) {
      while (words < before[i]) words += words_in(sentences[static_cast<size_t>(place++)]);
      EXPECT_EQ(words, before[i]) << "a needle inside of a sentence";
      insertions[i].place = place;
    }
    EXPECT_EQ(insertions.size(), task == "niah_single_2" || task == "niah_single_3" ? 1u : 4u);
    whole = ruler::sentences_with(sentences, insertions);
  }
  return ruler::needle_prompt(kind, whole, queries, one);
}

std::string rebuilt_chain(const std::string& prompt, const Texts& names) {
  const std::string value = between(prompt, "the value ", " in the text");
  const Texts chain = ruler::variable_chain(names, value);
  Texts lines;
  std::vector<ruler::Insertion> insertions;
  for (const std::string& line : split(between(prompt, "text.\n\n", "\nQuestion"), "\n"))
    if (line.starts_with("VAR ") && insertions.size() < chain.size())
      insertions.push_back({static_cast<int64_t>(lines.size()), chain[insertions.size()]});
    else
      lines.push_back(line == ruler::kNoise ? std::string(ruler::kNoise) : "neither noise nor chain: " + line);
  return ruler::variable_prompt(ruler::lines_with(lines, insertions), value, names.size());
}

std::string rebuilt_variables(const std::string& prompt, const Texts& targets) {
  const size_t main = prompt.rfind("Memorize");
  const std::string example = prompt.substr(0, main);
  Texts names = split(example.substr(example.rfind(": ") + 3, 5 * 4 - 1), " ");
  for (const std::string& name : names) EXPECT_EQ(name.size(), 3u);
  for (const std::string& name : targets) EXPECT_EQ(name.size(), 5u);
  const size_t answered = example.rfind(": ") + 2;
  return rebuilt_chain(example.substr(0, answered), names) + " " + ruler::joined(names, " ") + "\n\n" +
         rebuilt_chain(prompt.substr(main), targets);
}

std::string rebuilt_list(const std::string& prompt, const Texts& common, size_t common_repeats, size_t other_repeats) {
  std::map<std::string, size_t> counts;
  Texts words = split(between(prompt, "often.\n", "\nQuestion"), " ");
  for (size_t i = 0; 2 * i + 1 < words.size(); ++i) ++counts[words[i] = words[2 * i + 1]];
  words.resize(words.size() / 2);
  for (const auto& [word, count] : counts)
    EXPECT_EQ(count, std::find(common.begin(), common.end(), word) == common.end() ? other_repeats : common_repeats);
  EXPECT_EQ(common.size(), 10u);
  return ruler::common_words_prompt(ruler::numbered(words));
}

std::string rebuilt_common_words(const std::string& prompt, const Texts& targets, bool longer) {
  const size_t main = prompt.rfind("Below is");
  const std::string example = prompt.substr(0, main);
  const size_t answered = example.rfind(": 1. ") + 1;
  Texts common;
  const Texts listed = split(example.substr(answered + 1, example.size() - answered - 2), " ");
  for (size_t i = 1; i < listed.size(); i += 2) common.push_back(listed[i]);
  return rebuilt_list(example.substr(0, answered), common, longer ? 10 : 3, longer ? 3 : 1) + " " +
         ruler::numbered(common) + "\n" + rebuilt_list(prompt.substr(main), targets, longer ? 30 : 6, longer ? 3 : 1);
}

std::string rebuilt_frequent_words(const std::string& prompt, const Texts& targets) {
  const Texts words = split(between(prompt, "coded words. ", "\nQuestion"), " ");
  std::map<std::string, int64_t> counts;
  for (const std::string& word : words) ++counts[word];
  // floor(n k^-2 / zeta(2)) for k = 1, 2, ..: some n fits all counts.
  std::vector<int64_t> sorted;
  for (const auto& [word, count] : counts) sorted.push_back(count);
  std::sort(sorted.rbegin(), sorted.rend());
  double low = 0, high = 1e9;
  for (size_t k = 1; k <= sorted.size(); ++k) {
    const double one = 1.6449340668482264 * static_cast<double>(k * k);
    low = std::max(low, one * static_cast<double>(sorted[k - 1]));
    high = std::min(high, one * static_cast<double>(sorted[k - 1] + 1));
  }
  EXPECT_LT(low, high);
  EXPECT_EQ(counts["..."], sorted[0]);
  EXPECT_EQ(targets.size(), 3u);
  for (size_t i = 0; i < targets.size(); ++i) EXPECT_EQ(counts[targets[i]], sorted[i + 1]);
  return ruler::frequent_words_prompt(ruler::joined(words, " "));
}

std::string rebuilt(const std::string& task, const std::string& prompt, const Texts& targets, const std::string& essay,
                    bool longer) {
  if (task == "vt") return rebuilt_variables(prompt, targets);
  if (task == "cwe") return rebuilt_common_words(prompt, targets, longer);
  if (task == "fwe") return rebuilt_frequent_words(prompt, targets);
  return rebuilt_needles(task, prompt, targets, essay);
}

std::string file_text(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(Ruler, RecordedPromptsAreRebuilt) {
  const std::filesystem::path data(ATTEND_TEST_DATA);
  const std::string essay = file_text(data.parent_path().parent_path() / "LICENSE");
  std::ifstream in(data / "ruler.jsonl");
  std::set<std::string> seen;
  for (std::string line; std::getline(in, line);) {
    const auto sample = nlohmann::json::parse(line);
    const std::string task = sample["task"], prompt = sample["input"];
    SCOPED_TRACE(task);
    seen.insert(task);
    EXPECT_EQ(rebuilt(task, prompt, sample["outputs"], essay, sample["max_seq_length"] >= 4096), prompt);
  }
  EXPECT_EQ(seen.size(), tasks().size());
}

class Tasks : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    const test::SmallModel::File file = test::SmallModel{}.file();
    Context context(1);
    model_ = new std::shared_ptr(LanguageModel::load(file.path, ComputeMode::kDefault, context));
  }
  static void TearDownTestSuite() { delete model_; }

  static const Tokenizer& tokenizer() { return (*model_)->tokenizer(); }
  TaskSample draw(std::string_view name, int64_t length, double depth = -1, uint64_t seed = 7) const {
    return draw_task(*find_tasks(name)[0], {.length = length, .depth = depth, .seed = seed, .essay = essay_},
                     tokenizer());
  }

  static std::shared_ptr<const LanguageModel>* model_;
  const std::string essay_ = file_text(std::filesystem::path(ATTEND_TEST_DATA) / "../../LICENSE");
};

std::shared_ptr<const LanguageModel>* Tasks::model_ = nullptr;

// The vocabulary is one of bytes, so that a length of 6000 is about one of 1500 words' tokens.
TEST_F(Tasks, SamplesHaveRulersFormAndLength) {
  for (const Task& task : tasks())
    for (const int64_t length : {3900, 9000})
      for (uint64_t seed = 1; seed <= 4; ++seed) {
        SCOPED_TRACE(std::string(task.name) + " " + std::to_string(length) + " seed " + std::to_string(seed));
        const TaskSample sample = draw(task.name, length, -1, seed);
        EXPECT_EQ(rebuilt(std::string(task.name), sample.prompt, sample.targets, essay_, length >= 4096),
                  sample.prompt);
        EXPECT_EQ(sample.tokens, static_cast<int64_t>(tokenizer().encode(sample.prompt).size()));
        EXPECT_LE(sample.tokens, length - task.answer);
        EXPECT_GT(sample.tokens, length - task.answer - 260);  // no room for one more line, or word with its repeats
        EXPECT_EQ(string_match(sample.answer, sample.targets), 1);
        const std::string question = sample.prompt.substr(sample.question);
        EXPECT_TRUE(question.starts_with(task.kind == TaskKind::kNeedle ? "\nWhat " : "\nQuestion: ")) << question;
        EXPECT_EQ(string_match(question, sample.targets), 0);
        EXPECT_TRUE(sample.answer.starts_with(" "));
      }
}

TEST_F(Tasks, SeedsGiveOneSampleEach) {
  for (const Task& task : tasks()) {
    EXPECT_EQ(draw(task.name, 4000).prompt, draw(task.name, 4000).prompt);
    EXPECT_NE(draw(task.name, 4000).targets, draw(task.name, 4000, -1, 8).targets);
  }
  // Pinned, so that a table made elsewhere can be made again.
  EXPECT_EQ(draw("niah_single_1", 1000).targets[0], "7364878");
  EXPECT_EQ(draw("niah_single_3", 2000).targets[0], "1e0edcc1-2069-47ce-a454-6c04d9ff7cf6");
}

// Lines or sentences that end in a text.
double units(const std::string& text, bool lines) {
  const std::regex end(lines ? "\n" : "[.!?]( |$)");
  return static_cast<double>(
      std::distance(std::sregex_iterator(text.begin(), text.end(), end), std::sregex_iterator()));
}

TEST_F(Tasks, DepthsPlaceTheNeedle) {
  for (const Task& task : tasks()) {
    if (!task.at_depth) continue;
    double last = -1;
    for (const double depth : {0.0, 25.0, 50.0, 75.0, 100.0}) {
      const TaskSample sample = draw(task.name, 8000, depth);
      const std::string context = between(sample.prompt, "afterwards.\n", "\nWhat ");
      const bool lines = context.find('\n') != context.npos;
      const size_t needle = context.rfind("One of", context.find(": " + sample.targets[0]));
      const double total = units(context, lines), at = units(context.substr(0, needle), lines) / total;
      EXPECT_NEAR(100 * at, depth, 500 / total) << task.name;  // up to 4 needles, and what rounding leaves
      EXPECT_GT(at, last);
      last = at;
      if (depth == 0) {
        EXPECT_TRUE(context.starts_with(task.essay ? " One of" : "One of")) << task.name;
      }
    }
    EXPECT_EQ(draw(task.name, 4000, 0).targets, draw(task.name, 4000, 100).targets);
  }
}

TEST_F(Tasks, Refuse) {
  expect_error(ErrorKind::kArgument, "must be at least 256", [&] { draw("fwe", 255); });
  expect_error(ErrorKind::kArgument, "cwe needs at least", [&] { draw("cwe", 256); });
  expect_error(ErrorKind::kArgument, "must be 0 to 100", [&] { draw("niah_single_1", 4000, 101); });
  expect_error(ErrorKind::kArgument, "must be 0 to 100", [&] { draw("niah_single_1", 4000, NAN); });
  expect_error(ErrorKind::kArgument, "vt has none", [&] { draw("vt", 4000, 50); });
  expect_error(ErrorKind::kSpec, "niah_single_1", [&] { find_tasks("niah_singel_1"); });
  const Task& essay = *find_tasks("niah_single_2")[0];
  expect_error(ErrorKind::kArgument, "words", [&] { draw_task(essay, {.essay = " \n\t "}, tokenizer()); });
  EXPECT_EQ(find_tasks("ruler").size(), tasks().size());
}

TEST(StringMatch, IsRulersShareOfTargets) {
  const Texts targets = {"Abc", "def"};
  EXPECT_EQ(string_match("x ABC, y", targets), 0.5);
  EXPECT_EQ(string_match("defabc", targets), 1);
  EXPECT_EQ(string_match("", targets), 0);
  EXPECT_EQ(string_match("abc", {}), 0);
}

}  // namespace
}  // namespace attend
