// Rankings by how often, and how lately, queries attended to a key.
#include "kv/entries.h"
#include "kv/ranking_entry.h"

namespace attend {
namespace {

// f(statistic of a query head at a slot) for all query heads that read the kv head; `missing` for the newest keys,
// which met no query.
template <class F>
void each_head(const Held& held, std::span<const std::vector<int32_t>> heads, int32_t missing, size_t slot, F f) {
  for (const std::vector<int32_t>& head : held.own(heads)) f(slot < head.size() ? head[slot] : missing);
}

struct Scissorhands : Ranking {
  Scissorhands(const RankingOptions& ranking, int64_t history) : Ranking(ranking), history_(history) {}
  int64_t observes() const override { return history_; }
  WantedStatistics statistics() const override { return {.sums = false, .times = true}; }
  void score(const Held& held, std::span<float> scores) const override {
    for (size_t j = 0; j < scores.size(); ++j) {
      const int64_t first = std::max(held.observed_from, held.position(static_cast<int64_t>(j)));
      int64_t low = 0;
      each_head(held, held.times, 0, j, [&](int32_t times) { low += held.next_position - first - times; });
      scores[j] = -static_cast<float>(low);
    }
  }

 private:
  int64_t history_;
};

struct Attended : Ranking {
  Attended(const RankingOptions& ranking, float times_the_mean) : Ranking(ranking), attended(times_the_mean) {}
  int64_t observes() const override { return kEveryQuery; }
  const float attended;
};

struct LeastRecentlyAttended : Attended {
  using Attended::Attended;
  WantedStatistics statistics() const override { return {.sums = false, .newest = true, .attended = attended}; }
  void score(const Held& held, std::span<float> scores) const override {
    for (size_t j = 0; j < scores.size(); ++j) {
      int64_t last = held.position(static_cast<int64_t>(j));
      each_head(held, held.newest, -1, j, [&](int32_t newest) { last = std::max<int64_t>(last, newest); });
      scores[j] = static_cast<float>(last - held.next_position);
    }
  }
};

struct LeastFrequentlyAttended : Attended {
  using Attended::Attended;
  WantedStatistics statistics() const override { return {.sums = false, .times = true, .attended = attended}; }
  void score(const Held& held, std::span<float> scores) const override {
    for (size_t j = 0; j < scores.size(); ++j) {
      int64_t total = 0;
      each_head(held, held.times, 0, j, [&](int32_t times) { total += times; });
      scores[j] = static_cast<float>(total);
    }
  }
};

template <class Attended>
std::unique_ptr<Component> make_attended(const Spec& spec) {
  return std::make_unique<Attended>(kv::ranking_options(spec), static_cast<float>(spec.real("attended")));
}

constexpr Option kScissorhandsOptions[] = {
    kv::budget_option(),
    kv::stride_option("256"),
    {"history", "tokens", "newest queries whose weights count, at most those since it acted last", "400",
     OptionType::kInteger, 1, kv::kMostTokens},
    kv::sinks_option("0"),
    kv::recent_option("10")};
constexpr Option kAttendedOptions[] = {
    kv::budget_option(),
    kv::stride_option("256"),
    {"attended", "", "a query attends to a key if its weight is more than so many times the mean of what it sees", "1",
     OptionType::kReal, 0, 1e6},
    kv::sinks_option("0"),
    kv::recent_option("64")};
constexpr Paper kScissorhandsPapers[] = {
    {"Scissorhands: Exploiting the Persistence of Importance Hypothesis for LLM KV Cache Compression at Test Time",
     "2305.17118", ""}};
constexpr Paper kAttendrePapers[] = {
    {"Attendre: Wait To Attend By Retrieval With Evicted Queries in Memory-Based Transformers for Long Context "
     "Processing",
     "2401.04881", "218"}};
constexpr std::string_view kAttendreNotes =
    "Only the paper's eviction policy of the key and value memory; its query memory is another thing. When a key "
    "counts "
    "as attended is our choice (a weight above the mean of what the query sees), as is that any query head of a group "
    "may do it. Counted since the key came.";

constexpr Entry kEntries[] = {
    {.kind = Kind::kRetention,
     .name = "scissorhands",
     .room = "kv",
     .equation = "score[j] = -|{i: one of the last `history` queries, i >= j, w[i,j] <= 1 / t[i]}|,\n"
                 "t[i] the keys that i sees; summed over the heads that read j",
     .summary = "Drops the keys that got less than the mean weight most often of late.",
     .options = kScissorhandsOptions,
     .in = {},
     .out = {},
     .papers = kScissorhandsPapers,
     .traits = {.exact_for = "texts within the budget", .forms = {}, .patterns = {}, .same_bits = SameBits::kStride},
     .notes = "Algorithm 2. Acts at multiples of its stride instead of whenever the budget is full. Counts start anew "
              "when it has acted, so that a history is never longer than the stride. Budgets are those of the policy "
              "(an allocator may share them out), not the paper's of each layer.",
     .make = [](const Spec& spec) -> std::unique_ptr<Component> {
       return std::make_unique<Scissorhands>(kv::ranking_options(spec), spec.integer("history"));
     }},
    {.kind = Kind::kRetention,
     .name = "lra",
     .room = "kv",
     .equation = "score[j] = max(j, the last query i with w[i,j] > attended / t[i]),  t[i] the keys that i sees",
     .summary = "Drops the keys that were attended to least recently.",
     .options = kAttendedOptions,
     .in = {},
     .out = {},
     .papers = kAttendrePapers,
     .traits = {.exact_for = "texts within the budget", .forms = {}, .patterns = {}, .same_bits = SameBits::kStride},
     .notes = kAttendreNotes,
     .make = make_attended<LeastRecentlyAttended>},
    {.kind = Kind::kRetention,
     .name = "lfa",
     .room = "kv",
     .equation = "score[j] = |{i: w[i,j] > attended / t[i]}|,  t[i] the keys that i sees; summed over the heads that "
                 "read j",
     .summary = "Drops the keys that were attended to least frequently.",
     .options = kAttendedOptions,
     .in = {},
     .out = {},
     .papers = kAttendrePapers,
     .traits = {.exact_for = "texts within the budget", .forms = {}, .patterns = {}, .same_bits = SameBits::kStride},
     .notes = kAttendreNotes,
     .make = make_attended<LeastFrequentlyAttended>},
};

}  // namespace

void register_count_retentions(Registry& registry) {
  for (const Entry& entry : kEntries) registry.add(entry);
}

}  // namespace attend
