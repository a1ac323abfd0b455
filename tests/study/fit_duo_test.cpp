// Fits of gates: texts, the optimiser's steps, and that heads which matter keep their gates.
#include "attend/study/fit_duo.h"

#include <cmath>

#include "support/expect_error.h"
#include "support/small_session.h"

namespace attend {
namespace {

using test::expect_error;
using test::load;
using test::SmallModel;

constexpr std::string_view kBook = "It was a dark night. The rain fell on the roofs of the town, and nobody was out. ";

SmallModel small_model() {
  SmallModel small;
  small.context = 2000;
  return small;
}

PasskeyOptions few() {
  return {.passkeys = 2, .words = 3};
}

std::string decoded(const Tokenizer& tokenizer, std::span<const int32_t> ids) {
  return tokenizer.decode(ids, true);
}

TEST(Passkeys, AreHiddenAndAskedFor) {
  const auto model = load(small_model());
  const PasskeyTexts texts(model->tokenizer(), kBook, few());
  for (int64_t length : {texts.shortest(), int64_t{1500}}) {
    const PasskeyText text = texts.draw(length, 5);
    EXPECT_EQ(static_cast<int64_t>(text.ids.size()), length);
    const std::span<const int32_t> ids(text.ids);
    const std::string book = decoded(model->tokenizer(), ids.first(ids.size() - static_cast<size_t>(text.asked))),
                      asked = decoded(model->tokenizer(), ids.last(static_cast<size_t>(text.asked)));
    for (const char* ordinal : {"first", "second"}) {
      const std::string hidden = std::string("the ") + ordinal + " passkey of the vault:";
      ASSERT_NE(book.find(hidden), std::string::npos) << book;
      const size_t from = book.find(hidden) + hidden.size();
      const std::string words = book.substr(from, book.find('\n', from) - from);
      EXPECT_EQ(std::count(words.begin(), words.end(), ' '), 3);
      EXPECT_NE(asked.find(std::string("the ") + ordinal + " passkey of the vault?\nPasskey:" + words + "\n"),
                std::string::npos)
          << asked;
    }
    EXPECT_EQ(texts.draw(length, 5).ids, text.ids);
    EXPECT_NE(texts.draw(length, 6).ids, text.ids);
  }
}

TEST(Passkeys, RefuseWhatDoesNotFit) {
  const auto model = load(small_model());
  expect_error(ErrorKind::kArgument, "passkeys", [&] { PasskeyTexts(model->tokenizer(), kBook, {.passkeys = 21}); });
  expect_error(ErrorKind::kArgument, "words", [&] { PasskeyTexts(model->tokenizer(), kBook, {.words = 0}); });
  expect_error(ErrorKind::kArgument, "depths", [&] { PasskeyTexts(model->tokenizer(), kBook, {.deepest = 1.5}); });
  expect_error(ErrorKind::kArgument, "haystack", [&] { PasskeyTexts(model->tokenizer(), "", few()); });
  const PasskeyTexts texts(model->tokenizer(), kBook, few());
  expect_error(ErrorKind::kArgument, "length", [&] { texts.draw(texts.shortest() - 1, 1); });
}

TEST(GateOptimizer, MovesAsAdamDoes) {
  GateOptimizer optimizer(1, 50, 0.02);
  EXPECT_DOUBLE_EQ(optimizer.rate(0), 0.02 * 0.1);
  EXPECT_DOUBLE_EQ(optimizer.rate(4), 0.02 * 0.5);
  EXPECT_DOUBLE_EQ(optimizer.rate(20), 0.02);
  EXPECT_DOUBLE_EQ(optimizer.rate(45), 0.02 * 0.5);
  EXPECT_DOUBLE_EQ(optimizer.rate(49), 0.02 * 0.1);
  // Steps of a constant gradient are the rate, whatever its size.
  std::vector<float> gate = {1};
  double wanted = 1;
  for (int64_t step = 0; step < 50; ++step) {
    wanted -= optimizer.rate(step);
    optimizer.move(gate, std::vector<double>{3e-3});
    ASSERT_NEAR(gate[0], std::max(0.0, wanted), 1e-4) << step;
  }
  optimizer.move(gate, std::vector<double>{-1e3});
  EXPECT_LE(gate[0], 1);
}

TEST(FitDuo, GivesTheSameGatesForAnyThreads) {
  const auto model = load(small_model());
  const PasskeyTexts texts(model->tokenizer(), kBook, few());
  DuoFitOptions options{.sinks = 4,
                        .recent = 16,
                        .steps = 3,
                        .min_length = texts.shortest(),
                        .max_length = texts.shortest() + 20,
                        .passkeys = few()};
  std::vector<std::vector<double>> all;
  std::vector<double> distances;
  for (int threads : {1, 3}) {
    Context context(threads);
    const HeadGates gates =
        fit_duo(model, kBook, options, context, [&](const DuoFitStep& step) { distances.push_back(step.distance); });
    EXPECT_EQ(gates.model, model->graph().name);
    EXPECT_EQ(gates.layers, 2);
    EXPECT_EQ(gates.kv_heads, 2);
    all.push_back(gates.gates);
  }
  EXPECT_EQ(all[0], all[1]);
  ASSERT_EQ(distances.size(), 6u);
  EXPECT_EQ(distances[0], 0) << "all gates are open at first";
  EXPECT_GT(distances[2], 0);
}

// Without a penalty nothing pulls gates away from 1, where the distance is 0; with a large one all of them shut.
TEST(FitDuo, WeighsDistanceAgainstGates) {
  const auto model = load(small_model());
  const PasskeyTexts texts(model->tokenizer(), kBook, few());
  DuoFitOptions options{.sinks = 4,
                        .recent = 16,
                        .steps = 12,
                        .rate = 0.3,
                        .penalty = 0,
                        .min_length = texts.shortest(),
                        .max_length = texts.shortest(),
                        .passkeys = few()};
  Context context(2);
  EXPECT_EQ(fit_duo(model, kBook, options, context).gates, (std::vector<double>(4, 1)));
  options.penalty = 1e6;
  EXPECT_EQ(fit_duo(model, kBook, options, context).gates, (std::vector<double>(4, 0)));
}

TEST(FitDuo, LeavesLocalLayersOut) {
  SmallModel small = small_model();
  small.architecture = "gemma3";
  small.layers = 6;
  const auto model = load(small);
  const PasskeyTexts texts(model->tokenizer(), kBook, few());
  DuoFitOptions options{.steps = 1, .min_length = texts.shortest(), .max_length = texts.shortest(), .passkeys = few()};
  Context context(2);
  const HeadGates gates = fit_duo(model, kBook, options, context);
  for (int layer = 0; layer < 6; ++layer) EXPECT_EQ(gates.gate(layer, 0) == HeadGates::kNone, layer != 5) << layer;
  small.layers = 5;
  const auto local = load(small);
  expect_error(ErrorKind::kUnsupported, "whole context", [&] { fit_duo(local, kBook, options, context); });
}

TEST(FitDuo, RefusesWhatDoesNotFit) {
  const auto model = load(small_model());
  Context context(1);
  auto refused = [&](const char* what, auto change) {
    DuoFitOptions options{.max_length = 2000, .passkeys = few()};
    change(options);
    expect_error(ErrorKind::kArgument, what, [&] { fit_duo(model, kBook, options, context); });
  };
  refused("steps", [](DuoFitOptions& o) { o.steps = 0; });
  refused("rate", [](DuoFitOptions& o) { o.rate = 0; });
  refused("penalty", [](DuoFitOptions& o) { o.penalty = -1; });
  refused("shortest text", [](DuoFitOptions& o) { o.min_length = 10; });
  refused("longest text", [](DuoFitOptions& o) { o.max_length = 2001; });
  refused("longest text", [](DuoFitOptions& o) { o.max_length = 999; });
  refused("recent", [](DuoFitOptions& o) { o.recent = 0; });
}

}  // namespace
}  // namespace attend
