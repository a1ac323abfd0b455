// Gates on kv heads: what comes out against sessions, gradients against difference quotients.
#include "attend/lm/gated_model.h"

#include <cmath>
#include <random>

#include "support/expect_error.h"
#include "support/small_session.h"

namespace attend {
namespace {

using test::all_logits;
using test::expect_error;
using test::load;
using test::open;
using test::SmallModel;
using test::some_ids;

constexpr int64_t kTokens = 70, kWanted = 20;

SmallModel small_model(const char* architecture) {
  SmallModel small;
  small.architecture = architecture;
  if (small.architecture == "gemma3") small.layers = 12;  // the 6th and the 12th are gated
  return small;
}

std::vector<float> logits_of(const LanguageModel& model, const View& hidden, Context& context) {
  const int64_t vocabulary = model.graph().vocabulary, rows = hidden.shape[0];
  std::vector<float> logits(static_cast<size_t>(rows * vocabulary));
  product(model.matrix(model.graph().output_matrix), hidden.as<float>(), hidden.shape[1], logits.data(), vocabulary,
          rows, context);
  return logits;
}

// The last kWanted rows of what a session gives.
std::vector<float> session_logits(const std::shared_ptr<const LanguageModel>& model, const char* policy,
                                  Context& context) {
  Session session = open(model, policy);
  const std::vector<float> all = all_logits(session, some_ids(kTokens), 512, context);
  return {all.end() - kWanted * model->graph().vocabulary, all.end()};
}

double worst_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::fabs(static_cast<double>(a[i]) - b[i]));
  return worst;
}

class Gated : public testing::TestWithParam<const char*> {
 protected:
  size_t gate_count() const {
    return model_->graph().layers.size() * static_cast<size_t>(model_->graph().layers[0].kv_heads);
  }
  double loss(GatedModel& gated, const std::vector<float>& gates, Context& context) {
    const View hidden = gated.forward(some_ids(kTokens), gates, kWanted, context);
    double sum = 0;
    for (int64_t i = 0; i < hidden.count(); ++i) sum += static_cast<double>(hidden.as<float>()[i]) * direction_[i];
    return sum;
  }
  std::vector<double> gradients(GatedModel& gated, const std::vector<float>& gates, Context& context) {
    loss(gated, gates, context);
    std::vector<double> all(gates.size());
    gated.backward(dense_view(direction_.data(), DType::kF32, {kWanted, 32}), all, context);
    return all;
  }
  void SetUp() override {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    direction_.resize(kWanted * 32);
    for (float& x : direction_) x = normal(random);
    std::uniform_real_distribution<float> uniform(0.2f, 0.8f);
    gates_.resize(gate_count());
    for (float& g : gates_) g = uniform(random);
  }

  const std::shared_ptr<const LanguageModel> model_ = load(small_model(GetParam()));
  std::vector<float> direction_, gates_;
};

TEST_P(Gated, RunsAsSessionsDoWhereGatesAreOpenOrShut) {
  Context context(2);
  GatedModel gated(model_, 3, 9);
  const std::vector<float> whole = session_logits(model_, "softmax", context);
  double largest = 0;
  for (float x : whole) largest = std::max(largest, std::fabs(static_cast<double>(x)));
  const std::vector<float> open_gates(gate_count(), 1.0f), shut(gate_count(), 0.0f);
  const std::vector<int32_t> ids = some_ids(kTokens);
  const auto plain = logits_of(*model_, gated.forward(ids, {}, kWanted, context), context);
  EXPECT_LE(worst_difference(plain, whole), 1e-4 * largest);
  EXPECT_EQ(logits_of(*model_, gated.forward(ids, open_gates, kWanted, context), context), plain);
  const auto streaming = session_logits(model_, "softmax:window=9,sinks=3", context);
  EXPECT_LE(worst_difference(logits_of(*model_, gated.forward(ids, shut, kWanted, context), context), streaming),
            1e-4 * largest);
  EXPECT_GT(worst_difference(streaming, whole), 1e-2 * largest);
}

TEST_P(Gated, HasTheGradientsOfDifferenceQuotients) {
  Context context(2);
  GatedModel gated(model_, 3, 9);
  const std::vector<double> got = gradients(gated, gates_, context);
  double largest = 0;
  for (double g : got) largest = std::max(largest, std::fabs(g));
  ASSERT_GT(largest, 0);
  const int64_t kv_heads = model_->graph().layers[0].kv_heads;
  for (size_t i = 0; i < gates_.size(); ++i) {
    if (!gated.gated(static_cast<int>(i / static_cast<size_t>(kv_heads)))) {
      EXPECT_EQ(got[i], 0);
      continue;
    }
    auto quotient = [&](float h) {
      std::vector<float> up = gates_, down = gates_;
      up[i] += h, down[i] -= h;
      const double rise = loss(gated, up, context) - loss(gated, down, context);
      return rise / (static_cast<double>(up[i]) - static_cast<double>(down[i]));
    };
    // Of order h^2: the next term of the series is about a third of how far halving h moves it.
    const double wide = quotient(0.04f), narrow = quotient(0.02f);
    EXPECT_NEAR(got[i], narrow - (wide - narrow) / 3, std::fabs(wide - narrow) / 3 + 1e-3 * largest) << i;
  }
}

TEST_P(Gated, HasTheSameBitsForAnyThreads) {
  Context one(1), three(3);
  GatedModel a(model_, 3, 9), b(model_, 3, 9);
  EXPECT_EQ(gradients(a, gates_, one), gradients(b, gates_, three));
  EXPECT_EQ(gradients(a, gates_, three), gradients(b, gates_, one));
}

TEST_P(Gated, RefusesWhatDoesNotFit) {
  Context context(1);
  expect_error(ErrorKind::kArgument, "recent", [&] { GatedModel(model_, 3, 0); });
  GatedModel gated(model_, 3, 9);
  const std::vector<int32_t> ids = some_ids(8);
  std::vector<double> all(gate_count());
  const View direction = dense_view(direction_.data(), DType::kF32, {2, 32});
  expect_error(ErrorKind::kArgument, "tokens", [&] { gated.forward({}, gates_, 1, context); });
  expect_error(ErrorKind::kArgument, "wanted", [&] { gated.forward(ids, gates_, 9, context); });
  expect_error(ErrorKind::kArgument, "gates", [&] { gated.forward(ids, std::span(gates_).first(1), 1, context); });
  expect_error(ErrorKind::kArgument, "must run with gates first", [&] { gated.backward(direction, all, context); });
  gated.forward(ids, {}, 2, context);
  expect_error(ErrorKind::kArgument, "must run with gates first", [&] { gated.backward(direction, all, context); });
  gated.forward(ids, gates_, 1, context);
  expect_error(ErrorKind::kArgument, "gradient of the result", [&] { gated.backward(direction, all, context); });
}

INSTANTIATE_TEST_SUITE_P(Architectures, Gated, testing::Values("llama", "gemma3"));

}  // namespace
}  // namespace attend
