// InfLLM: what left the local window lies in blocks, each remembered by the few keys that the queries after them looked
// for; the blocks most relevant to the newest queries are read beside the first tokens and the window.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "attend/simd/key_rows.h"
#include "attend/sparse/selector.h"
#include "attend/tensor/registry.h"
#include "sparse/entries.h"
#include "sparse/key_groups.h"
#include "sparse/selector_of.h"

namespace attend {
namespace {

struct InfLlmOptions {
  Budget budget;  // recent: the local window
  int64_t block, representatives, dense_layers;
};

class InfLlmIndex : public SelectorIndex {
 public:
  InfLlmIndex(const SelectorShape& shape, const InfLlmOptions& options)
      : shape_(shape),
        o_(options),
        kernels_(dense_kernels(shape.isa)),
        heads_(shape),
        scratch_(static_cast<size_t>(shape.kv_heads)) {}

  // Blocks are of positions and keep what they are remembered by: keys may come and go.
  void update(int, int, const KeyView&, int64_t) override {}
  bool wants_queries(int layer) const override { return layer >= o_.dense_layers; }

  // The score of key m, r[m] = k[m] . (q[m+1] + .. + q[m+window]), is a difference of two sums from the beginning: one
  // when the key comes, one when it leaves the window.
  void queried(int layer, int kv_head, const KeyView& keys, const NewQueries& queries) override {
    Head& head = heads_.at(layer, kv_head);
    const int64_t d = shape_.d, group = shape_.group, first = keys.count() - queries.rows;
    const int64_t window = o_.budget.recent, room = window + o_.block;
    if (head.sum.empty()) {
      head.sum.assign(static_cast<size_t>(group * d), 0.0);
      head.score.assign(static_cast<size_t>(room * group), 0.0);
      head.blocks.assign(static_cast<size_t>(group), VectorTable(d));
    }
    std::vector<float> key(static_cast<size_t>(d));
    for (int64_t r = 0; r < queries.rows; ++r) {
      const int64_t position = position_at(keys, first + r), left = position - window;
      read_keys(keys, first + r, 1, d, shape_.isa, key.data());
      for (int64_t g = 0; g < group; ++g) {
        double* sum = head.sum.data() + g * d;
        const float* q = queries.q + r * queries.row_stride + g * d;
        for (int64_t c = 0; c < d; ++c) sum[c] += static_cast<double>(q[c]);
        head.score[static_cast<size_t>(position % room * group + g)] = -dot(key.data(), sum);
      }
      if (left < o_.budget.sinks) continue;
      const int64_t slot = slot_at(keys, left);
      const bool there = holds(keys, slot, left);
      if (there) read_keys(keys, slot, 1, d, shape_.isa, key.data());
      for (int64_t g = 0; g < group; ++g) {
        double& score = head.score[static_cast<size_t>(left % room * group + g)];
        score = there ? score + dot(key.data(), head.sum.data() + g * d) : -std::numeric_limits<double>::infinity();
      }
      if ((left + 1 - o_.budget.sinks) % o_.block == 0) remember(head, keys, left + 1 - o_.block);
    }
  }

  void save(int layer, int kv_head, StateWriter& out) const override {
    const Head& head = heads_.at(layer, kv_head);
    std::vector<float> means(static_cast<size_t>(head.count * shape_.group * shape_.d));
    for (int64_t i = 0; i < head.count * shape_.group; ++i)
      head.blocks[static_cast<size_t>(i % shape_.group)].read(
          i / shape_.group, std::span(means).subspan(static_cast<size_t>(i * shape_.d), static_cast<size_t>(shape_.d)));
    out.put(head.sum), out.put(head.score), out.put(head.count), out.put(means);
  }
  void load(int layer, int kv_head, const KeyView&, int64_t next, StateReader& in) override {
    const int64_t width = shape_.group * shape_.d, room = (o_.budget.recent + o_.block) * shape_.group;
    Head head;
    std::vector<float> means;
    in.get(head.sum, width);
    in.get(head.score, room);
    head.count = in.get<int64_t>();
    const bool begun = !head.sum.empty();
    const int64_t left = next - o_.budget.recent - o_.budget.sinks;
    StateReader::require(static_cast<int64_t>(head.sum.size()) == (begun ? width : 0) &&
                         static_cast<int64_t>(head.score.size()) == (begun ? room : 0) &&
                         head.count == (begun ? std::max<int64_t>(0, left) / o_.block : 0));
    in.get(means, head.count * width);
    StateReader::require(static_cast<int64_t>(means.size()) == head.count * width);
    if (begun) head.blocks.assign(static_cast<size_t>(shape_.group), VectorTable(shape_.d));
    for (VectorTable& blocks : head.blocks) blocks.resize(head.count);
    for (int64_t i = 0; i < head.count * shape_.group; ++i)
      head.blocks[static_cast<size_t>(i % shape_.group)].write(
          i / shape_.group, std::span(means).subspan(static_cast<size_t>(i * shape_.d), static_cast<size_t>(shape_.d)));
    heads_.at(layer, kv_head) = std::move(head);
  }

  void select(int layer, int kv_head, const KeyView& keys, const float* q, Selection& selection) override {
    const int64_t n = keys.count();
    selection.everything = layer < o_.dense_layers || n <= o_.budget.keys;
    if (selection.everything) return;
    const Head& head = heads_.at(layer, kv_head);
    Choosing& scratch = scratch_[static_cast<size_t>(kv_head)];
    std::vector<float>& relevance = scratch.scores;
    relevance.assign(static_cast<size_t>(head.count), 0.0f);
    for (size_t g = 0; g < head.blocks.size(); ++g) {
      head.blocks[g].products(kernels_, q + static_cast<int64_t>(g) * shape_.d, 1, head.count,
                              [&](int64_t block, int64_t, float x) { relevance[static_cast<size_t>(block)] += x; });
      selection.index_bytes += head.blocks[g].bytes_of(head.count);
    }
    for (float& x : relevance) x = std::isnan(x) ? -std::numeric_limits<float>::infinity() : x;
    const auto slots = [&](int64_t block) {
      return KeyRange{slot_at(keys, begin_of(block)), slot_at(keys, begin_of(block + 1))};
    };
    // What has left the window but fills no block is read, too.
    Budget budget = o_.budget;
    budget.recent = n - slot_at(keys, begin_of(head.count));
    read_best(relevance, budget, n, slots, scratch, selection);
  }

  void clear() override { heads_.clear(); }
  int64_t bytes() const override {
    int64_t total = 0;
    for (const Head& head : heads_) {
      total += static_cast<int64_t>((head.sum.capacity() + head.score.capacity()) * sizeof(double));
      for (const VectorTable& blocks : head.blocks) total += blocks.bytes();
    }
    return total;
  }

 private:
  struct Head {
    std::vector<double> sum;          // of the queries, [group, d]
    std::vector<double> score;        // of the newest keys, by position modulo window + block, [.., group]
    std::vector<VectorTable> blocks;  // of each query head: the mean of a block's representatives
    int64_t count = 0;                // blocks
  };
  int64_t begin_of(int64_t block) const { return o_.budget.sinks + block * o_.block; }

  // Whether a slot holds the key of this position: it may have been dropped.
  static bool holds(const KeyView& keys, int64_t slot, int64_t position) {
    return slot < keys.count() && position_at(keys, slot) == position;
  }
  double dot(const float* key, const double* sum) const {
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t c = 0; c < shape_.d; ++c) total += static_cast<double>(key[c]) * sum[c];
    return total;
  }

  // The block of positions from `begin` on has left the window.
  void remember(Head& head, const KeyView& keys, int64_t begin) const {
    const int64_t d = shape_.d, group = shape_.group, room = o_.budget.recent + o_.block;
    std::vector<int64_t> order(static_cast<size_t>(o_.block));
    std::vector<float> key(static_cast<size_t>(d)), mean(key);
    for (int64_t g = 0; g < group; ++g) {
      auto score = [&](int64_t m) {
        const double x = head.score[static_cast<size_t>((begin + m) % room * group + g)];
        return std::isnan(x) ? -std::numeric_limits<double>::infinity() : x;
      };
      std::iota(order.begin(), order.end(), int64_t{0});
      const auto end = order.begin() + std::min(o_.representatives, o_.block);
      std::partial_sort(order.begin(), end, order.end(),
                        [&](int64_t a, int64_t b) { return score(a) != score(b) ? score(a) > score(b) : a < b; });
      std::sort(order.begin(), end);
      std::fill(mean.begin(), mean.end(), 0.0f);
      int64_t count = 0;
      for (auto m = order.begin(); m != end; ++m) {
        const int64_t slot = slot_at(keys, begin + *m);
        if (!holds(keys, slot, begin + *m)) continue;
        read_keys(keys, slot, 1, d, shape_.isa, key.data());
        for (size_t c = 0; c < mean.size(); ++c) mean[c] += key[c];
        ++count;
      }
      for (float& x : mean) x /= static_cast<float>(std::max<int64_t>(count, 1));
      head.blocks[static_cast<size_t>(g)].resize(head.count + 1);
      head.blocks[static_cast<size_t>(g)].write(head.count, mean);
    }
    ++head.count;
  }

  SelectorShape shape_;
  InfLlmOptions o_;
  const DenseKernels& kernels_;
  PerHead<Head> heads_;
  std::vector<Choosing> scratch_;  // of kv heads
};

constexpr Option kOptions[] = {
    {"budget", "tokens", "keys that a token reads", "6399", OptionType::kInteger, 1, 1e15},
    {"sinks", "tokens", "first keys that are always read, at most a quarter of the budget", "128", OptionType::kInteger,
     0, 1e9},
    {"recent", "tokens", "the local window, always read, at most two thirds of what sinks leave", "4096",
     OptionType::kInteger, 1, 1e9},
    {"block", "tokens", "that are remembered and read together, at most half of what sinks and window leave", "128",
     OptionType::kInteger, 1, 65536},
    {"representatives", "keys", "of a block that stand for it, at most `block`", "4", OptionType::kInteger, 1, 4096},
    {"dense", "layers", "first layers that read everything", "0", OptionType::kInteger, 0, 1e6}};
constexpr Paper kPapers[] = {
    {"InfLLM: Training-Free Long-Context Extrapolation for LLMs with an Efficient Context Memory", "2402.04617", ""}};

constexpr Entry kInfLlm = {
    .kind = Kind::kSelector,
    .name = "infllm",
    .room = "sparse",
    .equation =
        "r[m] = k[m] . sum over the window's queries i > m of q[i];  C[b] the `representatives` keys of block b of\n"
        "largest r;  reads sinks, the local window and the blocks of largest  sum over h, m in C[h,b] of q[h].k[m]",
    .summary = "Remembers blocks that left the window by the keys that later queries looked for, and reads the best.",
    .options = kOptions,
    .in = {},
    .out = {},
    .papers = kPapers,
    .traits = {.exact_for = "texts within the budget", .forms = {}, .patterns = {}, .same_bits = SameBits::kStride},
    .notes =
        "Section 3.2 with the sizes of the authors' configuration: 128 sinks, a window of 4096, 16 blocks of 128, 4 "
        "representatives; a tail that fills no block yet is read, as in their code. Scores are the paper's sums of "
        "products (the authors' code sums softmax weights) and are worked out from running sums of queries, in double, "
        "so that they cost two products a key. Each query head has representatives of its own, as in the code. "
        "Differs: "
        "prompts are read densely, and far keys keep their positions, where the paper gives all of them the distance "
        "of the window's edge: this selector reads less, it does not stretch a model's context.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      InfLlmOptions o{Budget::with_window(spec.integer("budget"), spec.integer("sinks"), spec.integer("recent")),
                      spec.integer("block"), spec.integer("representatives"), spec.integer("dense")};
      o.block = std::clamp<int64_t>(o.block, 1, std::max<int64_t>(1, o.budget.left() / 2));
      o.representatives = std::min(o.representatives, o.block);
      return std::make_unique<SelectorOf<InfLlmIndex, InfLlmOptions>>(o);
    }};

}  // namespace

void register_infllm(Registry& registry) {
  registry.add(kInfLlm);
}

}  // namespace attend
