#include "attend/study/fit_fastgen.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "attend/exact/weight_statistics.h"
#include "attend/lm/token_class.h"
#include "attend/tensor/error.h"

namespace attend {
namespace {

constexpr int kLevels = 4;  // below that of a whole context
constexpr float kHidden = -std::numeric_limits<float>::infinity();

// Log-sum-exps of the scores that a level leaves, against those of all: what every query head recovers.
class Profile {
 public:
  Profile(const Qkv& in, const SoftmaxOptions& attention, std::span<const TokenClass> classes,
          const FastGenOptions& options, Context& context)
      : in_(in),
        attention_(attention),
        options_(options),
        context_(context),
        heads_(in.q.shape[1]),
        kv_heads_(in.k.shape[1]),
        tokens_(in.q.shape[2]),
        hidden_(static_cast<size_t>(heads_ * tokens_), kHidden),
        whole_(hidden_.size()),
        part_(hidden_.size()) {
    softmax_attention(in, attention, {.lse = view(whole_)}, context);
    for (int64_t j = 0; j < tokens_; ++j)
      if (classes[static_cast<size_t>(j)] == TokenClass::kSpecial) show(j);
    recover(0);
    for (int64_t j = 0; j < tokens_; ++j)
      if (classes[static_cast<size_t>(j)] == TokenClass::kPunctuation) show(j);
    recover(0);
    show_frequent();
    recover(0);
    recover(share(options.local));
  }

  int level(int64_t kv_head) const {
    const int64_t group = heads_ / kv_heads_;
    for (int l = 0; l < kLevels; ++l) {
      double mean = 0;
      for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h)
        mean += recovered_[static_cast<size_t>(l)][static_cast<size_t>(h)] / static_cast<double>(group);
      if (mean >= options_.recovery) return l;
    }
    return kLevels;
  }

 private:
  View view(std::vector<float>& lse) const { return dense_view(lse.data(), DType::kF32, {1, heads_, tokens_}); }
  int64_t share(double of) const { return std::llround(of * static_cast<double>(tokens_)); }

  void show(int64_t key) {
    for (int64_t h = 0; h < heads_; ++h) hidden_[static_cast<size_t>(h * tokens_ + key)] = 0;
  }

  void show_frequent() {
    std::vector<float> sums(hidden_.size(), 0.0f);
    std::vector<KeyStatistics> places;
    for (int64_t h = 0; h < heads_; ++h) places.push_back({.sum = sums.data() + h * tokens_});
    add_weights(in_, attention_, view(whole_), {places}, context_);
    const int64_t group = heads_ / kv_heads_;
    std::vector<int64_t> best;
    std::vector<float> scores(static_cast<size_t>(tokens_));
    for (int64_t kv = 0; kv < kv_heads_; ++kv) {
      std::fill(scores.begin(), scores.end(), 0.0f);
      for (int64_t h = kv * group; h < (kv + 1) * group; ++h)
        for (int64_t j = 0; j < tokens_; ++j)
          scores[static_cast<size_t>(j)] += sums[static_cast<size_t>(h * tokens_ + j)] / static_cast<float>(group);
      keep_best(scores, share(options_.frequent), best);
      for (int64_t h = kv * group; h < (kv + 1) * group; ++h)
        for (int64_t j : best) hidden_[static_cast<size_t>(h * tokens_ + j)] = 0;
    }
  }

  // What is shown, and the last `window` tokens of every query.
  void recover(int64_t window) {
    const float* hidden = hidden_.data();
    const int64_t tokens = tokens_;
    const int32_t near = static_cast<int32_t>(window);
    auto keep = [=](float s, int, int head, int32_t i, int32_t j) {
      const float out = hidden[head * tokens + j];
      return i - j < near ? s : s + out;
    };
    const Hook hook = make_hook(keep);
    softmax_attention(in_, attention_, {.lse = view(part_)}, context_, {.score = &hook});
    std::vector<double>& mean = recovered_.emplace_back(static_cast<size_t>(heads_), 0.0);
    for (int64_t h = 0; h < heads_; ++h)
      for (int64_t i = 0; i < tokens_; ++i) {
        const size_t at = static_cast<size_t>(h * tokens_ + i);
        mean[static_cast<size_t>(h)] +=
            std::exp(static_cast<double>(part_[at]) - whole_[at]) / static_cast<double>(tokens_);
      }
  }

  const Qkv& in_;
  const SoftmaxOptions& attention_;
  const FastGenOptions& options_;
  Context& context_;
  int64_t heads_, kv_heads_, tokens_;
  std::vector<float> hidden_;  // [heads, tokens] of keys: 0 or -inf
  std::vector<float> whole_, part_;
  std::vector<std::vector<double>> recovered_;  // of each level and query head
};

}  // namespace

HeadGates fit_fastgen(const std::shared_ptr<const LanguageModel>& model, std::span<const int32_t> ids,
                      const FastGenOptions& options, Context& context) {
  for (const auto& [name, value] :
       {std::pair{"recovery", options.recovery}, {"local", options.local}, {"frequent", options.frequent}})
    if (!(value >= 0 && value <= 1))
      throw Error(ErrorKind::kArgument, "fit fastgen", name, fmt::format("{}", value), "must lie in 0..1");
  const Graph& graph = model->graph();
  const int layers = static_cast<int>(graph.layers.size()), kv_heads = graph.layers.front().kv_heads;
  GatedModel run(model, 0, 1);
  HeadGates result{.model = graph.name, .layers = layers, .kv_heads = kv_heads, .gates = {}, .made_by = {}};
  result.gates.assign(static_cast<size_t>(layers * kv_heads), HeadGates::kNone);
  std::vector<TokenClass> classes;
  for (int32_t id : ids)
    classes.push_back(id >= 0 && id < graph.vocabulary ? class_of(id, model->tokenizer()) : TokenClass::kOther);
  run.observe(
      ids,
      [&](int layer, const Qkv& in, const SoftmaxOptions& attention) {
        if (context.progress) context.progress->update("profiling", layer, layers);
        if (!run.gated(layer)) return;
        const Profile profile(in, attention, classes, options, context);
        for (int h = 0; h < kv_heads; ++h)
          result.gates[static_cast<size_t>(layer * kv_heads + h)] = profile.level(h) / static_cast<double>(kLevels);
      },
      context);
  return result;
}

}  // namespace attend
