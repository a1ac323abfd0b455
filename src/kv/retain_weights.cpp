// Rankings by the weights that queries gave to keys since they came.
#include "kv/entries.h"
#include "kv/ranking_entry.h"

namespace attend {
namespace {

// Heavy hitters: everything that a key ever got.
struct H2o : Ranking {
  using Ranking::Ranking;
  int64_t pays_from() const override { return kv::paying_keys(options()); }
  int64_t observes() const override { return kEveryQuery; }
  void score(const Held& held, std::span<float> scores) const override { kv::mean_over_group(held, scores); }
};

struct Tova : Ranking {
  using Ranking::Ranking;
  int64_t pays_from() const override { return kv::paying_keys(options()); }
  int64_t observes() const override { return 1; }
  void score(const Held& held, std::span<float> scores) const override {
    std::fill(scores.begin(), scores.end(), 0.0f);
    for (const std::vector<float>& head : held.weights)
      for (size_t j = 0; j < std::min(scores.size(), head.size()); ++j) scores[j] += head[j];
  }
};

constexpr Option kH2oOptions[] = {kv::budget_option(),
                                  kv::stride_option("256"),
                                  kv::sinks_option("0"),
                                  {"recent", "tokens", "newest tokens that always stay; 0: half of the budget", "0",
                                   OptionType::kInteger, 0, kv::kMostTokens}};
constexpr Option kTovaOptions[] = {kv::budget_option(), kv::stride_option("256"), kv::sinks_option("0"),
                                   kv::recent_option("1")};
constexpr Paper kH2oPapers[] = {
    {"H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models", "2306.14048", ""}};
constexpr Paper kTovaPapers[] = {{"Transformers are Multi-State RNNs", "2401.06104", ""}};
constexpr std::string_view kH2oAliases[] = {"ObservedAttentionPress"};
constexpr std::string_view kTovaAliases[] = {"TOVAPress"};

constexpr Entry kEntries[] = {
    {.kind = Kind::kRetention,
     .name = "h2o",
     .room = "kv",
     .equation = "score[j] = sum over all queries i since j came of w[i,j], the mean over the heads that read j",
     .summary = "Keeps heavy hitters, the keys that got most weight so far, beside the newest.",
     .options = kH2oOptions,
     .in = {},
     .out = {},
     .papers = kH2oPapers,
     .traits = {.exact_for = "texts within the budget", .forms = {}, .patterns = {}, .same_bits = SameBits::kStride},
     .notes = "The paper acts after each token (stride=1) and renumbers what it keeps; here kept keys keep their "
              "positions.",
     .make = [](const Spec& spec) -> std::unique_ptr<Component> {
       RankingOptions options = kv::ranking_options(spec);
       if (options.recent == 0) options.recent = options.budget / 2;
       return std::make_unique<H2o>(options);
     },
     .aliases = kH2oAliases},
    {.kind = Kind::kRetention,
     .name = "tova",
     .room = "kv",
     .equation = "score[j] = sum over all heads of the layer of w[i,j], i the newest query",
     .summary = "Drops the keys that the newest token looks at least; one choice for all heads of a layer.",
     .options = kTovaOptions,
     .in = {},
     .out = {},
     .papers = kTovaPapers,
     .traits = {.exact_for = "texts within the budget", .forms = {}, .patterns = {}, .same_bits = SameBits::kStride},
     .notes = "The paper acts after each token (stride=1).",
     .make = [](const Spec& spec) -> std::unique_ptr<Component> {
       return std::make_unique<Tova>(kv::ranking_options(spec));
     },
     .aliases = kTovaAliases},
};

}  // namespace

void register_weight_retentions(Registry& registry) {
  for (const Entry& entry : kEntries) registry.add(entry);
}

}  // namespace attend
