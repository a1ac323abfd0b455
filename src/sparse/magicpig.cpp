// MagicPIG: keys sampled by locality-sensitive hashes, with importance weights that make sums over them unbiased.
#include <algorithm>
#include <cmath>
#include <random>

#include "attend/simd/dense.h"
#include "attend/simd/key_rows.h"
#include "attend/sparse/selector.h"
#include "attend/tensor/registry.h"
#include "sparse/entries.h"

namespace attend {
namespace {

struct LshOptions {
  int64_t bits, tables, sinks, recent;  // bits: K, tables: L
  uint64_t seed;
};

// Random directions, bits x tables of them for each kv head, in panels as DenseKernels takes them.
class Directions {
 public:
  Directions(const SelectorShape& shape, const LshOptions& o)
      : kernels_(dense_kernels(shape.isa)),
        d_(shape.d),
        bits_(o.bits),
        tables_(o.tables),
        panels_((o.bits * o.tables + kPanelKeys - 1) / kPanelKeys),
        values_(static_cast<size_t>(shape.kv_heads * panels_ * kPanelKeys * shape.d)) {
    std::mt19937_64 random(o.seed);
    std::normal_distribution<float> normal;
    for (float& x : values_) x = normal(random);
  }

  // Which sides of the directions the rows of x [rows, d] lie on: codes [rows, tables].
  void codes(int kv_head, const float* x, int64_t rows, uint16_t* to) const {
    std::fill_n(to, rows * tables_, uint16_t{0});
    float side[kRows * kPanelKeys];
    for (int64_t first = 0; first < rows; first += kRows) {
      const int64_t count = std::min(kRows, rows - first);
      const float* panel = values_.data() + kv_head * panels_ * kPanelKeys * d_;
      for (int64_t bits = 0; bits < bits_ * tables_; bits += kPanelKeys, panel += kPanelKeys * d_) {
        kernels_.dots(x + first * d_, d_, count, d_, panel, side, kPanelKeys);
        for (int64_t r = 0; r < count; ++r)
          for (int64_t bit = bits; bit < std::min(bits + kPanelKeys, bits_ * tables_); ++bit) {
            uint16_t& code = to[(first + r) * tables_ + bit / bits_];
            code = static_cast<uint16_t>(code | (side[r * kPanelKeys + bit - bits] > 0 ? 1 << bit % bits_ : 0));
          }
      }
    }
  }

 private:
  static constexpr int64_t kRows = 32;  // at once
  const DenseKernels& kernels_;
  int64_t d_, bits_, tables_, panels_;
  std::vector<float> values_;
};

class LshIndex : public SelectorIndex {
 public:
  LshIndex(const SelectorShape& shape, const LshOptions& options)
      : shape_(shape),
        o_(options),
        directions_(shape, options),
        heads_(static_cast<size_t>(shape.layers) * static_cast<size_t>(shape.kv_heads)) {}

  void update(int layer, int kv_head, const KeyView&, int64_t from) override {
    // Keys that are new join the tables when a query comes.
    if (Head& head = at(layer, kv_head); from < head.end) head = Head();
  }

  // Not to before the tables were made: what they were then is lost.
  bool can_cut(int layer, int kv_head, int64_t count) const override {
    const Head& head = at(layer, kv_head);
    return head.end == 0 || head.end + o_.recent <= count;
  }

  void select(int layer, int kv_head, const KeyView& keys, const float* q, Selection& selection) override {
    const int64_t n = keys.count();
    // The first layer and the middle one are read whole, as the authors do.
    selection.everything = layer == 0 || layer == shape_.layers / 2 || n <= o_.sinks + 2 * o_.recent;
    if (selection.everything) return;
    Head& head = at(layer, kv_head);
    // Keys beyond the tables are all read, so those are made anew now and then.
    const int64_t most = std::max(4 * o_.recent, (head.end - head.begin) / 4);
    if (head.end == 0 || n - head.end > most) build(head, kv_head, keys);
    std::vector<float> log_weights(static_cast<size_t>(shape_.group * (head.end - head.begin)), -INFINITY);
    std::vector<int64_t> sampled;
    for (int g = 0; g < shape_.group; ++g)
      sample(head, kv_head, keys, q + g * shape_.d, log_weights.data() + g * (head.end - head.begin), sampled,
             selection.index_bytes);
    std::sort(sampled.begin(), sampled.end());
    sampled.erase(std::unique(sampled.begin(), sampled.end()), sampled.end());
    append_range(selection.slots, {0, head.begin});
    for (int64_t key : sampled) append_range(selection.slots, {head.begin + key, head.begin + key + 1});
    append_range(selection.slots, {head.end, n});
    const int64_t count = selection.count();
    selection.log_weights.assign(static_cast<size_t>(shape_.group * count), 0.0f);
    for (int g = 0; g < shape_.group; ++g)
      for (size_t i = 0; i < sampled.size(); ++i)
        selection.log_weights[static_cast<size_t>(g * count + head.begin) + i] =
            log_weights[static_cast<size_t>(g * (head.end - head.begin) + sampled[i])];
  }

  void clear() override { std::fill(heads_.begin(), heads_.end(), Head()); }
  int64_t bytes() const override {
    int64_t total = 0;
    for (const Head& h : heads_)
      total += static_cast<int64_t>((h.first.size() + h.keys.size()) * sizeof(uint32_t) +
                                    (h.mean.size() + h.norms.size()) * sizeof(float));
    return total;
  }

 private:
  struct Head {
    int64_t begin = 0, end = 0;      // slots in the tables
    std::vector<float> mean, norms;  // of these keys; of each key from the mean
    std::vector<uint32_t> first;     // [tables, 2^bits + 1]: where the keys of a code begin
    std::vector<uint32_t> keys;      // [tables, end - begin], by code
  };
  size_t index(int layer, int kv_head) const {
    return static_cast<size_t>(layer) * static_cast<size_t>(shape_.kv_heads) + static_cast<size_t>(kv_head);
  }
  Head& at(int layer, int kv_head) { return heads_[index(layer, kv_head)]; }
  const Head& at(int layer, int kv_head) const { return heads_[index(layer, kv_head)]; }

  void build(Head& head, int kv_head, const KeyView& keys) const {
    const int64_t d = shape_.d, codes = int64_t{1} << o_.bits;
    head.begin = o_.sinks, head.end = keys.count() - o_.recent;
    const int64_t n = head.end - head.begin;
    std::vector<float> rows(static_cast<size_t>(n * d));
    read_keys(keys, head.begin, n, d, shape_.isa, rows.data());
    head.mean.assign(static_cast<size_t>(d), 0.0f);
    for (int64_t j = 0; j < n; ++j)
      for (int64_t c = 0; c < d; ++c)
        head.mean[static_cast<size_t>(c)] += rows[static_cast<size_t>(j * d + c)] / static_cast<float>(n);
    head.norms.resize(static_cast<size_t>(n));
    std::vector<uint16_t> code(static_cast<size_t>(n * o_.tables));
    for (int64_t j = 0; j < n; ++j) {
      float* x = rows.data() + j * d;
      float square = 0;
      for (int64_t c = 0; c < d; ++c) x[c] -= head.mean[static_cast<size_t>(c)], square += x[c] * x[c];
      head.norms[static_cast<size_t>(j)] = std::sqrt(square);
    }
    directions_.codes(kv_head, rows.data(), n, code.data());
    head.first.assign(static_cast<size_t>(o_.tables * (codes + 1)), 0);
    head.keys.resize(static_cast<size_t>(o_.tables * n));
    for (int64_t t = 0; t < o_.tables; ++t) {
      uint32_t* first = head.first.data() + t * (codes + 1);
      for (int64_t j = 0; j < n; ++j) ++first[code[static_cast<size_t>(j * o_.tables + t)] + 1];
      for (int64_t c = 0; c < codes; ++c) first[c + 1] += first[c];
      std::vector<uint32_t> next(first, first + codes);
      for (int64_t j = 0; j < n; ++j)
        head.keys[static_cast<size_t>(t * n + next[code[static_cast<size_t>(j * o_.tables + t)]]++)] =
            static_cast<uint32_t>(j);
    }
  }

  // Keys that share the query's code in at least two tables, with -ln of how likely that is.
  void sample(const Head& head, int kv_head, const KeyView& keys, const float* q, float* log_weights,
              std::vector<int64_t>& sampled, int64_t& bytes) const {
    const int64_t d = shape_.d, n = head.end - head.begin, codes = int64_t{1} << o_.bits;
    std::vector<uint16_t> code(static_cast<size_t>(o_.tables));
    directions_.codes(kv_head, q, 1, code.data());
    std::vector<uint8_t> met(static_cast<size_t>(n), 0);
    const size_t before = sampled.size();
    // Tables lie all over memory: all places are asked for before the first is read.
    std::vector<const uint32_t*> places(static_cast<size_t>(o_.tables));
    for (size_t t = 0; t < places.size(); ++t) {
      places[t] = head.first.data() + static_cast<int64_t>(t) * (codes + 1) + code[t];
      __builtin_prefetch(places[t]);
    }
    for (size_t t = 0; t < places.size(); ++t)
      __builtin_prefetch(head.keys.data() + static_cast<int64_t>(t) * n + *places[t]);
    for (size_t t = 0; t < places.size(); ++t) {
      const uint32_t* keys_of = head.keys.data() + static_cast<int64_t>(t) * n;
      bytes += static_cast<int64_t>((places[t][1] - places[t][0]) * sizeof(uint32_t));
      for (uint32_t i = places[t][0]; i < places[t][1]; ++i) {
        const uint32_t j = keys_of[i];
        if (met[j] < 2 && ++met[j] == 2) sampled.push_back(j);
      }
    }
    float q_square = 0, q_mean = 0;
    for (int64_t c = 0; c < d; ++c) q_square += q[c] * q[c], q_mean += q[c] * head.mean[static_cast<size_t>(c)];
    std::vector<float> key(static_cast<size_t>(d));
    for (size_t i = before; i < sampled.size(); ++i) {
      if (i + kAhead < sampled.size()) fetch(keys, head.begin + sampled[i + kAhead]);
      const size_t j = static_cast<size_t>(sampled[i]);
      read_keys(keys, head.begin + sampled[i], 1, d, shape_.isa, key.data());
      float dot = 0;
#pragma omp simd reduction(+ : dot)
      for (int64_t c = 0; c < d; ++c) dot += q[c] * key[static_cast<size_t>(c)];
      const float norm = std::sqrt(q_square) * head.norms[j];
      log_weights[j] = -log_likelihood(norm > 0 ? (dot - q_mean) / norm : 0.0f);
    }
  }

  // Asks for a key that will be read soon, where that is easy to tell: rows at random wait for memory otherwise.
  static constexpr size_t kAhead = 16;
  void fetch(const KeyView& keys, int64_t slot) const {
    if (keys.runs.size() != 1) return;
    const auto* row =
        static_cast<const std::byte*>(keys.runs[0].k) + slot * keys.runs[0].k_stride * size_of(keys.k_type);
    for (int64_t at = 0; at < row_bytes(keys.k_type, shape_.d); at += 64) __builtin_prefetch(row + at);
  }

  // ln of the likelihood of at least two common codes, for vectors at an angle of this cosine.
  float log_likelihood(float cosine) const {
    const double side = 1 - std::acos(std::clamp(static_cast<double>(cosine), -1.0, 1.0)) / M_PI;
    const double one = std::pow(side, static_cast<double>(o_.bits)), l = static_cast<double>(o_.tables);
    const double fewer = std::pow(1 - one, l) + l * one * std::pow(1 - one, l - 1);
    // For small likelihoods the difference from 1 cancels: l (l - 1) / 2 pairs of tables, each with one^2.
    const double likely = l * one < 1e-4 ? l * (l - 1) / 2 * one * one : 1 - fewer;
    return static_cast<float>(std::log(std::max(likely, 1e-30)));
  }

  SelectorShape shape_;
  LshOptions o_;
  Directions directions_;
  std::vector<Head> heads_;
};

struct MagicPig : Selector {
  explicit MagicPig(const LshOptions& options) : o(options) {}
  std::unique_ptr<SelectorIndex> open(const SelectorShape& shape) const override {
    return std::make_unique<LshIndex>(shape, o);
  }
  LshOptions o;
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
        "are unbiased over seeds, their ratio is consistent. The tables take 4 L bytes a key and 4 L 2^K a head: more "
        "than the keys themselves; they are made anew each time keys beyond them reach a quarter. On SmolLM2 with "
        "5,500 keys a token takes 2.7 times as long as with dense reading: the tables lie at random in memory.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return std::make_unique<MagicPig>(LshOptions{spec.integer("bits"), spec.integer("tables"), spec.integer("sinks"),
                                                   spec.integer("recent"),
                                                   static_cast<uint64_t>(spec.integer("seed"))});
    }};

}  // namespace

void register_magicpig(Registry& registry) {
  registry.add(kMagicPig);
}

}  // namespace attend
