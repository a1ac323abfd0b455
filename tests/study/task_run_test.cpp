// Tasks under policies on a small model, against the same numbers taken from a forced text and from generation.
#include "attend/study/task_run.h"

#include <gtest/gtest.h>

#include <cmath>

#include "attend/study/compare.h"
#include "support/expect_error.h"
#include "support/model_file.h"
#include "support/small_model.h"

namespace attend {
namespace {

using test::expect_error;

class TaskRun : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    test::SmallModel small;
    small.context = 2000;
    const test::SmallModel::File file = small.file();
    Context context(2);
    model_ = new std::shared_ptr(LanguageModel::load(file.path, ComputeMode::kDefault, context));
  }
  static void TearDownTestSuite() { delete model_; }

  static Policy policy(std::string_view text) { return model_policy(text, ComputeMode::kDefault, registry()); }
  TaskComparison run(const std::vector<const char*>& texts, const TaskRunOptions& options) {
    std::vector<Readings> policies;
    for (const char* text : texts) policies.push_back({policy(text)});
    return run_tasks(*model_, policies, registry(), options, context_);
  }

  static std::shared_ptr<const LanguageModel>* model_;
  Context context_{2};
};

std::shared_ptr<const LanguageModel>* TaskRun::model_ = nullptr;

TEST_F(TaskRun, EqualsForcedTextAndGeneration) {
  const char* window = "softmax:window=60,sinks=4";
  const Task& task = *find_tasks("niah_single_1")[0];
  const int64_t samples = 2;
  const TaskComparison result =
      run({"softmax", window},
          {.tasks = {&task}, .lengths = {1000}, .depths = {50}, .samples = samples, .seed = 3, .generate = true});
  ASSERT_EQ(result.rows.size(), 2u);
  ASSERT_EQ(result.cells.size(), 1u);
  EXPECT_EQ(result.samples, samples);

  const Tokenizer& tokenizer = (*model_)->tokenizer();
  const std::vector<Readings> policies = {{policy("softmax")}, {policy(window)}};
  std::vector<double> nll(2), match(2), read(2);
  int64_t prompt_tokens = 0;
  for (int64_t number = 0; number < samples; ++number) {
    const TaskSample sample =
        draw_task(task, {.length = 1000, .depth = 50, .seed = task_seed(3, 1000, number)}, tokenizer);
    const std::vector<int32_t> ids = tokenizer.encode(sample.prompt + sample.answer);  // a byte a token, or nearly
    const int64_t prompt = static_cast<int64_t>(tokenizer.encode(sample.prompt).size());
    prompt_tokens += prompt;
    const Comparison forced =
        compare_policies(*model_, ids, std::span<const Readings>(policies), registry(), {.prompt = prompt}, context_);
    for (size_t p = 0; p < 2; ++p) {
      nll[p] += forced.rows[p].nll / samples;
      read[p] += forced.rows[p].bytes_read / samples;
      Ensemble session(*model_, policies[p], registry());
      session.prefill(std::span(ids).first(static_cast<size_t>(prompt)), 100, Outputs::kLast, nullptr, context_);
      std::vector<int32_t> said;
      for (std::span<const float> row = session.last_logits(); said.size() < 128;) {
        said.push_back(static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin()));
        if (tokenizer.is_end(said.back())) break;
        row = session.decode(said.back(), context_);
      }
      match[p] += string_match(tokenizer.decode(said, false), sample.targets) / samples;
    }
  }
  EXPECT_EQ(result.prompt_tokens, prompt_tokens);
  EXPECT_EQ(result.answer_tokens, samples * 8);  // " 1234567"
  for (size_t p = 0; p < 2; ++p) {
    const TaskRow& row = result.rows[p];
    EXPECT_NEAR(row.all.nll, nll[p], 1e-5);
    EXPECT_EQ(row.all.nll, row.cells[0].nll);
    EXPECT_EQ(row.all.match, match[p]);
    EXPECT_EQ(row.bytes_read, read[p]);
    EXPECT_GT(row.peak_bytes, row.kv_bytes - 1);
    EXPECT_GT(row.decode_tps, 0);
  }
  EXPECT_LT(result.rows[1].kv_bytes, result.rows[0].kv_bytes);
  EXPECT_NE(result.rows[0].all.nll, result.rows[1].all.nll);
}

// A question that comes late is decoded: the prompt ends, and keys are dropped, before it.
TEST_F(TaskRun, LateQuestionsAreDecoded) {
  const Task& task = *find_tasks("niah_single_1")[0];
  TaskRunOptions options{.tasks = {&task}, .lengths = {1000}, .kept = true};
  const TaskComparison early = run({"softmax", "snapkv:budget=40,observe=8"}, options);
  options.late_question = true;
  options.generate = true;
  const TaskComparison late = run({"softmax", "snapkv:budget=40,observe=8"}, options);
  const TaskSample sample = draw_task(task, {.length = 1000, .seed = task_seed(0, 1000, 0)}, (*model_)->tokenizer());
  const int64_t read =
      static_cast<int64_t>((*model_)->tokenizer().encode(sample.prompt.substr(0, sample.question)).size());
  EXPECT_EQ(late.rows[0].kept.tokens, read);
  EXPECT_EQ(late.prompt_tokens, early.prompt_tokens);
  EXPECT_EQ(early.rows[0].all.nll, late.rows[0].all.nll) << "decoding changes no bit of exact attention";
  EXPECT_NE(early.rows[1].all.nll, late.rows[1].all.nll);
  for (const std::vector<int32_t>& head : late.rows[1].kept.positions) EXPECT_EQ(head.size(), 40u);
  // Question and answer join the 40 keys: 2 layers, 2 kv heads, (8 + 8) values of 2 bytes.
  const double steps = static_cast<double>(early.prompt_tokens - read + 7);
  EXPECT_EQ(late.rows[1].bytes_read, 4 * 32 * (40 + (steps + 1) / 2));
}

TEST_F(TaskRun, CellsAreTasksLengthsAndTheDepthsThatATaskHas) {
  struct Seen : Progress {
    void update(std::string_view, int64_t done, int64_t total) override {
      EXPECT_GT(done, last);
      EXPECT_LE(done, total);
      last = done;
    }
    int64_t last = 0;
  } seen;
  context_.progress = &seen;
  TaskRunOptions options{.tasks = {find_tasks("niah_multikey_2")[0], find_tasks("fwe")[0]}, .lengths = {1500, 1200}};
  options.depths = {0, 100};
  options.samples = 2;
  options.kept = true;
  const TaskComparison result = run({"softmax"}, options);
  EXPECT_EQ(context_.progress, &seen);
  ASSERT_EQ(result.cells.size(), 6u);
  ASSERT_EQ(result.rows[0].cells.size(), 6u);
  EXPECT_EQ(result.cells[3].length, 1200);
  EXPECT_EQ(result.cells[3].depth, 100);
  EXPECT_LT(result.cells[4].depth, 0);
  EXPECT_EQ(result.samples, 12);
  double nll = 0;
  for (const TaskScore& score : result.rows[0].cells) nll += score.nll / 6;
  EXPECT_NEAR(result.rows[0].all.nll, nll, 1e-12);
  EXPECT_TRUE(std::isnan(result.rows[0].all.match));
  EXPECT_GT(seen.last, 0);
  EXPECT_EQ(result.example.cell, 2u);  // 1200 tokens, depth 0
  EXPECT_EQ(result.example.targets.size(), 1u);
  EXPECT_EQ(result.rows[0].kept.tokens, static_cast<int64_t>(result.example.prompt.size()));
  EXPECT_EQ(result.rows[0].kept.positions[3].size(), result.example.prompt.size());
  context_.progress = nullptr;
}

// A trained model finds a needle. Seven of eight keys dropped, a window has only what is in it: one needle of two.
TEST(TaskRunGolden, SmollmFindsNeedlesThatAWindowDrops) {
  const auto path = test::model_file(test::kSmollmFile);
  ASSERT_FALSE(path.empty());
  Context context;
  const auto model = LanguageModel::load(path, ComputeMode::kDefault, context);
  std::vector<Readings> policies;
  for (const char* text : {"softmax", "softmax:window=124,sinks=4"})
    policies.push_back(model_readings(text, ComputeMode::kDefault, registry()));
  const TaskComparison result = run_tasks(
      model, policies, registry(),
      {.tasks = {find_tasks("niah_single_1")[0]}, .lengths = {768}, .depths = {20, 100}, .generate = true}, context);
  for (const TaskScore& score : result.rows[0].cells) {
    EXPECT_EQ(score.exact, 1);
    EXPECT_EQ(score.match, 1);
    EXPECT_LT(score.nll, 0.4);
  }
  const std::vector<TaskScore>& cut = result.rows[1].cells;
  EXPECT_EQ(cut[0].exact, 0);
  EXPECT_EQ(cut[0].match, 0);
  EXPECT_GT(cut[0].nll, 1.5);  // about ln 10 a digit
  EXPECT_EQ(cut[1].exact, 1);
}

TEST_F(TaskRun, RefusesBeforeItRuns) {
  const TaskRunOptions good{.tasks = {find_tasks("fwe")[0]}, .lengths = {1000}};
  auto refused = [&](std::string_view part, auto change) {
    TaskRunOptions options = good;
    change(options);
    expect_error(ErrorKind::kArgument, part, [&] { run({"softmax"}, options); });
  };
  refused("tasks", [](TaskRunOptions& o) { o.tasks.clear(); });
  refused("lengths", [](TaskRunOptions& o) { o.lengths.clear(); });
  refused("the context holds 2000", [](TaskRunOptions& o) { o.lengths = {1000, 2001}; });
  refused("the context holds 900", [](TaskRunOptions& o) { o.context = 900; });
  refused("samples = 0", [](TaskRunOptions& o) { o.samples = 0; });
  refused("depth", [](TaskRunOptions& o) { o.depths = {-1}; });
  refused("chunk", [](TaskRunOptions& o) { o.chunk = 0; });
  expect_error(ErrorKind::kArgument, "policies", [&] { run({}, good); });
  context_.stop = [] {
    std::stop_source source;
    source.request_stop();
    return source.get_token();
  }();
  expect_error(ErrorKind::kCancelled, "", [&] { run({"softmax"}, good); });
}

}  // namespace
}  // namespace attend
