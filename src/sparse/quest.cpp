// Quest: pages of keys ranked by the largest score that a key within their bounds could have.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "attend/simd/hook.h"
#include "attend/simd/key_rows.h"
#include "attend/sparse/selector.h"
#include "attend/tensor/registry.h"
#include "sparse/entries.h"
#include "sparse/large_pages.h"
#include "sparse/largest.h"
#include "sparse/page_codes.h"
#include "sparse/selector_of.h"

namespace attend {
namespace {

constexpr int64_t kLanes = kCodedPages;  // pages side by side: a group

// Bounds of the pages of a group as numbers, [d][32] least, then [d][32] largest; and what many scores are put to.
struct Loops {
  // scores[g * stride + p] = sum over channels of the larger of q[g] * least and q[g] * largest, of 32 pages.
  // side [group, d]: where the row of bounds begins that the sign of q makes the larger one, for all pages.
  [[gnu::always_inline]] static inline void scores_loop(const float* bounds, const float* q, const int32_t* side,
                                                        int64_t group, int64_t d, float* scores, int64_t stride) {
    constexpr int64_t kChannels = 4;  // at once
    for (int64_t g = 0; g < group; ++g, q += d) {
      float sum[kLanes] = {};
      auto row = [&](int64_t c) { return bounds + side[g * d + c]; };
      int64_t c = 0;
      for (; c + kChannels <= d; c += kChannels) {
        const float *a = row(c), *b = row(c + 1), *e = row(c + 2), *f = row(c + 3);
        const float x = q[c], y = q[c + 1], z = q[c + 2], w = q[c + 3];
#pragma omp simd
        for (int64_t p = 0; p < kLanes; ++p) sum[p] += (x * a[p] + y * b[p]) + (z * e[p] + w * f[p]);
      }
      for (; c < d; ++c) {
        const float* a = row(c);
        const float x = q[c];
#pragma omp simd
        for (int64_t p = 0; p < kLanes; ++p) sum[p] += x * a[p];
      }
      std::copy_n(sum, kLanes, scores + g * stride);
    }
  }
  // best[p] = the largest of the heads' score[g * stride + p] less that head's largest. A page counts by the head that
  // wants it most, against that head's best page: scores of different heads have nothing in common (keys' mean alone
  // moves them).
  [[gnu::always_inline]] static inline void best_loop(const float* scores, int64_t stride, int64_t group, int64_t pages,
                                                      float* best) {
    constexpr float kLeast = -std::numeric_limits<float>::infinity();
    for (int64_t p = 0; p < pages; ++p) best[p] = kLeast;
    for (int64_t g = 0; g < group; ++g, scores += stride) {
      float most = kLeast;
#pragma omp simd reduction(max : most)
      for (int64_t p = 0; p < pages; ++p) most = scores[p] > most ? scores[p] : most;
#pragma omp simd
      for (int64_t p = 0; p < pages; ++p) best[p] = scores[p] - most > best[p] ? scores[p] - most : best[p];
    }
  }
  ATTEND_TARGET_AVX2 static void scores_avx2(const float* bounds, const float* q, const int32_t* side, int64_t group,
                                             int64_t d, float* scores, int64_t stride) {
    scores_loop(bounds, q, side, group, d, scores, stride);
  }
  ATTEND_TARGET_AVX512 static void scores_avx512(const float* bounds, const float* q, const int32_t* side,
                                                 int64_t group, int64_t d, float* scores, int64_t stride) {
    scores_loop(bounds, q, side, group, d, scores, stride);
  }
  ATTEND_TARGET_AVX2 static void best_avx2(const float* scores, int64_t stride, int64_t group, int64_t pages,
                                           float* best) {
    best_loop(scores, stride, group, pages, best);
  }
  ATTEND_TARGET_AVX512 static void best_avx512(const float* scores, int64_t stride, int64_t group, int64_t pages,
                                               float* best) {
    best_loop(scores, stride, group, pages, best);
  }

  explicit Loops(Isa isa)
      : scores(isa == Isa::kAvx2 ? scores_avx2 : scores_avx512), best(isa == Isa::kAvx2 ? best_avx2 : best_avx512) {}
  void (*scores)(const float*, const float*, const int32_t*, int64_t, int64_t, float*, int64_t);
  void (*best)(const float*, int64_t, int64_t, int64_t, float*);
};

struct QuestOptions {
  int64_t budget, page, dense_layers;
  bool bytes;  // bounds of full groups as bytes
};

class QuestIndex : public SelectorIndex {
 public:
  QuestIndex(const SelectorShape& shape, const QuestOptions& options)
      : shape_(shape),
        o_(options),
        codes_(shape.d, shape.isa),
        closed_bytes_(options.bytes ? codes_.bytes() : 2 * shape.d * kLanes * int64_t{sizeof(float)}),
        loops_(shape.isa),
        heads_(shape),
        scratch_(static_cast<size_t>(shape.kv_heads)) {}

  static int64_t pays_from(const QuestOptions& options) { return kPayingBudgets * options.budget; }

  void update(int layer, int kv_head, const KeyView& keys, int64_t from) override {
    if (layer < o_.dense_layers) return;
    Head& head = heads_.at(layer, kv_head);
    const int64_t n = keys.count(), pages = (n + o_.page - 1) / o_.page;
    head.open.resize(static_cast<size_t>(2 * kLanes * shape_.d));
    std::vector<float>& rows = scratch_[static_cast<size_t>(kv_head)].rows;
    rows.resize(static_cast<size_t>(o_.page * shape_.d));
    int64_t page = from / o_.page;
    if (const int64_t closed = head.closed_groups * kLanes; page < closed) {  // an opened group begins anew
      head.closed_groups = page / kLanes;
      page = head.closed_groups * kLanes;
    }
    for (; page < pages; ++page) {
      bound(head, page, keys, rows.data());
      if ((page + 1) % kLanes == 0 && (page + 1) * o_.page <= n) close(head);
    }
    head.pages = pages;
    head.closed.resize(static_cast<size_t>(head.closed_groups * closed_bytes_));
  }

  // Bounds of a page are made anew when a key joins it, and pages beyond the keys are not looked at.
  bool can_cut(int, int, int64_t) const override { return true; }

  void select(int layer, int kv_head, const KeyView& keys, const float* q, Selection& selection) override {
    const int64_t n = keys.count();
    selection.everything = layer < o_.dense_layers || n <= o_.budget;
    if (selection.everything) return;
    const Head& head = heads_.at(layer, kv_head);
    Scratch& scratch = scratch_[static_cast<size_t>(kv_head)];
    const int64_t d = shape_.d, groups = (head.pages + kLanes - 1) / kLanes;
    const int64_t padded = groups * kLanes;
    scratch.scores.resize(static_cast<size_t>(shape_.group * padded));
    scratch.side.resize(static_cast<size_t>(shape_.group * d));
    for (int64_t i = 0; i < shape_.group * d; ++i)
      scratch.side[static_cast<size_t>(i)] = static_cast<int32_t>((i % d + (q[i] > 0 ? d : 0)) * kLanes);
    float* scores = scratch.scores.data();
    if (o_.bytes) codes_.scores(head.closed.data(), head.closed_groups, q, shape_.group, scores, padded, scratch.codes);
    for (int64_t group = o_.bytes ? head.closed_groups : 0; group < groups; ++group) {
      const auto* closed = reinterpret_cast<const float*>(head.closed.data() + group * closed_bytes_);
      loops_.scores(group < head.closed_groups ? closed : head.open.data(), q, scratch.side.data(), shape_.group, d,
                    scores + group * kLanes, padded);
    }
    selection.index_bytes = head.closed_groups * closed_bytes_ +
                            (groups > head.closed_groups ? static_cast<int64_t>(head.open.size() * sizeof(float)) : 0);
    scratch.best.resize(static_cast<size_t>(head.pages));
    loops_.best(scores, padded, shape_.group, head.pages, scratch.best.data());
    // The page of the newest key always takes part.
    scratch.best.back() = std::numeric_limits<float>::infinity();
    const int64_t wanted = std::clamp<int64_t>(o_.budget / o_.page, 1, head.pages);
    largest(scratch.best, wanted, shape_.isa, scratch.order, scratch.chosen);
    for (int64_t page : scratch.chosen)
      append_range(selection.slots, {page * o_.page, std::min(n, (page + 1) * o_.page)});
  }

  void clear() override { heads_.clear(); }
  int64_t bytes() const override {
    int64_t total = 0;
    for (const Head& head : heads_)
      total += static_cast<int64_t>(head.closed.capacity() + head.open.capacity() * sizeof(float));
    return total;
  }

 private:
  struct Head {
    LargeVector<std::byte> closed;  // full groups
    std::vector<float> open;        // the last group
    int64_t pages = 0, closed_groups = 0;
  };
  struct Scratch {
    std::vector<float> rows, scores, best;
    std::vector<int32_t> order, side;
    std::vector<int64_t> chosen;
    PageCodes::Scratch codes;
  };

  // The bounds of a page into the open group.
  void bound(Head& head, int64_t page, const KeyView& keys, float* rows) const {
    const int64_t first = page * o_.page, count = std::min(o_.page, keys.count() - first), d = shape_.d;
    read_keys(keys, first, count, d, shape_.isa, rows);
    float* least = head.open.data() + page % kLanes;
    float* largest = least + kLanes * d;
    for (int64_t c = 0; c < d; ++c) {
      float low = rows[c], high = low;
      for (int64_t r = 1; r < count; ++r) low = std::min(low, rows[r * d + c]), high = std::max(high, rows[r * d + c]);
      least[c * kLanes] = low, largest[c * kLanes] = high;
    }
  }

  // The open group is full: it joins the closed ones.
  void close(Head& head) const {
    head.closed.resize(static_cast<size_t>((head.closed_groups + 1) * closed_bytes_));
    std::byte* to = head.closed.data() + head.closed_groups++ * closed_bytes_;
    if (o_.bytes)
      codes_.write(head.open.data(), head.open.data() + kLanes * shape_.d, to);
    else
      std::memcpy(to, head.open.data(), head.open.size() * sizeof(float));
  }

  SelectorShape shape_;
  QuestOptions o_;
  PageCodes codes_;
  int64_t closed_bytes_;  // of a group
  Loops loops_;
  PerHead<Head> heads_;
  std::vector<Scratch> scratch_;  // of kv heads
};

constexpr Option kOptions[] = {
    {"budget", "tokens", "keys that a token reads", "1024", OptionType::kInteger, 1, 1e15},
    {"page", "tokens", "keys that are read or left together", "16", OptionType::kInteger, 1, 4096},
    {"dense", "layers", "first layers that read everything", "2", OptionType::kInteger, 0, 1e6},
    {"bounds", "", "how bounds of pages are kept", "int8", OptionType::kText, 0, 0, "int8|f32"}};
constexpr Paper kPapers[] = {
    {"Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference", "2406.10774", ""}};
constexpr std::string_view kAliases[] = {"QuestPress"};

constexpr Entry kQuest = {
    .kind = Kind::kSelector,
    .name = "quest",
    .room = "sparse",
    .equation =
        "score[h,p] = sum_c max(q[h,c] min_p[c], q[h,c] max_p[c]),  pages by max over heads h of\n"
        "score[h,p] - max over pages of score[h,.],\n"
        "min_p and max_p over the keys of page p",
    .summary = "Reads the pages whose bounds allow the largest scores.",
    .options = kOptions,
    .in = {},
    .out = {},
    .papers = kPapers,
    .traits = {.exact_for = "texts within the budget", .forms = {}, .patterns = {}, .same_bits = SameBits::kStride},
    .notes =
        "Algorithm 1; prompts are read densely. Pages are of slots. With grouped heads a page counts by the head that "
        "wants it most, against that head's best page (the paper has no groups). Bounds are bytes between the extremes "
        "of 32 pages, rounded outwards, and queries have 16 bits against them: 2.25 d bytes a page, where bounds=f32 "
        "takes "
        "8 d and ranks as the paper does to the last bit.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return std::make_unique<SelectorOf<QuestIndex, QuestOptions>>(QuestOptions{
          spec.integer("budget"), spec.integer("page"), spec.integer("dense"), spec.text("bounds") == "int8"});
    },
    .aliases = kAliases};

}  // namespace

void register_quest(Registry& registry) {
  registry.add(kQuest);
}

}  // namespace attend
