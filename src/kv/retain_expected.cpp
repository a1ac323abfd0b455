// A ranking by the weight that keys are expected to get from queries to come.

#include "attend/simd/dense.h"
#include "attend/simd/key_rows.h"
#include "kv/entries.h"
#include "kv/ranking_entry.h"

namespace attend {
namespace {

struct ExpectedOptions {
  int64_t ahead;
  double epsilon;
  bool covariance;
};

class ExpectedAttention : public Ranking {
 public:
  ExpectedAttention(const RankingOptions& ranking, const ExpectedOptions& expected)
      : Ranking(ranking), expected_(expected) {}

  WantedQueries queries() const override { return {.ahead = expected_.ahead, .skip = options().sinks}; }

  void score(const Held& held, std::span<float> scores) const override {
    const std::span<const ExpectedQuery> group = held.own(held.expected);
    const int64_t keys = held.keys.count(), first = slots_in(held.keys, {0, options().sinks}).end;
    std::fill(scores.begin(), scores.end(), 0.0f);
    if (first == keys) return;
    std::vector<std::vector<float>> logits(group.size(), std::vector<float>(static_cast<size_t>(keys - first)));
    const DenseKernels& kernels = dense_kernels(held.isa);
    std::vector<float> rows(static_cast<size_t>(kPanelKeys * std::max(held.d, held.dv))),
        panel(static_cast<size_t>(kPanelKeys * held.d)), products(panel.size());
    std::vector<float> length(static_cast<size_t>(keys - first));
    for (int64_t j = first; j < keys; j += kPanelKeys) {
      const int64_t count = std::min<int64_t>(kPanelKeys, keys - j);
      read_keys(held.keys, j, count, held.d, held.isa, rows.data());
      kernels.pack(DType::kF32, rows.data(), held.d, count, held.d, panel.data());
      for (size_t g = 0; g < group.size(); ++g)
        add_logits(kernels, group[g], held, panel, products,
                   std::span(logits[g]).subspan(static_cast<size_t>(j - first), static_cast<size_t>(count)));
      read_values(held.keys, j, count, held.dv, held.isa, rows.data());
      for (int64_t r = 0; r < count; ++r) {
        float square = 0;
        for (int64_t c = 0; c < held.dv; ++c)
          square += rows[static_cast<size_t>(r * held.dv + c)] * rows[static_cast<size_t>(r * held.dv + c)];
        length[static_cast<size_t>(j - first + r)] = std::sqrt(square);
      }
    }
    for (std::vector<float>& own : logits) {
      float largest;
      const float sum = kernels.exponentials(own.data(), keys - first, &largest);
      for (size_t j = 0; j < own.size(); ++j)
        scores[static_cast<size_t>(first) + j] += own[j] / (sum * static_cast<float>(group.size()));
    }
    for (size_t j = 0; j < length.size(); ++j) {
      float& score = scores[static_cast<size_t>(first) + j];
      score = (score + static_cast<float>(expected_.epsilon)) * length[j];
    }
  }

 private:
  // The logarithms of expected weights, but for what all keys share, of the keys of a panel.
  void add_logits(const DenseKernels& kernels, const ExpectedQuery& query, const Held& held,
                  const std::vector<float>& panel, std::vector<float>& products, std::span<float> logits) const {
    const size_t d = static_cast<size_t>(held.d);
    kernels.dots(query.mean.data(), held.d, 1, held.d, panel.data(), products.data(), kPanelKeys);
    for (size_t j = 0; j < logits.size(); ++j) logits[j] = held.scale * products[j];
    if (!expected_.covariance) return;
    kernels.dots(query.covariance.data(), held.d, held.d, held.d, panel.data(), products.data(), kPanelKeys);
    std::vector<float> square(kPanelKeys, 0.0f);
    for (size_t c = 0; c < d; ++c)
      for (size_t j = 0; j < kPanelKeys; ++j) square[j] += products[c * kPanelKeys + j] * panel[c * kPanelKeys + j];
    for (size_t j = 0; j < logits.size(); ++j) logits[j] += held.scale * held.scale / 2 * square[j];
  }

  ExpectedOptions expected_;
};

constexpr Option kOptions[] = {
    kv::budget_option(),
    kv::stride_option("256"),
    {"ahead", "tokens", "next positions that queries are expected at", "512", OptionType::kInteger, 1, 65536},
    {"epsilon", "", "added to expected weights before they are multiplied by lengths of values", "0", OptionType::kReal,
     0, 1},
    {"covariance", "", "whether the covariance of queries counts, beside their mean", "true", OptionType::kFlag, 0, 0},
    kv::sinks_option(),
    kv::recent_option("64")};
constexpr Paper kPapers[] = {
    {"Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution", "2510.00636",
     ""}};
constexpr std::string_view kAliases[] = {"ExpectedAttentionPress"};

constexpr Entry kEntry = {
    .kind = Kind::kRetention,
    .name = "expected-attention",
    .room = "kv",
    .equation =
        "score[j] = (epsilon + mean over the heads that read j of e[j] / sum over keys of e) |v[j]|\n"
        "e[j] = exp(scale m.k[j] + scale^2 k[j].(S k[j]) / 2),  m = T mu, S = T Sigma T^t\n"
        "mu and Sigma: mean and covariance of the queries so far, not turned; T the mean of the rotations to the "
        "next `ahead` positions",
    .summary = "Keeps the keys that get most weight from queries like those so far, at the positions that come next.",
    .options = kOptions,
    .in = {},
    .out = {},
    .papers = kPapers,
    .traits = {.exact_for = "texts within the budget", .forms = {}, .patterns = {}, .same_bits = SameBits::kStride},
    .notes =
        "As in the authors' code (kvpress), whose epsilon is 0 (the paper names 0.02); queries and keys of the first "
        "`sinks` tokens count neither in moments nor in the sum over keys. Moments are of all queries since the "
        "text began, keys those that are held. kvpress acts once, on the prompt (stride=0, recent=0). Queries are "
        "turned back from their positions, so that heads that are normed before work, too.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return std::make_unique<ExpectedAttention>(
          kv::ranking_options(spec),
          ExpectedOptions{spec.integer("ahead"), spec.real("epsilon"), spec.flag("covariance")});
    },
    .aliases = kAliases};

}  // namespace

void register_expected_retention(Registry& registry) {
  registry.add(kEntry);
}

}  // namespace attend
