// Ltri-LLM: spans that attention itself marks off, as triangles along its diagonal, are found again by their keys.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <map>

#include "attend/simd/key_rows.h"
#include "attend/sparse/selector.h"
#include "attend/tensor/quantised_row.h"
#include "attend/tensor/registry.h"
#include "sparse/entries.h"
#include "sparse/key_groups.h"
#include "sparse/selector_of.h"

namespace attend {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

struct LtriOptions {
  Budget budget;
  int64_t block, span, vectors, dense_layers;
  double threshold;
};

// The rows of weights of a block of tokens, as far as their newest `span` keys: weight [row, row - key].
struct Band {
  int64_t block, span;
  std::vector<float> weights;

  void clear() { std::fill(weights.begin(), weights.end(), 0.0f); }
  float& at(int64_t row, int64_t back) { return weights[static_cast<size_t>(row * span + back)]; }
  float at(int64_t row, int64_t back) const { return weights[static_cast<size_t>(row * span + back)]; }
};

struct Triangle {
  int64_t begin, end;
  double score;
};

// Ends of the spans that rows [0, rows) of a band fall into. Triangles of more than their share of weight come first,
// the heaviest before others, those that overlap it drop out; what lies between them is cut into spans of the largest
// size.
std::vector<int64_t> find_spans(const Band& band, int64_t rows, double threshold) {
  double total = 0;
  int64_t places = 0;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t back = 0; back < std::min(band.span, i + 1); ++back, ++places)
      total += static_cast<double>(band.at(i, back));
  const double share = threshold * total / static_cast<double>(std::max<int64_t>(places, 1));
  std::vector<Triangle> triangles;
  std::vector<double> score(static_cast<size_t>(rows), 0.0);  // of the triangle from each token to the current one
  for (int64_t i = 0; i < rows; ++i) {
    double row = 0;
    for (int64_t back = 0; back < std::min(band.span, i + 1); ++back) {
      row += static_cast<double>(band.at(i, back)) - share;
      double& sum = score[static_cast<size_t>(i - back)];
      sum += row;
      if (back > 0 && sum > 0) triangles.push_back({i - back, i + 1, sum});
    }
  }
  std::vector<uint8_t> ends(static_cast<size_t>(rows) + 1, 0);
  std::sort(triangles.begin(), triangles.end(), [](const Triangle& a, const Triangle& b) {
    if (a.score != b.score) return a.score > b.score;
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  std::map<int64_t, int64_t> taken;  // ends of those that stayed, by where they begin
  for (const Triangle& t : triangles) {
    const auto later = taken.lower_bound(t.begin);
    if (later != taken.end() && later->first < t.end) continue;
    if (later != taken.begin() && std::prev(later)->second > t.begin) continue;
    taken.emplace_hint(later, t.begin, t.end);
    ends[static_cast<size_t>(t.begin)] = ends[static_cast<size_t>(t.end)] = 1;
  }
  ends[static_cast<size_t>(rows)] = 1;
  std::vector<int64_t> spans;
  for (int64_t i = 1, begin = 0; i <= rows; ++i)
    if (ends[static_cast<size_t>(i)] || i - begin == band.span) spans.push_back(begin = i);
  return spans;
}

class LtriIndex : public SelectorIndex {
 public:
  LtriIndex(const SelectorShape& shape, const LtriOptions& options)
      : shape_(shape),
        o_(options),
        kernels_(dense_kernels(shape.isa)),
        heads_(shape),
        scratch_(static_cast<size_t>(shape.kv_heads)) {}

  void update(int layer, int kv_head, const KeyView& keys, int64_t from) override {
    if (Head& head = heads_.at(layer, kv_head); from < head.slot.back()) locate(head, keys);
  }

  // Not to before the last block that fell into spans: its weights are lost.
  bool can_cut(int layer, int kv_head, int64_t count) const override {
    return heads_.at(layer, kv_head).slot.back() <= count;
  }

  void save(int layer, int kv_head, StateWriter& out) const override {
    const Head& head = heads_.at(layer, kv_head);
    out.put(head.band.weights), out.put(head.ends), out.put(head.picks);
  }
  void load(int layer, int kv_head, const KeyView& keys, int64_t next, StateReader& in) override {
    Head head;
    prepare(head);
    in.get(head.band.weights, o_.block * o_.span);
    in.get(head.ends, next + 1);
    in.get(head.picks, next * per_span());
    StateReader::require(!head.ends.empty() && head.ends.front() == 0);
    for (size_t s = 1; s < head.ends.size(); ++s) StateReader::require(head.ends[s] > head.ends[s - 1]);
    const bool begun = !head.band.weights.empty();
    StateReader::require(static_cast<int64_t>(head.band.weights.size()) == (begun ? o_.block * o_.span : 0) &&
                         head.ends.back() == (begun ? next / o_.block * o_.block : 0) &&
                         static_cast<int64_t>(head.picks.size()) == head.spans() * per_span());
    head.slot.resize(head.ends.size());
    locate(head, keys);
    heads_.at(layer, kv_head) = std::move(head);
  }

  bool wants_queries(int layer) const override { return layer >= o_.dense_layers; }

  void queried(int layer, int kv_head, const KeyView& keys, const NewQueries& queries) override {
    Head& head = heads_.at(layer, kv_head);
    const int64_t n = keys.count();
    if (head.band.weights.empty()) {
      prepare(head);
      head.band.weights.resize(static_cast<size_t>(o_.block * o_.span), 0.0f);
    }
    for (int64_t row = 0; row < queries.rows;) {
      const int64_t position = position_at(keys, n - queries.rows + row);
      const int64_t block_end = (position / o_.block + 1) * o_.block;
      const int64_t rows = std::min(queries.rows - row, block_end - position);
      // As many rows at once as see the keys of one panel.
      const int64_t step = std::max<int64_t>(kPanelKeys - o_.span + 1, kPanelKeys / 4);
      for (int64_t r = 0; r < rows; r += step) weigh(head, keys, queries, row + r, std::min(step, rows - r));
      row += rows;
      if (position + rows == block_end) add_spans(head, keys, block_end);
    }
  }

  void select(int layer, int kv_head, const KeyView& keys, const float* q, Selection& selection) override {
    const int64_t n = keys.count();
    selection.everything = layer < o_.dense_layers || n <= o_.budget.keys;
    if (selection.everything) return;
    const Head& head = heads_.at(layer, kv_head);
    const auto slots = [&](int64_t span) {
      return KeyRange{head.slot[static_cast<size_t>(span)], head.slot[static_cast<size_t>(span) + 1]};
    };
    Choosing& scratch = scratch_[static_cast<size_t>(kv_head)];
    score(head, q, scratch.scores);
    read_best(scratch.scores, o_.budget, n, slots, scratch, selection);
    // Of the vectors, and of the keys that the new token's own weights are worked out for.
    const int64_t open = head.slot.back();
    selection.index_bytes = head.vectors.bytes_of(head.spans() * per_span()) +
                            bytes_of(keys, {open, std::min(n, open + o_.span)}, shape_.d, 0);
  }

  void clear() override { heads_.clear(); }
  int64_t bytes() const override {
    int64_t total = 0;
    for (const Head& h : heads_)
      total += h.vectors.bytes() +
               static_cast<int64_t>(h.band.weights.capacity() * sizeof(float) +
                                    (h.ends.capacity() + h.slot.capacity() + h.picks.capacity()) * sizeof(int64_t));
    return total;
  }

 private:
  struct Head {
    Band band;                     // of the tokens that are in no span yet
    std::vector<int64_t> ends{0};  // positions: span s is [ends[s], ends[s + 1])
    std::vector<int64_t> slot{0};  // where its keys lie
    std::vector<int64_t> picks;    // [spans, vectors]: positions of its vectors; -1: none, or their mean
    VectorTable vectors;
    int64_t spans() const { return static_cast<int64_t>(ends.size()) - 1; }
  };
  int64_t per_span() const { return std::max<int64_t>(o_.vectors, 1); }

  void prepare(Head& head) const {
    head.vectors = VectorTable(shape_.d);
    head.band = {o_.block, o_.span, {}};
  }

  // What rows [row, row + rows) of the queries, all in one block, gave to the keys before them.
  void weigh(Head& head, const KeyView& keys, const NewQueries& queries, int64_t row, int64_t rows) {
    const int64_t n = keys.count(), d = shape_.d, open = head.ends.back();
    const int64_t first_row = n - queries.rows + row, end = first_row + rows;
    const int64_t begin = slot_at(keys, std::max(open, position_at(keys, first_row) - o_.span + 1));
    for (int64_t r = 0; r < rows; ++r)
      std::fill_n(&head.band.at(position_at(keys, first_row + r) - open, 0), o_.span, 0.0f);
    std::vector<float> k(static_cast<size_t>(kPanelKeys * d)), panel(k.size());
    std::vector<float> scores(static_cast<size_t>(rows * kPanelKeys));
    for (int64_t at = begin; at < end; at += kPanelKeys) {
      const int64_t count = std::min<int64_t>(kPanelKeys, end - at);
      read_keys(keys, at, count, d, shape_.isa, k.data());
      kernels_.pack(DType::kF32, k.data(), d, count, d, panel.data());
      for (int64_t g = 0; g < shape_.group; ++g) {
        kernels_.dots(queries.q + row * queries.row_stride + g * d, queries.row_stride, rows, d, panel.data(),
                      scores.data(), kPanelKeys);
        for (int64_t r = 0; r < rows; ++r) {
          const float lse = queries.lse[g * queries.lse_stride + row + r];
          const int64_t own = position_at(keys, first_row + r);
          for (int64_t j = 0; j < std::min(count, first_row + r + 1 - at); ++j) {
            const int64_t back = own - position_at(keys, at + j);
            if (back >= o_.span || back > own - open) continue;
            const float weight = std::exp(queries.scale * scores[static_cast<size_t>(r * kPanelKeys + j)] - lse);
            head.band.at(own - open, back) += std::isfinite(weight) ? weight : 0.0f;
          }
        }
      }
    }
  }

  // The tokens up to position `end` fall into spans.
  void add_spans(Head& head, const KeyView& keys, int64_t end) {
    const int64_t open = head.ends.back();
    int64_t begin = 0;
    for (int64_t span_end : find_spans(head.band, end - open, o_.threshold)) {
      head.ends.push_back(open + span_end);
      head.slot.push_back(slot_at(keys, open + span_end));
      pick(head, open, begin, span_end);
      write_vectors(head, keys, head.spans() - 1);
      begin = span_end;
    }
    head.band.clear();
  }

  // The keys of tokens [begin, end) of the block that these tokens gave most weight, or none for their mean.
  void pick(Head& head, int64_t open, int64_t begin, int64_t end) const {
    std::vector<std::pair<float, int64_t>> sums;
    for (int64_t j = begin; j < end; ++j) {
      float sum = 0;
      for (int64_t i = j; i < end; ++i) sum += head.band.at(i, i - j);
      sums.emplace_back(-sum, open + j);
    }
    std::sort(sums.begin(), sums.end());
    for (int64_t v = 0; v < per_span(); ++v)
      head.picks.push_back(v < std::min(o_.vectors, end - begin) ? sums[static_cast<size_t>(v)].second : -1);
  }

  // A vector that there is no key for is NaN, and never chosen.
  void write_vectors(Head& head, const KeyView& keys, int64_t span) const {
    const int64_t d = shape_.d;
    head.vectors.resize((span + 1) * per_span());
    const int64_t begin = head.slot[static_cast<size_t>(span)], end = head.slot[static_cast<size_t>(span) + 1];
    std::vector<float> row(static_cast<size_t>(d)), sum(row.size());
    for (int64_t v = 0; v < per_span(); ++v) {
      const int64_t wanted = head.picks[static_cast<size_t>(span * per_span() + v)];
      bool found = false;
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (int64_t slot = begin; slot < end; ++slot) {
        if (o_.vectors > 0 && position_at(keys, slot) != wanted) continue;
        read_keys(keys, slot, 1, d, shape_.isa, row.data());
        for (int64_t c = 0; c < d; ++c) sum[static_cast<size_t>(c)] += row[static_cast<size_t>(c)];
        found = true;
      }
      const float share = o_.vectors > 0 ? 1.0f : 1.0f / static_cast<float>(std::max<int64_t>(end - begin, 1));
      for (float& x : sum) x = found ? share * x : std::numeric_limits<float>::quiet_NaN();
      head.vectors.write(span * per_span() + v, sum);
    }
  }

  // Keys lie elsewhere, or were dropped.
  void locate(Head& head, const KeyView& keys) const {
    for (size_t s = 0; s < head.ends.size(); ++s) head.slot[s] = slot_at(keys, head.ends[s]);
    for (int64_t span = 0; span < head.spans(); ++span) write_vectors(head, keys, span);
  }

  // Of each span: the largest product of a query and one of its vectors.
  void score(const Head& head, const float* q, std::vector<float>& best) const {
    best.assign(static_cast<size_t>(head.spans()), kNone);
    head.vectors.products(kernels_, q, shape_.group, head.spans() * per_span(), [&](int64_t v, int64_t, float product) {
      float& most = best[static_cast<size_t>(v / per_span())];
      if (product > most) most = product;
    });
  }

  SelectorShape shape_;
  LtriOptions o_;
  const DenseKernels& kernels_;
  PerHead<Head> heads_;
  std::vector<Choosing> scratch_;  // of kv heads
};

constexpr Option kOptions[] = {
    {"budget", "tokens", "keys that a token reads", "1024", OptionType::kInteger, 1, 1e15},
    {"sinks", "tokens", "first keys that are always read, at most a quarter of the budget", "4", OptionType::kInteger,
     0, 1e9},
    {"recent", "tokens", "newest keys that are always read, at most half the budget", "128", OptionType::kInteger, 1,
     1e9},
    {"block", "tokens", "that are cut into spans together, at most `recent`", "128", OptionType::kInteger, 1, 4096},
    {"span", "tokens", "longest span, at most `block`", "32", OptionType::kInteger, 1, 4096},
    {"threshold", "", "weight that a span must have, in mean weights of its block a pair of tokens", "1",
     OptionType::kReal, 0, 1e6},
    {"vectors", "keys", "of a span that stand for it: those it gives most weight; 0: the mean of all", "0",
     OptionType::kInteger, 0, 64},
    {"dense", "layers", "first layers that read everything", "2", OptionType::kInteger, 0, 1e6}};
constexpr Paper kPapers[] = {
    {"Ltri-LLM: Streaming Long Context Inference for LLMs with Training-Free Dynamic Triangular Attention Pattern",
     "2412.04757", "100"}};

constexpr Entry kLtri = {
    .kind = Kind::kSelector,
    .name = "ltri",
    .room = "sparse",
    .equation =
        "spans: S[x,y] = sum over x <= j <= i <= y of (w[i,j] - t), the largest first, what overlaps it dropped;\n"
        "reads sinks, the newest keys and the spans of largest q.u, u the vectors of the span",
    .summary = "Cuts the text where attention shows triangles, and reads the spans that answer the query.",
    .options = kOptions,
    .in = {},
    .out = {},
    .papers = kPapers,
    .traits = {.exact_for = "texts within the budget", .forms = {}, .patterns = {}, .same_bits = SameBits::kStride},
    .notes =
        "The triangle's sum, its threshold, the suppression of what overlaps and retrieval by a vector a span are the "
        "paper's, as a summary and a reimplementation by others tell: its full text was not found. Here a triangle "
        "sums the weights of all heads that read a kv head, so each kv head has spans of its "
        "own; t is `threshold` times the mean weight of the block's pairs no further apart than a span, since weights "
        "shrink as the text grows; blocks keep the map of weights small and make spans independent of chunks; what "
        "lies between triangles falls into spans, too. Left out: how the paper tells static from dynamic index "
        "vectors, recall that lasts over tokens and the vote of retrieval heads. Prompts are read densely, and the "
        "weights near the diagonal are worked out a second time: 1.07 times the CPU time of a prompt of 4,096 tokens "
        "on SmolLM2. The index takes "
        "4 d bytes a span; on SmolLM2, where spans have four tokens, a quarter of what keys and values take.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      LtriOptions o{Budget::of(spec.integer("budget"), spec.integer("sinks"), spec.integer("recent")),
                    spec.integer("block"),
                    spec.integer("span"),
                    spec.integer("vectors"),
                    spec.integer("dense"),
                    spec.real("threshold")};
      // No token waits for its span longer than it is read.
      o.block = std::min(o.block, o.budget.recent);
      o.span = std::min(o.span, o.block);
      return std::make_unique<SelectorOf<LtriIndex, LtriOptions>>(o);
    }};

}  // namespace

void register_ltri(Registry& registry) {
  registry.add(kLtri);
}

}  // namespace attend
