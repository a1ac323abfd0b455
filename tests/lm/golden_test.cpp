// Both models against recorded runs. What the recordings hold and how they were made stands in their `note`.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "attend/lm/engine.h"
#include "attend/simd/isa.h"
#include "attend/simd/row_ops.h"
#include "support/model_file.h"

namespace attend {
namespace {

using Ids = std::vector<int32_t>;
using nlohmann::json;

struct Case {
  const char *name, *file;
  const char* logprob;   // the recording that the f32 run is held against
  double logprob_bound;  // nats, each token
  double kl_bound;       // nats, mean over all tokens of the prompts
};

const Case kCases[] = {{"gemma3-270m", test::kGemmaFile, "logprob_f64", 0.005, 6e-3},
                       {"smollm2-135m", test::kSmollmFile, "logprob", 0.02, 4e-3}};

class Golden : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    path_ = test::model_file(GetParam().file);
    ASSERT_FALSE(path_.empty());
    std::ifstream in(std::string(ATTEND_TEST_DATA) + "/golden/" + GetParam().name + "/run.json");
    golden_ = json::parse(in);
  }

  std::shared_ptr<const LanguageModel> load(ComputeMode mode) { return LanguageModel::load(path_, mode, context_); }

  static Session session(const std::shared_ptr<const LanguageModel>& model) {
    return Session(model, model_policy("softmax", model->compute(), registry()), registry());
  }

  double log_probability(const View& logits, int64_t row, int32_t id) {
    const float* x = logits.at<float>({row});
    return x[id] - ops_.log_sum_exp(x, logits.shape[1]);
  }

  // logprob[i] = ln p(ids[i + 1] | ids[0..i]).
  std::vector<double> log_probabilities(Session& session, const Ids& ids) {
    std::vector<double> all;
    session.prefill(
        ids, 512, Outputs::kAll,
        [&](int64_t first, const View& logits) {
          for (int64_t r = 0; r < logits.shape[0]; ++r)
            if (const size_t next = static_cast<size_t>(first + r + 1); next < ids.size())
              all.push_back(log_probability(logits, r, ids[next]));
        },
        context_);
    return all;
  }

  std::filesystem::path path_;
  json golden_;
  Context context_;
  const RowOps& ops_ = row_ops(active_isa(context_));
};

TEST_P(Golden, F32MatchesReference) {
  const auto model = load(ComputeMode::kF32);
  for (const auto& [name, prompt] : golden_.at("prompts").items()) {
    SCOPED_TRACE(name);
    Session run = session(model);
    const std::vector<double> got = log_probabilities(run, prompt.at("ids").get<Ids>());
    const auto wanted = prompt.at(GetParam().logprob).get<std::vector<double>>();
    ASSERT_EQ(got.size(), wanted.size());
    double worst = 0;
    for (size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::fabs(got[i] - wanted[i]));
    EXPECT_LE(worst, GetParam().logprob_bound);
    RecordProperty(name, fmt::format("{:.2g}", worst));
    fmt::print("{} {}: largest difference {:.2g}\n", GetParam().name, name, worst);
  }
}

TEST_P(Golden, F32ChoosesRecordedTokens) {
  const auto model = load(ComputeMode::kF32);
  for (const auto& [name, greedy] : golden_.at("greedy").items()) {
    SCOPED_TRACE(name);
    Session run = session(model);
    const Ids wanted = greedy.at("ids").get<Ids>();
    const auto margin = greedy.at("margin").get<std::vector<double>>();
    std::vector<float> logits;
    run.prefill(
        golden_.at("prompts").at(name).at("ids").get<Ids>(), 512, Outputs::kLast,
        [&](int64_t, const View& row) { logits.assign(row.as<float>(), row.as<float>() + row.shape[1]); }, context_);
    for (size_t i = 0; i < wanted.size(); ++i) {
      const int64_t best = ops_.largest(logits.data(), static_cast<int64_t>(logits.size()));
      if (margin[i] > 0.1) {
        EXPECT_EQ(best, wanted[i]) << "token " << i << ", margin " << margin[i];
      }
      const std::span<const float> next = run.decode(wanted[i], context_);
      logits.assign(next.begin(), next.end());
    }
  }
}

TEST_P(Golden, DefaultModeStaysNearF32) {
  const auto exact_model = load(ComputeMode::kF32), model = load(ComputeMode::kDefault);
  const int64_t vocabulary = model->graph().vocabulary;
  double sum = 0;
  int64_t tokens = 0;
  for (const auto& [name, prompt] : golden_.at("prompts").items()) {
    Session exact = session(exact_model), run = session(model);
    const Ids ids = prompt.at("ids").get<Ids>();
    std::vector<float> held;
    for (size_t begin = 0; begin < ids.size(); begin += kOutputRows) {
      const auto step = std::span(ids).subspan(begin, std::min<size_t>(kOutputRows, ids.size() - begin));
      exact.prefill(
          step, kOutputRows, Outputs::kAll,
          [&](int64_t, const View& rows) { held.assign(rows.as<float>(), rows.as<float>() + rows.count()); }, context_);
      run.prefill(
          step, kOutputRows, Outputs::kAll,
          [&](int64_t, const View& rows) {
            for (int64_t r = 0; r < rows.shape[0]; ++r) {
              const float *p = held.data() + r * vocabulary, *q = rows.at<float>({r});
              sum +=
                  ops_.divergence(p, ops_.log_sum_exp(p, vocabulary), q, ops_.log_sum_exp(q, vocabulary), vocabulary);
              ++tokens;
            }
          },
          context_);
    }
  }
  const double mean = sum / static_cast<double>(tokens);
  EXPECT_LE(mean, GetParam().kl_bound);
  RecordProperty("mean_kl", fmt::format("{:.3g}", mean));
  fmt::print("{}: mean KL {:.3g}\n", GetParam().name, mean);
}

TEST_P(Golden, DefaultModeScoresTextAsRecorded) {
  const auto model = load(ComputeMode::kDefault);
  Ids ids = golden_.at("text").at("ids").get<Ids>();
  ids.insert(ids.begin(), model->tokenizer().bos());
  Session run = session(model);
  const std::vector<double> got = log_probabilities(run, ids);
  double nll = 0;
  for (double x : got) nll -= x / static_cast<double>(got.size());
  EXPECT_NEAR(nll, golden_.at("text").at("nll").at("4000").get<double>(), 0.01);
  RecordProperty("nll", fmt::format("{:.4f}", nll));
  fmt::print("{}: NLL {:.4f} recorded {:.4f}\n", GetParam().name, nll,
             golden_.at("text").at("nll").at("4000").get<double>());
}

std::string case_name(const testing::TestParamInfo<Case>& one) {
  std::string name = one.param.name;
  std::erase_if(name, [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); });
  return name;
}

INSTANTIATE_TEST_SUITE_P(Models, Golden, testing::ValuesIn(kCases), case_name);

}  // namespace
}  // namespace attend
