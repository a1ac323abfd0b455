// MagicPIG: keys sampled by locality-sensitive hashes, with importance weights that make sums over them unbiased.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "attend/simd/key_rows.h"
#include "attend/sparse/selector.h"
#include "attend/tensor/registry.h"
#include "sparse/entries.h"
#include "sparse/large_pages.h"
#include "sparse/lsh.h"
#include "sparse/rows_of.h"
#include "sparse/selector_of.h"

namespace attend {
namespace {

using lsh::Directions, lsh::Likelihood, lsh::Loops, lsh::LshOptions;

constexpr int64_t kSegment = 32768;  // keys whose tables are made together: slots fit 16 bits

class LshIndex : public SelectorIndex {
 public:
  static constexpr bool kGivesLogWeights = true;
  LshIndex(const SelectorShape& shape, const LshOptions& options)
      : shape_(shape),
        o_(options),
        directions_(shape, options),
        likelihood_(options),
        loops_(shape.isa),
        heads_(shape),
        scratch_(static_cast<size_t>(shape.kv_heads)) {}

  void update(int layer, int kv_head, const KeyView&, int64_t from) override {
    // Keys that are new join the tables when a query comes.
    if (Head& head = heads_.at(layer, kv_head); from < end_of(head)) head = Head();
  }

  // Not to before the tables were made: what they were then is lost.
  bool can_cut(int layer, int kv_head, int64_t count) const override {
    const int64_t end = end_of(heads_.at(layer, kv_head));
    return end == 0 || end + o_.recent <= count;
  }

  void save(int layer, int kv_head, StateWriter& out) const override { out.put(end_of(heads_.at(layer, kv_head))); }
  void load(int layer, int kv_head, const KeyView& keys, int64_t, StateReader& in) override {
    const int64_t end = in.get<int64_t>();
    StateReader::require(end == 0 || (end > o_.sinks && end <= keys.count() - o_.recent));
    if (end > 0) build(heads_.at(layer, kv_head), end, keys, scratch_[static_cast<size_t>(kv_head)]);
  }

  void select(int layer, int kv_head, const KeyView& keys, const float* q, Selection& selection) override {
    const int64_t n = keys.count();
    // The first layer and the middle one are read whole, as the authors do.
    selection.everything = layer == 0 || layer == shape_.layers / 2 || n <= o_.sinks + 2 * o_.recent;
    if (selection.everything) return;
    Head& head = heads_.at(layer, kv_head);
    Scratch& scratch = scratch_[static_cast<size_t>(kv_head)];
    extend(head, keys, scratch);
    const int64_t group = shape_.group, end = end_of(head);
    scratch.codes.resize(static_cast<size_t>(group * o_.tables));
    directions_.codes(q, group, scratch.codes.data());
    selection.index_bytes = directions_.bytes();
    scratch.sampled.clear(), scratch.weights.clear();
    for (const Segment& segment : head) sample(segment, keys, q, scratch, selection.index_bytes);

    const int64_t first = std::min(o_.sinks, end);
    append_range(selection.slots, {0, first});
    for (int64_t key : scratch.sampled) append_range(selection.slots, {key, key + 1});
    append_range(selection.slots, {end, n});
    const int64_t count = selection.count(), sampled = static_cast<int64_t>(scratch.sampled.size());
    selection.log_weights.assign(static_cast<size_t>(group * count), 0.0f);
    for (int64_t i = 0; i < sampled; ++i)
      for (int64_t g = 0; g < group; ++g)
        selection.log_weights[static_cast<size_t>(g * count + first + i)] =
            scratch.weights[static_cast<size_t>(i * group + g)];
  }

  void clear() override { heads_.clear(); }
  int64_t bytes() const override {
    int64_t total = directions_.bytes();
    for (const Head& head : heads_)
      for (const Segment& s : head)
        total +=
            static_cast<int64_t>((s.first.size() + s.keys.size()) * sizeof(uint16_t) + s.mean.size() * sizeof(float));
    return total;
  }

 private:
  struct Segment {
    int64_t begin = 0, end = 0;   // slots
    std::vector<float> mean;      // of these keys
    LargeVector<uint16_t> first;  // [tables, 2^bits + 1]: where the keys of a code begin
    LargeVector<uint16_t> keys;   // [tables, end - begin], by code
  };
  using Head = std::vector<Segment>;
  // A part of a table's keys within one line of memory, and where their meetings with a query are counted.
  struct Line {
    const uint16_t *from, *end;
    uint8_t* met;
  };
  struct Scratch {
    std::vector<Line> lines;
    std::vector<float> rows, dots, norms, weights;  // weights [sampled, group]
    std::vector<std::byte> bytes;
    std::vector<uint16_t> codes;
    std::vector<uint32_t> next;
    std::vector<uint8_t> met, all;  // [group, segment], [segment]
    std::vector<int64_t> sampled;   // ascending slots
  };
  static int64_t end_of(const Head& head) { return head.empty() ? 0 : head.back().end; }

  // Keys beyond the tables are all read, so the last segment is made anew now and then.
  void extend(Head& head, const KeyView& keys, Scratch& scratch) const {
    const int64_t n = keys.count();
    const int64_t last = head.empty() ? 0 : head.back().end - head.back().begin;
    if (!head.empty() && n - end_of(head) <= std::max(4 * o_.recent, last % kSegment / 4)) return;
    if (last < kSegment && !head.empty()) head.pop_back();
    build(head, n - o_.recent, keys, scratch);
  }

  // Segments of the keys up to slot `end`, beyond those that there are.
  void build(Head& head, int64_t end, const KeyView& keys, Scratch& scratch) const {
    for (int64_t begin = std::max(o_.sinks, end_of(head)); begin < end; begin += kSegment) {
      head.emplace_back();
      build(head.back(), begin, std::min(begin + kSegment, end), keys, scratch);
    }
  }

  void build(Segment& segment, int64_t begin, int64_t end, const KeyView& keys, Scratch& scratch) const {
    constexpr int64_t kRows = 512;  // at once
    const int64_t d = shape_.d, codes = int64_t{1} << o_.bits, n = end - begin;
    segment.begin = begin, segment.end = end;
    segment.mean.assign(static_cast<size_t>(d), 0.0f);
    scratch.rows.resize(static_cast<size_t>(kRows * d));
    auto each_part = [&](auto f) {
      for (int64_t first = 0; first < n; first += kRows) {
        const int64_t count = std::min(kRows, n - first);
        read_keys(keys, begin + first, count, d, shape_.isa, scratch.rows.data());
        f(first, count);
      }
    };
    each_part([&](int64_t, int64_t count) {
      for (int64_t j = 0; j < count; ++j)
        for (int64_t c = 0; c < d; ++c)
          segment.mean[static_cast<size_t>(c)] += scratch.rows[static_cast<size_t>(j * d + c)] / static_cast<float>(n);
    });
    std::vector<uint16_t> code(static_cast<size_t>(n * o_.tables));
    each_part([&](int64_t first, int64_t count) {
      for (int64_t j = 0; j < count; ++j)
        for (int64_t c = 0; c < d; ++c)
          scratch.rows[static_cast<size_t>(j * d + c)] -= segment.mean[static_cast<size_t>(c)];
      directions_.codes(scratch.rows.data(), count, code.data() + first * o_.tables);
    });
    segment.first.resize(static_cast<size_t>(o_.tables * (codes + 1)));
    segment.keys.resize(static_cast<size_t>(o_.tables * n));
    for (int64_t t = 0; t < o_.tables; ++t) {
      scratch.next.assign(static_cast<size_t>(codes + 1), 0);
      for (int64_t j = 0; j < n; ++j) ++scratch.next[code[static_cast<size_t>(j * o_.tables + t)] + size_t{1}];
      for (int64_t c = 0; c < codes; ++c)
        scratch.next[static_cast<size_t>(c + 1)] += scratch.next[static_cast<size_t>(c)];
      for (int64_t c = 0; c <= codes; ++c)
        segment.first[static_cast<size_t>(t * (codes + 1) + c)] =
            static_cast<uint16_t>(scratch.next[static_cast<size_t>(c)]);
      for (int64_t j = 0; j < n; ++j)
        segment.keys[static_cast<size_t>(t * n + scratch.next[code[static_cast<size_t>(j * o_.tables + t)]]++)] =
            static_cast<uint16_t>(j);
    }
  }

  // Adds the keys of a segment that share some query's code in at least two tables, each with -ln of how likely that
  // is.
  void sample(const Segment& segment, const KeyView& keys, const float* q, Scratch& scratch, int64_t& bytes) const {
    const int64_t group = shape_.group, n = segment.end - segment.begin;
    const int64_t padded = (n + 63) / 64 * 64;
    scratch.met.assign(static_cast<size_t>(group * padded), 0);
    scratch.all.assign(static_cast<size_t>(padded), 0);
    count(segment, padded, scratch, bytes);
    for (int64_t g = 0; g < group; ++g) loops_.met(scratch.met.data() + g * padded, padded, scratch.all.data());
    const size_t before = scratch.sampled.size();
    for (int64_t at = 0; at < padded; at += 8) {
      uint64_t word;
      std::memcpy(&word, scratch.all.data() + at, sizeof word);
      for (; word; word &= word - 1) scratch.sampled.push_back(segment.begin + at + std::countr_zero(word) / 8);
    }
    weigh(segment, keys, q, before, padded, scratch);
  }

  // How often keys meet the codes of each query, at most twice.
  void count(const Segment& segment, int64_t padded, Scratch& scratch, int64_t& bytes) const {
    constexpr uintptr_t kLine = 64;  // bytes
    constexpr size_t kAhead = 48;    // lines
    const int64_t n = segment.end - segment.begin, codes = int64_t{1} << o_.bits, group = shape_.group;
    auto place = [&](int64_t g, int64_t t) {
      return segment.first.data() + t * (codes + 1) + scratch.codes[static_cast<size_t>(g * o_.tables + t)];
    };
    // Tables lie all over memory: their lines are listed first and then each asked for well before it is read.
    for (int64_t g = 0; g < group; ++g)
      for (int64_t t = 0; t < o_.tables; ++t) __builtin_prefetch(place(g, t));
    std::vector<Line>& lines = scratch.lines;
    lines.clear();
    for (int64_t g = 0; g < group; ++g)
      for (int64_t t = 0; t < o_.tables; ++t) {
        const uint16_t *from = segment.keys.data() + t * n + place(g, t)[0],
                       *end = from - place(g, t)[0] + place(g, t)[1];
        bytes += static_cast<int64_t>((2 + static_cast<size_t>(end - from)) * sizeof(uint16_t));
        while (from < end) {
          const auto* next = reinterpret_cast<const uint16_t*>((reinterpret_cast<uintptr_t>(from) / kLine + 1) * kLine);
          lines.push_back({from, std::min(next, end), scratch.met.data() + g * padded});
          from = next;
        }
      }
    for (size_t i = 0; i < std::min(kAhead, lines.size()); ++i) __builtin_prefetch(lines[i].from);
    for (size_t i = 0; i < lines.size(); ++i) {
      if (i + kAhead < lines.size()) __builtin_prefetch(lines[i + kAhead].from);
      uint8_t* met = lines[i].met;
      for (const uint16_t* key = lines[i].from; key < lines[i].end; ++key)
        met[*key] = static_cast<uint8_t>(met[*key] + (met[*key] < 2 ? 1 : 0));
    }
  }

  // Cosines of the angles between queries and keys, less the mean, in panels of 64 keys.
  void weigh(const Segment& segment, const KeyView& keys, const float* q, size_t first, int64_t padded,
             Scratch& scratch) const {
    constexpr int64_t kAhead = 48;  // rows
    const int64_t d = shape_.d, group = shape_.group, count = static_cast<int64_t>(scratch.sampled.size());
    // Stages of a store follow one another: keys that are coded in several ways differ at the ends.
    const KeyRun &oldest = keys.runs.front(), &newest = keys.runs.back();
    const bool uniform = oldest.k_type == newest.k_type && !is_by_channel(oldest.k_type);
    const DType type = uniform ? oldest.k_type : DType::kF32;
    const int64_t row = row_bytes(type, d);
    const DenseKernels& kernels = dense_kernels(shape_.isa);
    scratch.bytes.resize(static_cast<size_t>(kPanelKeys * row));
    scratch.rows.resize(static_cast<size_t>(kPanelKeys * d));
    scratch.dots.resize(static_cast<size_t>(group * kPanelKeys));
    scratch.norms.assign(static_cast<size_t>(2 * group), 0);
    float *norms = scratch.norms.data(), *offsets = norms + group;  // |q|^2, q . mean
    for (int64_t g = 0; g < group; ++g)
      for (int64_t c = 0; c < d; ++c) {
        norms[g] += q[g * d + c] * q[g * d + c];
        offsets[g] += q[g * d + c] * segment.mean[static_cast<size_t>(c)];
      }
    scratch.weights.resize(static_cast<size_t>(count * group));
    RowsOf rows(keys), ahead(keys);
    const int64_t* slots = scratch.sampled.data();
    int64_t asked = static_cast<int64_t>(first);
    for (int64_t begin = asked; begin < count; begin += kPanelKeys) {
      const int64_t width = std::min<int64_t>(kPanelKeys, count - begin);
      for (int64_t j = 0; j < width; ++j) {
        for (; asked < std::min(count, begin + j + kAhead); ++asked) ahead.fetch(slots[asked], d);
        const RowRun key = rows.at(slots[begin + j]);
        std::byte* to = scratch.bytes.data() + j * row;
        if (uniform)
          std::memcpy(to, key.data, static_cast<size_t>(row));
        else
          kernels.widen_run(key, 1, d, reinterpret_cast<float*>(to), 0);
      }
      kernels.pack(type, scratch.bytes.data(), row / size_of(type), width, d, scratch.rows.data());
      kernels.dots(q, d, group, d, scratch.rows.data(), scratch.dots.data(), kPanelKeys);
      float squares[kPanelKeys];
      loops_.squares(scratch.rows.data(), segment.mean.data(), d, squares);
      for (int64_t g = 0; g < group; ++g) {
        float cosines[kPanelKeys];
        loops_.cosines(scratch.dots.data() + g * kPanelKeys, offsets[g], norms[g], squares, cosines);
        const uint8_t* met = scratch.met.data() + g * padded;
        float* to = scratch.weights.data() + begin * group + g;
        for (int64_t j = 0; j < width; ++j)
          to[j * group] = met[slots[begin + j] - segment.begin] ? likelihood_.log_weight(cosines[j]) : -INFINITY;
      }
    }
  }

  SelectorShape shape_;
  LshOptions o_;
  Directions directions_;
  Likelihood likelihood_;
  Loops loops_;
  PerHead<Head> heads_;
  std::vector<Scratch> scratch_;  // of kv heads
};

constexpr Option kOptions[] = {
    {"bits", "", "K: bits of a code; more make tables more selective", "10", OptionType::kInteger, 1, 12},
    {"tables", "", "L: tables; a key is read if it meets the query in two", "150", OptionType::kInteger, 2, 1000},
    {"sinks", "tokens", "first keys that are always read", "4", OptionType::kInteger, 0, 1e9},
    {"recent", "tokens", "newest keys that are always read", "64", OptionType::kInteger, 1, 1e9},
    {"seed", "", "of the random directions", "1", OptionType::kInteger, 0, 1e15}};
constexpr Paper kPapers[] = {{"MagicPIG: LSH Sampling for Efficient LLM Generation", "2410.16179", "151"}};

constexpr Entry kMagicPig = {
    .kind = Kind::kSelector,
    .name = "magicpig",
    .room = "sparse",
    .equation =
        "o = sum over sampled j of exp(q.k[j]) / u[j] v[j]  over  sum over sampled j of exp(q.k[j]) / u[j],\n"
        "u = 1 - (1 - p^K)^L - L p^K (1 - p^K)^(L-1),  p = 1 - angle(q, k[j] - mean) / pi",
    .summary = "Reads a random sample of keys that lie in the query's direction, each weighted by how likely it was.",
    .options = kOptions,
    .in = {},
    .out = {},
    .papers = kPapers,
    .traits = {.exact_for = "texts within sinks and twice the recent tokens",
               .forms = {},
               .patterns = {},
               .same_bits = SameBits::kStride},
    .notes =
        "Section 4, Algorithm 1; prompts, the first and the middle layer are read densely. Numerator and denominator "
        "are unbiased over seeds, their ratio is consistent. Tables are made for 32,768 keys at a time, each such "
        "segment with a mean of its own, so that slots take 16 bits: 2 L bytes a key (more than f16 keys of d 64 and "
        "their values) and 2 L 2^K a segment; the last segment is made anew each time keys beyond it reach a quarter "
        "of it. All heads and layers share the directions. Keys that are sampled lie at random in memory, where each "
        "costs "
        "some ten of those that a dense step reads in order: it gains where less than a tenth is sampled. With more "
        "bits fewer are (`attend bench sparse/magicpig` measures bits=11), and the result is less sure.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return std::make_unique<SelectorOf<LshIndex, LshOptions>>(
          LshOptions{spec.integer("bits"), spec.integer("tables"), spec.integer("sinks"), spec.integer("recent"),
                     static_cast<uint64_t>(spec.integer("seed"))});
    }};

}  // namespace

void register_magicpig(Registry& registry) {
  registry.add(kMagicPig);
}

}  // namespace attend
