// Rankings by the keys alone: their length, their direction.
#include "attend/simd/key_rows.h"
#include "kv/entries.h"
#include "kv/ranking_entry.h"

namespace attend {
namespace {

constexpr int64_t kRows = 256;  // read at once

// f(slot, key) for every key.
template <class F>
void each_key(const Held& held, F f) {
  std::vector<float> rows(static_cast<size_t>(kRows * held.d));
  for (int64_t first = 0; first < held.keys.count(); first += kRows) {
    const int64_t count = std::min(kRows, held.keys.count() - first);
    read_keys(held.keys, first, count, held.d, held.isa, rows.data());
    for (int64_t j = 0; j < count; ++j)
      f(first + j, std::span<const float>(rows.data() + j * held.d, static_cast<size_t>(held.d)));
  }
}

float dot(std::span<const float> x, std::span<const float> y) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (size_t c = 0; c < x.size(); ++c) sum += x[c] * y[c];
  return sum;
}

struct Knorm : Ranking {
  using Ranking::Ranking;
  void score(const Held& held, std::span<float> scores) const override {
    each_key(held, [&](int64_t slot, std::span<const float> key) {
      scores[static_cast<size_t>(slot)] = -std::sqrt(dot(key, key));
    });
  }
};

struct KeyDiff : Ranking {
  using Ranking::Ranking;
  void score(const Held& held, std::span<float> scores) const override {
    std::vector<float> anchor(static_cast<size_t>(held.d), 0.0f);
    auto inverse_norm = [](std::span<const float> key) {
      const float square = dot(key, key);
      return square > 0 ? 1 / std::sqrt(square) : 0.0f;
    };
    each_key(held, [&](int64_t, std::span<const float> key) {
      const float factor = inverse_norm(key);
      for (size_t c = 0; c < key.size(); ++c) anchor[c] += factor * key[c];
    });
    const float factor = inverse_norm(anchor);
    each_key(held, [&](int64_t slot, std::span<const float> key) {
      scores[static_cast<size_t>(slot)] = -dot(key, anchor) * inverse_norm(key) * factor;
    });
  }
};

constexpr Option kOptions[] = {kv::budget_option(), kv::stride_option("256"), kv::sinks_option(),
                               kv::recent_option("64")};
constexpr Paper kKnormPapers[] = {
    {"A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", "2406.11430", ""}};
constexpr Paper kKeyDiffPapers[] = {
    {"KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in Resource-Constrained "
     "Environments",
     "2504.15364", ""}};
constexpr std::string_view kKnormAliases[] = {"KnormPress"};
constexpr std::string_view kKeyDiffAliases[] = {"KeyDiffPress"};

constexpr Entry kEntries[] = {
    {.kind = Kind::kRetention,
     .name = "knorm",
     .room = "kv",
     .equation = "score[j] = -|k[j]|",
     .summary = "Keeps the keys of least length: they tend to get the most weight.",
     .options = kOptions,
     .in = {},
     .out = {},
     .papers = kKnormPapers,
     .traits = {.exact_for = "texts within the budget", .forms = {}, .patterns = {}, .same_bits = SameBits::kStride},
     .notes = "Lengths are those of keys as they are stored. The paper acts once, on the prompt (stride=0).",
     .make = [](const Spec& spec) -> std::unique_ptr<Component> {
       return std::make_unique<Knorm>(kv::ranking_options(spec));
     },
     .aliases = kKnormAliases},
    {.kind = Kind::kRetention,
     .name = "keydiff",
     .room = "kv",
     .equation = "score[j] = -cos(k[j], mean over all i of k[i] / |k[i]|)",
     .summary = "Keeps the keys that differ most from the others.",
     .options = kOptions,
     .in = {},
     .out = {},
     .papers = kKeyDiffPapers,
     .traits = {.exact_for = "texts within the budget", .forms = {}, .patterns = {}, .same_bits = SameBits::kStride},
     .notes = "Directions are those of keys as they are stored, turned to their positions.",
     .make = [](const Spec& spec) -> std::unique_ptr<Component> {
       return std::make_unique<KeyDiff>(kv::ranking_options(spec));
     },
     .aliases = kKeyDiffAliases},
};

}  // namespace

void register_norm_retentions(Registry& registry) {
  for (const Entry& entry : kEntries) registry.add(entry);
}

}  // namespace attend
