#include "attend/study/fit_duo.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "attend/tensor/error.h"

namespace attend {
namespace {

constexpr int64_t kMostSteps = 1000000;

void check(const LanguageModel& model, const DuoFitOptions& options, int64_t shortest) {
  auto require = [](bool holds, std::string_view argument, const std::string& got, const std::string& rule) {
    if (!holds) throw Error(ErrorKind::kArgument, "fit duo", argument, got, rule);
  };
  require(options.steps >= 1 && options.steps <= kMostSteps, "steps", std::to_string(options.steps),
          fmt::format("must be 1 to {}", kMostSteps));
  require(options.rate > 0 && options.rate <= 1, "rate", fmt::format("{}", options.rate), "must lie in 0..1");
  require(options.penalty >= 0 && std::isfinite(options.penalty), "penalty", fmt::format("{}", options.penalty),
          "must be at least 0");
  require(options.min_length >= shortest, "shortest text", std::to_string(options.min_length),
          fmt::format("must be at least {} tokens: passkeys and questions take as much", shortest));
  require(options.max_length >= options.min_length && options.max_length <= model.graph().context, "longest text",
          std::to_string(options.max_length),
          fmt::format("must be {} to {} tokens", options.min_length, model.graph().context));
}

}  // namespace

GateOptimizer::GateOptimizer(size_t count, int64_t steps, double rate)
    : steps_(steps), rate_(rate), mean_(count, 0.0), square_(count, 0.0) {}

double GateOptimizer::rate(int64_t step) const {
  const double fifth = static_cast<double>(std::max<int64_t>(1, steps_ / 5));
  const double rise = static_cast<double>(step + 1) / fifth, fall = static_cast<double>(steps_ - step) / fifth;
  return rate_ * std::min({1.0, std::max(rise, 0.1), std::max(fall, 0.1)});
}

void GateOptimizer::move(std::span<float> gates, std::span<const double> gradients) {
  constexpr double kMean = 0.9, kSquare = 0.999, kEpsilon = 1e-8;
  const double now = rate(step_++);
  const double mean_share = 1 - std::pow(kMean, static_cast<double>(step_)),
               square_share = 1 - std::pow(kSquare, static_cast<double>(step_));
  for (size_t i = 0; i < gates.size(); ++i) {
    mean_[i] = kMean * mean_[i] + (1 - kMean) * gradients[i];
    square_[i] = kSquare * square_[i] + (1 - kSquare) * gradients[i] * gradients[i];
    const double moved = static_cast<double>(gates[i]) -
                         now * (mean_[i] / mean_share) / (std::sqrt(square_[i] / square_share) + kEpsilon);
    gates[i] = static_cast<float>(std::clamp(moved, 0.0, 1.0));
  }
}

HeadGates fit_duo(const std::shared_ptr<const LanguageModel>& model, std::string_view haystack,
                  const DuoFitOptions& options, Context& context, const std::function<void(const DuoFitStep&)>& told) {
  const Graph& graph = model->graph();
  const PasskeyTexts texts(model->tokenizer(), haystack, options.passkeys);
  check(*model, options, texts.shortest());
  GatedModel gated(model, options.sinks, options.recent);
  const int layers = static_cast<int>(graph.layers.size()), kv_heads = graph.layers.front().kv_heads;
  // Only gates of gated layers are moved and penalised.
  std::vector<size_t> free;
  for (int i = 0; i < layers * kv_heads; ++i)
    if (gated.gated(i / kv_heads)) free.push_back(static_cast<size_t>(i));
  if (free.empty())
    throw Error(ErrorKind::kUnsupported, "fit duo", "model", graph.name, "has no layer that sees its whole context");

  std::vector<float> gates(static_cast<size_t>(layers * kv_heads), 1.0f), moved(free.size(), 1.0f), truth, slope;
  std::vector<double> all(gates.size()), gradients(free.size());
  GateOptimizer optimizer(free.size(), options.steps, options.rate);
  std::mt19937_64 random(options.seed);
  for (int64_t step = 0; step < options.steps; ++step) {
    if (context.progress) context.progress->update("fitting gates", step, options.steps);
    const uint64_t span = static_cast<uint64_t>(options.max_length - options.min_length + 1);
    const int64_t length = options.min_length + static_cast<int64_t>(random() % span);
    const PasskeyText text = texts.draw(length, random());
    const View whole = gated.forward(text.ids, {}, text.asked, context);
    truth.assign(whole.as<float>(), whole.as<float>() + whole.count());
    const View result = gated.forward(text.ids, gates, text.asked, context);
    slope.resize(truth.size());
    double distance = 0;
    const double each = 1 / static_cast<double>(truth.size());
    for (size_t i = 0; i < truth.size(); ++i) {
      const double difference = static_cast<double>(result.as<float>()[i]) - truth[i];
      distance += difference * difference * each;
      slope[i] = static_cast<float>(2 * difference * each);
    }
    gated.backward(dense_view(slope.data(), DType::kF32, {text.asked, result.shape[1]}), all, context);
    const double pull = options.penalty / static_cast<double>(free.size());
    for (size_t i = 0; i < free.size(); ++i) gradients[i] = all[free[i]] + (moved[i] > 0 ? pull : 0);
    optimizer.move(moved, gradients);
    double mean = 0;
    for (size_t i = 0; i < free.size(); ++i) {
      gates[free[i]] = moved[i];
      mean += static_cast<double>(moved[i]) / static_cast<double>(free.size());
    }
    if (told) told({step + 1, static_cast<int64_t>(text.ids.size()), distance, mean});
  }
  HeadGates result{.model = graph.name, .layers = layers, .kv_heads = kv_heads, .gates = {}, .made_by = {}};
  result.gates.assign(gates.size(), HeadGates::kNone);
  for (size_t i = 0; i < free.size(); ++i) result.gates[free[i]] = static_cast<double>(moved[i]);
  return result;
}

}  // namespace attend
