// The long memory of InternLM-XComposer2.5-OmniLive: a stream in clips, each remembered as a few vectors, and the clips
// whose memory is most like the question read again.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "attend/simd/hook.h"
#include "attend/simd/key_rows.h"
#include "attend/sparse/selector.h"
#include "attend/tensor/registry.h"
#include "sparse/entries.h"
#include "sparse/fixed_dot.h"
#include "sparse/key_groups.h"
#include "sparse/selector_of.h"

namespace attend {
namespace {

struct ClipOptions {
  Budget budget;
  int64_t clip, keep, shortlist, dense_layers;
};

// The largest product of some row of x [rows, d] and some row of q [group, d]; a NaN is none.
struct LargestProduct {
  using Function = float (*)(const float* x, int64_t rows, const float* q, int64_t group, int64_t d);
  [[gnu::always_inline]] static inline float loop(const float* x, int64_t rows, const float* q, int64_t group,
                                                  int64_t d) {
    float most = -std::numeric_limits<float>::infinity();
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t g = 0; g < group; ++g) {
        const float product = fixed_dot(x + r * d, q + g * d, d);
        if (product > most) most = product;
      }
    return most;
  }
  ATTEND_TARGET_AVX2 static float avx2(const float* x, int64_t rows, const float* q, int64_t group, int64_t d) {
    return loop(x, rows, q, group, d);
  }
  ATTEND_TARGET_AVX512 static float avx512(const float* x, int64_t rows, const float* q, int64_t group, int64_t d) {
    return loop(x, rows, q, group, d);
  }
};

class ClipIndex : public SelectorIndex {
 public:
  ClipIndex(const SelectorShape& shape, const ClipOptions& options)
      : shape_(shape),
        o_(options),
        kernels_(dense_kernels(shape.isa)),
        largest_(shape.isa == Isa::kAvx2 ? LargestProduct::avx2 : LargestProduct::avx512),
        heads_(shape),
        scratch_(static_cast<size_t>(shape.kv_heads)) {
    clear();
  }

  static int64_t pays_from(const ClipOptions& options) { return kPayingBudgets * options.budget.keys; }

  // A clip is remembered once it is whole.
  void update(int layer, int kv_head, const KeyView& keys, int64_t from) override {
    if (layer < o_.dense_layers) return;
    Memory& memory = heads_.at(layer, kv_head);
    const int64_t d = shape_.d, clips = keys.count() / o_.clip;
    memory.long_term.resize(clips);
    memory.short_term.resize(static_cast<size_t>(clips * o_.keep * d));
    std::vector<float> rows(static_cast<size_t>(o_.clip * d)), sum(static_cast<size_t>(d));
    for (int64_t clip = from / o_.clip; clip < clips; ++clip) {
      read_keys(keys, clip * o_.clip, o_.clip, d, shape_.isa, rows.data());
      for (int64_t part = 0; part < o_.keep; ++part) {
        direction(rows.data(), part * o_.clip / o_.keep, (part + 1) * o_.clip / o_.keep, sum);
        std::copy(sum.begin(), sum.end(), memory.short_term.begin() + (clip * o_.keep + part) * d);
      }
      direction(rows.data(), 0, o_.clip, sum);
      memory.long_term.write(clip, sum);
    }
  }

  // A clip is remembered anew when its last key comes again, and those beyond the keys are not looked at.
  bool can_cut(int, int, int64_t) const override { return true; }

  void select(int layer, int kv_head, const KeyView& keys, const float* q, Selection& selection) override {
    const int64_t n = keys.count(), clips = n / o_.clip, d = shape_.d;
    selection.everything = layer < o_.dense_layers || n <= o_.budget.keys;
    if (selection.everything) return;
    const Memory& memory = heads_.at(layer, kv_head);
    Choosing& scratch = scratch_[static_cast<size_t>(kv_head)];
    std::vector<float>& question = scratch.question;
    question.assign(q, q + shape_.group * d);
    for (int64_t g = 0; g < shape_.group; ++g) {
      const float length = norm(q + g * d);
      for (int64_t c = 0; c < d; ++c) question[static_cast<size_t>(g * d + c)] /= length > 0 ? length : 1.0f;
    }
    std::vector<float>& best = scratch.scores;
    best.assign(static_cast<size_t>(clips), kNone);
    propose(memory, clips, scratch, selection.index_bytes);
    constexpr size_t kAhead = 8;  // clips, whose memory lies apart
    const int64_t width = o_.keep * d;
    for (size_t i = 0; i < scratch.proposed.size(); ++i) {
      const int64_t clip = scratch.proposed[i];
      const int64_t later = scratch.proposed[std::min(i + kAhead, scratch.proposed.size() - 1)];
      for (int64_t c = 0; c < width; c += 16) __builtin_prefetch(memory.short_term.data() + later * width + c);
      // The largest cosine of a question and a vector of the clip's short-term memory.
      best[static_cast<size_t>(clip)] =
          largest_(memory.short_term.data() + clip * width, o_.keep, question.data(), shape_.group, d);
      selection.index_bytes += width * static_cast<int64_t>(sizeof(float));
    }
    const auto slots = [&](int64_t clip) { return KeyRange{clip * o_.clip, (clip + 1) * o_.clip}; };
    read_best(best, o_.budget, n, slots, scratch, selection);
  }

  void clear() override {
    for (Memory& memory : heads_) memory = {VectorTable(shape_.d), {}};
  }
  int64_t bytes() const override {
    int64_t total = 0;
    for (const Memory& memory : heads_)
      total += memory.long_term.bytes() + static_cast<int64_t>(memory.short_term.capacity() * sizeof(float));
    return total;
  }

 private:
  struct Memory {                   // of vectors of length 1, so that a product with a question of length 1 is a cosine
    VectorTable long_term;          // a vector a clip
    std::vector<float> short_term;  // [clips, keep, d]
  };
  float norm(const float* x) const {
    float square = 0;
    for (int64_t c = 0; c < shape_.d; ++c) square += x[c] * x[c];
    return std::sqrt(square);
  }
  // Of the mean of rows [begin, end).
  void direction(const float* rows, int64_t begin, int64_t end, std::vector<float>& to) const {
    std::fill(to.begin(), to.end(), 0.0f);
    for (int64_t r = begin; r < end; ++r)
      for (int64_t c = 0; c < shape_.d; ++c) to[static_cast<size_t>(c)] += rows[r * shape_.d + c];
    const float length = norm(to.data());
    for (float& x : to) x = length > 0 ? x / length : 0.0f;
  }

  // Clips whose short-term memory is looked at: those that long-term memory finds most like the question, or all.
  void propose(const Memory& memory, int64_t clips, Choosing& scratch, int64_t& bytes) const {
    std::vector<int64_t>& proposed = scratch.proposed;
    proposed.resize(static_cast<size_t>(clips));
    std::iota(proposed.begin(), proposed.end(), int64_t{0});
    const int64_t fit = std::max<int64_t>(1, o_.budget.left() / o_.clip);
    if (o_.shortlist == 0 || clips / o_.shortlist < fit) return;
    std::vector<float>& likeness = scratch.likeness;
    likeness.assign(static_cast<size_t>(clips), kNone);
    memory.long_term.products(kernels_, scratch.question.data(), shape_.group, clips,
                              [&](int64_t clip, int64_t, float cosine) {
                                float& most = likeness[static_cast<size_t>(clip)];
                                if (cosine > most) most = cosine;
                              });
    bytes += memory.long_term.bytes_of(clips);
    const auto end = proposed.begin() + fit * o_.shortlist;
    std::nth_element(proposed.begin(), end - 1, proposed.end(), [&](int64_t a, int64_t b) {
      const float x = likeness[static_cast<size_t>(a)], y = likeness[static_cast<size_t>(b)];
      return x != y ? x > y : a > b;
    });
    proposed.erase(end, proposed.end());
  }

  static constexpr float kNone = -std::numeric_limits<float>::infinity();
  SelectorShape shape_;
  ClipOptions o_;
  const DenseKernels& kernels_;
  LargestProduct::Function largest_;
  PerHead<Memory> heads_;
  std::vector<Choosing> scratch_;  // of kv heads
};

constexpr Option kOptions[] = {
    {"budget", "tokens", "keys that a token reads", "1024", OptionType::kInteger, 1, 1e15},
    {"clip", "tokens", "that are remembered and read together, at most `recent`", "64", OptionType::kInteger, 1, 65536},
    {"keep", "vectors", "that a clip is compressed to, at most `clip`", "4", OptionType::kInteger, 1, 4096},
    {"shortlist", "clips", "that long-term memory proposes for each that is read; 0: all are looked at", "4",
     OptionType::kInteger, 0, 1e6},
    {"sinks", "tokens", "first keys that are always read, at most a quarter of the budget", "4", OptionType::kInteger,
     0, 1e9},
    {"recent", "tokens", "newest keys that are always read, at most half the budget", "128", OptionType::kInteger, 1,
     1e9},
    {"dense", "layers", "first layers that read everything", "2", OptionType::kInteger, 0, 1e6}};
constexpr Paper kPapers[] = {
    {"InternLM-XComposer2.5-OmniLive: A Comprehensive Multimodal System for Long-term Streaming Video and Audio "
     "Interactions",
     "2412.09596", "111"}};

constexpr Entry kOmniLive = {
    .kind = Kind::kSelector,
    .name = "omnilive",
    .room = "sparse",
    .equation =
        "short-term memory of clip c: H[c,m] = mean of the keys of its part m,  m < keep;  long-term: G[c] = mean of "
        "all\n"
        "reads sinks, the newest keys and, of the clips of largest cos(q, G[c]), those of largest max over m of "
        "cos(q, H[c,m])",
    .summary = "Remembers a stream as clips compressed to a few vectors, and reads the clips most like the question.",
    .options = kOptions,
    .in = {},
    .out = {},
    .papers = kPapers,
    .traits = {.exact_for = "texts within the budget", .forms = {}, .patterns = {}, .same_bits = SameBits::kStride},
    .notes =
        "The memory of the paper's section on long memory and of its authors' code: a stream in clips, each compressed "
        "to a short-term memory of a few vectors and, as long-term memory, to one; clips whose long-term memory has "
        "the "
        "largest cosine to the question are retrieved. shortlist=1 is that retrieval; short-term memory decides among "
        "more. The paper's compressor is a trained model, which makes the long-term memory with all clips in sight, "
        "and "
        "a vector of the question; untrained, mean keys and the newest token's queries stand for them. Retrieved clips "
        "are read exactly, not as their memory. A clip counts by the head of a group that wants it most. Clips are of "
        "slots; prompts are read densely.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      ClipOptions o{Budget::of(spec.integer("budget"), spec.integer("sinks"), spec.integer("recent")),
                    spec.integer("clip"), spec.integer("keep"), spec.integer("shortlist"), spec.integer("dense")};
      // A clip that is not whole is among the newest keys, and one at least fits beside them.
      o.clip = std::max<int64_t>(1, std::min({o.clip, o.budget.recent, o.budget.left()}));
      o.keep = std::min(o.keep, o.clip);
      return std::make_unique<SelectorOf<ClipIndex, ClipOptions>>(o);
    }};

}  // namespace

void register_omnilive(Registry& registry) {
  registry.add(kOmniLive);
}

}  // namespace attend
