// Rankings by the votes of an observation window at the prompt's end: SnapKV, and the same for whole chunks.
#include "kv/entries.h"
#include "kv/ranking_entry.h"

namespace attend {
namespace {

struct SnapOptions {
  int64_t observe, kernel;
  bool mean;  // pooled by means instead of maxima
};

// Each score becomes the largest, or the mean, of the `kernel` neighbours around it; beyond the ends there are none
// (means count them as 0, as pooling layers do).
void pool(std::span<float> scores, int64_t kernel, bool mean) {
  const int64_t n = static_cast<int64_t>(scores.size()), half = kernel / 2;
  const std::vector<float> before(scores.begin(), scores.end());
  for (int64_t j = 0; j < n; ++j) {
    const auto begin = before.begin() + std::max<int64_t>(0, j - half),
               end = before.begin() + std::min(n, j + half + 1);
    if (mean) {
      float sum = 0;
      for (auto x = begin; x != end; ++x) sum += *x;
      scores[static_cast<size_t>(j)] = sum / static_cast<float>(kernel);
    } else {
      scores[static_cast<size_t>(j)] = *std::max_element(begin, end);
    }
  }
}

struct SnapKv : Ranking {
  SnapKv(const RankingOptions& ranking, const SnapOptions& snap) : Ranking(ranking), snap_(snap) {}
  int64_t observes() const override { return snap_.observe; }
  int64_t pays_from() const override { return kv::paying_keys(options()); }
  void score(const Held& held, std::span<float> scores) const override {
    kv::mean_over_group(held, scores);
    // The window's own keys stay whatever they got, and do not vote for their neighbours.
    const KeyRange voted = slots_in(held.keys, {0, std::max<int64_t>(0, held.next_position - snap_.observe)});
    pool(scores.first(static_cast<size_t>(voted.end)), snap_.kernel, snap_.mean);
  }

 private:
  SnapOptions snap_;
};

struct ChunkKv : Ranking {
  ChunkKv(const RankingOptions& ranking, int64_t observe, int64_t chunk)
      : Ranking(ranking), observe_(observe), chunk_(chunk) {}
  int64_t observes() const override { return observe_; }
  void score(const Held& held, std::span<float> scores) const override {
    kv::mean_over_group(held, scores);
    const int64_t n = held.keys.count();
    for (int64_t first = 0; first < n;) {
      const int64_t chunk = held.position(first) / chunk_;
      int64_t end = first;
      float sum = 0;
      for (; end < n && held.position(end) / chunk_ == chunk; ++end) sum += scores[static_cast<size_t>(end)];
      std::fill(scores.begin() + first, scores.begin() + end, sum / static_cast<float>(end - first));
      first = end;
    }
  }

 private:
  int64_t observe_, chunk_;
};

constexpr Option kObserve = {
    "observe", "tokens", "newest queries that vote, their own keys always stay", "32", OptionType::kInteger, 1, 65536};
constexpr Option kSnapOptions[] = {
    kv::budget_option(),
    kObserve,
    {"kernel", "tokens", "votes are pooled over so many neighbours, an odd number", "7", OptionType::kInteger, 1, 1023},
    {"pool", "", "how votes are pooled", "max", OptionType::kText, 0, 0, "max|mean"},
    kv::sinks_option("0"),
    kv::stride_option("0")};
constexpr Option kChunkOptions[] = {
    kv::budget_option(),
    kObserve,
    {"chunk", "tokens", "tokens that stay or go together", "10", OptionType::kInteger, 1, 65536},
    kv::sinks_option("0"),
    kv::stride_option("0")};

RankingOptions window_options(const Spec& spec) {
  return {.budget = spec.integer("budget"),
          .stride = spec.integer("stride"),
          .sinks = spec.integer("sinks"),
          .recent = spec.integer("observe")};
}

constexpr Paper kSnapPapers[] = {{"SnapKV: LLM Knows What You are Looking for Before Generation", "2404.14469", "161"}};
constexpr Paper kChunkPapers[] = {
    {"ChunkKV: Semantic-Preserving KV Cache Compression for Efficient Long-Context LLM Inference", "2502.00299", ""}};
constexpr std::string_view kSnapAliases[] = {"SnapKVPress"};
constexpr std::string_view kChunkAliases[] = {"ChunkKVPress"};

constexpr Entry kEntries[] = {
    {.kind = Kind::kRetention,
     .name = "snapkv",
     .room = "kv",
     .equation = "score[j] = pool over the neighbours of j of sum over the last `observe` queries i of w[i,j],\n"
                 "the mean over the heads that read j",
     .summary = "Keeps what the end of the prompt looks at, with its neighbours.",
     .options = kSnapOptions,
     .in = {},
     .out = {},
     .papers = kSnapPapers,
     .traits = {.exact_for = "texts within the budget", .forms = {}, .patterns = {}, .same_bits = SameBits::kStride},
     .notes =
         "Equations 1 to 4; acts at the prompt's end, tokens that follow all stay. With grouped heads the votes of "
         "a group are averaged (the paper has no groups). With a stride it acts along the text, too.",
     .make = [](const Spec& spec) -> std::unique_ptr<Component> {
       if (spec.integer("kernel") % 2 == 0)
         throw Error(ErrorKind::kSpec, "snapkv", "kernel", spec.text("kernel"), "must be odd");
       return std::make_unique<SnapKv>(
           window_options(spec),
           SnapOptions{spec.integer("observe"), spec.integer("kernel"), spec.text("pool") == "mean"});
     },
     .aliases = kSnapAliases},
    {.kind = Kind::kRetention,
     .name = "chunkkv",
     .room = "kv",
     .equation = "score[j] = mean over the chunk of j of sum over the last `observe` queries i of w[i,j]",
     .summary = "Keeps whole chunks of the text, those that the end of the prompt looks at most.",
     .options = kChunkOptions,
     .in = {},
     .out = {},
     .papers = kChunkPapers,
     .traits = {.exact_for = "texts within the budget", .forms = {}, .patterns = {}, .same_bits = SameBits::kStride},
     .notes = "Chunks begin at multiples of `chunk` in position; the last one that fits the budget may be cut. Indices "
              "are not reused across layers.",
     .make = [](const Spec& spec) -> std::unique_ptr<Component> {
       return std::make_unique<ChunkKv>(window_options(spec), spec.integer("observe"), spec.integer("chunk"));
     },
     .aliases = kChunkAliases},
};

}  // namespace

void register_window_retentions(Registry& registry) {
  for (const Entry& entry : kEntries) registry.add(entry);
}

}  // namespace attend
