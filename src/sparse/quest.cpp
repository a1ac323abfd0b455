// Quest: pages of keys ranked by the largest score that a key within their bounds could have.
#include <algorithm>
#include <limits>
#include <numeric>

#include "attend/simd/hook.h"
#include "attend/simd/key_rows.h"
#include "attend/sparse/selector.h"
#include "attend/tensor/registry.h"
#include "sparse/entries.h"

namespace attend {
namespace {

constexpr int64_t kLanes = 16;  // pages side by side

// Bounds of pages, in groups of 16 pages: [d][16] least, then [d][16] largest.
struct Bounds {
  // scores[p] = sum over channels of the larger of q * least and q * largest, of 16 pages.
  [[gnu::always_inline]] static inline void loop(const float* bounds, const float* q, int64_t d, float* scores) {
    float sum[kLanes] = {};
    const float *least = bounds, *largest = bounds + d * kLanes;
    for (int64_t c = 0; c < d; ++c) {
      const float x = q[c];
#pragma omp simd
      for (int64_t p = 0; p < kLanes; ++p) {
        const float low = x * least[c * kLanes + p], high = x * largest[c * kLanes + p];
        sum[p] += low > high ? low : high;
      }
    }
    std::copy_n(sum, kLanes, scores);
  }
  ATTEND_TARGET_AVX2 static void avx2(const float* bounds, const float* q, int64_t d, float* scores) {
    loop(bounds, q, d, scores);
  }
  ATTEND_TARGET_AVX512 static void avx512(const float* bounds, const float* q, int64_t d, float* scores) {
    loop(bounds, q, d, scores);
  }
};

struct QuestOptions {
  int64_t budget, page, dense_layers;
};

class QuestIndex : public SelectorIndex {
 public:
  QuestIndex(const SelectorShape& shape, const QuestOptions& options)
      : shape_(shape),
        o_(options),
        score_(shape.isa == Isa::kAvx2 ? Bounds::avx2 : Bounds::avx512),
        heads_(static_cast<size_t>(shape.layers * shape.kv_heads)) {}

  void update(int layer, int kv_head, const KeyView& keys, int64_t from) override {
    if (layer < o_.dense_layers) return;
    Head& head = at(layer, kv_head);
    const int64_t n = keys.count(), pages = (n + o_.page - 1) / o_.page, d = shape_.d;
    head.bounds.resize(static_cast<size_t>((pages + kLanes - 1) / kLanes * kLanes * 2 * d));
    std::vector<float> rows(static_cast<size_t>(o_.page * d));
    for (int64_t page = from / o_.page; page < pages; ++page) {
      const int64_t first = page * o_.page, count = std::min(o_.page, n - first);
      read_keys(keys, first, count, d, shape_.isa, rows.data());
      float* least = head.bounds.data() + page / kLanes * kLanes * 2 * d + page % kLanes;
      float* largest = least + kLanes * d;
      for (int64_t c = 0; c < d; ++c) {
        float low = rows[static_cast<size_t>(c)], high = low;
        for (int64_t r = 1; r < count; ++r) {
          const float x = rows[static_cast<size_t>(r * d + c)];
          low = std::min(low, x), high = std::max(high, x);
        }
        least[c * kLanes] = low, largest[c * kLanes] = high;
      }
    }
    head.pages = pages;
  }

  // Bounds of a page are made anew when a key joins it, and pages beyond the keys are not looked at.
  bool can_cut(int, int, int64_t) const override { return true; }

  void select(int layer, int kv_head, const KeyView& keys, const float* q, Selection& selection) override {
    const int64_t n = keys.count();
    selection.everything = layer < o_.dense_layers || n <= o_.budget;
    if (selection.everything) return;
    const Head& head = at(layer, kv_head);
    const int64_t padded = (head.pages + kLanes - 1) / kLanes * kLanes;
    std::vector<float> best(static_cast<size_t>(padded), -std::numeric_limits<float>::infinity());
    float scores[kLanes];
    for (int64_t page = 0; page < padded; page += kLanes)
      for (int64_t g = 0; g < shape_.group; ++g) {
        score_(head.bounds.data() + page * 2 * shape_.d, q + g * shape_.d, shape_.d, scores);
        for (int64_t p = 0; p < kLanes; ++p)
          best[static_cast<size_t>(page + p)] = std::max(best[static_cast<size_t>(page + p)], scores[p]);
      }
    selection.index_bytes = padded * 2 * shape_.d * static_cast<int64_t>(sizeof(float));
    // The page of the newest key always takes part.
    const int64_t wanted = std::clamp<int64_t>(o_.budget / o_.page, 1, head.pages);
    best[static_cast<size_t>(head.pages - 1)] = std::numeric_limits<float>::infinity();
    std::vector<int64_t> order(static_cast<size_t>(head.pages));
    std::iota(order.begin(), order.end(), int64_t{0});
    std::nth_element(order.begin(), order.begin() + (wanted - 1), order.end(), [&](int64_t a, int64_t b) {
      const float x = best[static_cast<size_t>(a)], y = best[static_cast<size_t>(b)];
      return x != y ? x > y : a > b;
    });
    order.resize(static_cast<size_t>(wanted));
    std::sort(order.begin(), order.end());
    for (int64_t page : order) append_range(selection.slots, {page * o_.page, std::min(n, (page + 1) * o_.page)});
  }

  void clear() override {
    for (Head& head : heads_) head = Head();
  }
  int64_t bytes() const override {
    int64_t total = 0;
    for (const Head& head : heads_) total += static_cast<int64_t>(head.bounds.capacity() * sizeof(float));
    return total;
  }

 private:
  struct Head {
    std::vector<float> bounds;
    int64_t pages = 0;
  };
  Head& at(int layer, int kv_head) { return heads_[static_cast<size_t>(layer * shape_.kv_heads + kv_head)]; }

  SelectorShape shape_;
  QuestOptions o_;
  void (*score_)(const float*, const float*, int64_t, float*);
  std::vector<Head> heads_;
};

struct Quest : Selector {
  explicit Quest(const QuestOptions& options) : o(options) {}
  std::unique_ptr<SelectorIndex> open(const SelectorShape& shape) const override {
    return std::make_unique<QuestIndex>(shape, o);
  }
  QuestOptions o;
};

constexpr Option kOptions[] = {
    {"budget", "tokens", "keys that a token reads", "1024", OptionType::kInteger, 1, 1e15},
    {"page", "tokens", "keys that are read or left together", "16", OptionType::kInteger, 1, 4096},
    {"dense", "layers", "first layers that read everything", "2", OptionType::kInteger, 0, 1e6}};
constexpr Paper kPapers[] = {
    {"Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference", "2406.10774", ""}};
constexpr std::string_view kAliases[] = {"QuestPress"};

constexpr Entry kQuest = {
    .kind = Kind::kSelector,
    .name = "quest",
    .room = "sparse",
    .equation =
        "score[p] = max over the heads that read p of sum_c max(q[c] min_p[c], q[c] max_p[c]),\n"
        "min_p and max_p over the keys of page p",
    .summary = "Reads the pages whose bounds allow the largest scores.",
    .options = kOptions,
    .in = {},
    .out = {},
    .papers = kPapers,
    .traits = {.exact_for = "texts within the budget", .forms = {}, .patterns = {}, .same_bits = SameBits::kStride},
    .notes =
        "Algorithm 1; prompts are read densely. Pages are of slots. With grouped heads a page counts by the head that "
        "wants it most (the paper has no groups). Bounds are f32: 8 d bytes a page.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return std::make_unique<Quest>(QuestOptions{spec.integer("budget"), spec.integer("page"), spec.integer("dense")});
    },
    .aliases = kAliases};

}  // namespace

void register_quest(Registry& registry) {
  registry.add(kQuest);
}

}  // namespace attend
