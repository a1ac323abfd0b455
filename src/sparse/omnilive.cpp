// The long memory of InternLM-XComposer2.5-OmniLive: a stream in clips, each remembered as a few vectors, and the clips
// whose memory is most like the question read again.
#include <algorithm>
#include <cmath>
#include <limits>

#include "attend/simd/key_rows.h"
#include "attend/sparse/selector.h"
#include "attend/tensor/registry.h"
#include "sparse/entries.h"
#include "sparse/key_groups.h"

namespace attend {
namespace {

struct ClipOptions {
  Budget budget;
  int64_t clip, keep, dense_layers;
};

class ClipIndex : public SelectorIndex {
 public:
  ClipIndex(const SelectorShape& shape, const ClipOptions& options)
      : shape_(shape),
        o_(options),
        kernels_(dense_kernels(shape.isa)),
        heads_(static_cast<size_t>(shape.layers) * static_cast<size_t>(shape.kv_heads), VectorTable(shape.d)) {}

  // A clip is remembered once it is whole.
  void update(int layer, int kv_head, const KeyView& keys, int64_t from) override {
    if (layer < o_.dense_layers) return;
    VectorTable& memory = at(layer, kv_head);
    const int64_t d = shape_.d, clips = keys.count() / o_.clip;
    memory.resize(clips * o_.keep);
    std::vector<float> rows(static_cast<size_t>(o_.clip * d)), sum(static_cast<size_t>(d));
    for (int64_t clip = from / o_.clip; clip < clips; ++clip) {
      read_keys(keys, clip * o_.clip, o_.clip, d, shape_.isa, rows.data());
      for (int64_t part = 0; part < o_.keep; ++part) {
        std::fill(sum.begin(), sum.end(), 0.0f);
        for (int64_t r = part * o_.clip / o_.keep; r < (part + 1) * o_.clip / o_.keep; ++r)
          for (int64_t c = 0; c < d; ++c) sum[static_cast<size_t>(c)] += rows[static_cast<size_t>(r * d + c)];
        // Of length 1, so that a product with it is a cosine but for the query's length.
        const float length = std::sqrt(square(sum.data()));
        for (float& x : sum) x = length > 0 ? x / length : 0.0f;
        memory.write(clip * o_.keep + part, sum);
      }
    }
  }

  // A clip is remembered anew when its last key comes again, and those beyond the keys are not looked at.
  bool can_cut(int, int, int64_t) const override { return true; }

  void select(int layer, int kv_head, const KeyView& keys, const float* q, Selection& selection) override {
    const int64_t n = keys.count(), clips = n / o_.clip;
    selection.everything = layer < o_.dense_layers || n <= o_.budget.keys;
    if (selection.everything) return;
    const VectorTable& memory = at(layer, kv_head);
    std::vector<float> length;
    for (int64_t g = 0; g < shape_.group; ++g) length.push_back(std::sqrt(square(q + g * shape_.d)));
    std::vector<float> best(static_cast<size_t>(clips), -std::numeric_limits<float>::infinity());
    memory.products(kernels_, q, shape_.group, clips * o_.keep, [&](int64_t v, int64_t g, float product) {
      const float cosine = product / length[static_cast<size_t>(g)];
      float& most = best[static_cast<size_t>(v / o_.keep)];
      if (cosine > most) most = cosine;
    });
    const auto slots = [&](int64_t clip) { return KeyRange{clip * o_.clip, (clip + 1) * o_.clip}; };
    read_best(best, o_.budget, n, slots, selection);
    selection.index_bytes = memory.bytes_of(clips * o_.keep);
  }

  void clear() override {
    for (VectorTable& memory : heads_) memory = VectorTable(shape_.d);
  }
  int64_t bytes() const override {
    int64_t total = 0;
    for (const VectorTable& memory : heads_) total += memory.bytes();
    return total;
  }

 private:
  VectorTable& at(int layer, int kv_head) {
    return heads_[static_cast<size_t>(layer) * static_cast<size_t>(shape_.kv_heads) + static_cast<size_t>(kv_head)];
  }
  float square(const float* x) const {
    float sum = 0;
    for (int64_t c = 0; c < shape_.d; ++c) sum += x[c] * x[c];
    return sum;
  }

  SelectorShape shape_;
  ClipOptions o_;
  const DenseKernels& kernels_;
  std::vector<VectorTable> heads_;
};

struct OmniLive : Selector {
  explicit OmniLive(const ClipOptions& options) : o(options) {
    // A clip that is not whole is among the newest keys, and one at least fits beside them.
    o.clip = std::max<int64_t>(1, std::min({o.clip, o.budget.recent, o.budget.left()}));
    o.keep = std::min(o.keep, o.clip);
  }
  std::unique_ptr<SelectorIndex> open(const SelectorShape& shape) const override {
    return std::make_unique<ClipIndex>(shape, o);
  }
  ClipOptions o;
};

constexpr Option kOptions[] = {
    {"budget", "tokens", "keys that a token reads", "1024", OptionType::kInteger, 1, 1e15},
    {"clip", "tokens", "that are remembered and read together, at most `recent`", "64", OptionType::kInteger, 1, 65536},
    {"keep", "vectors", "that a clip is compressed to, at most `clip`", "4", OptionType::kInteger, 1, 4096},
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
        "memory of clip c: H[c,m] = mean of the keys of its part m,  m < keep\n"
        "reads sinks, the newest keys and the clips of largest max over m of cos(q, H[c,m])",
    .summary = "Remembers a stream as clips compressed to a few vectors, and reads the clips most like the question.",
    .options = kOptions,
    .in = {},
    .out = {},
    .papers = kPapers,
    .traits = {.exact_for = "texts within the budget", .forms = {}, .patterns = {}, .same_bits = SameBits::kStride},
    .notes =
        "The memory of the paper's section on long memory and of its authors' code: a stream in clips, each compressed "
        "to a short-term memory of a few vectors; clips whose memory has the largest cosine to the question are read. "
        "Its compressor is a trained model that also makes a global vector a clip with all clips in sight (long-term "
        "memory) and one of the question; untrained, a part's mean key stands for it, there is one level of memory, "
        "and "
        "the newest token's queries are the question. Retrieved clips are read exactly, not as their memory. A clip "
        "counts by the head of a group that wants it most. Clips are of slots; prompts are read densely.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return std::make_unique<OmniLive>(
          ClipOptions{Budget::of(spec.integer("budget"), spec.integer("sinks"), spec.integer("recent")),
                      spec.integer("clip"), spec.integer("keep"), spec.integer("dense")});
    }};

}  // namespace

void register_omnilive(Registry& registry) {
  registry.add(kOmniLive);
}

}  // namespace attend
