#include "attend/sparse/selector.h"

#include "attend/sparse/register.h"
#include "sparse/entries.h"

namespace attend {

int64_t Selection::count() const {
  int64_t n = 0;
  for (const KeyRange& range : slots) n += range.end - range.begin;
  return n;
}

void append_range(std::vector<KeyRange>& ranges, KeyRange range) {
  if (range.begin >= range.end) return;
  if (!ranges.empty() && range.begin <= ranges.back().end) {
    ranges.back().end = std::max(ranges.back().end, range.end);
  } else {
    ranges.push_back(range);
  }
}

void SelectorIndex::weighed(int, int, const float*, std::span<const std::vector<float>>) {}
void SelectorIndex::queried(int, int, const KeyView&, const NewQueries&) {}

void register_sparse(Registry& registry) {
  register_graph(registry);
  register_infllm(registry);
  register_ltri(registry);
  register_magicpig(registry);
  register_omnilive(registry);
  register_quest(registry);
  register_recycling(registry);
}

}  // namespace attend
