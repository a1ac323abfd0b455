// RetrievalAttention: a graph over the keys of a prompt, made under the guidance of its queries, finds those of the
// largest products with a query.
#include <algorithm>

#include "attend/sparse/selector.h"
#include "attend/tensor/registry.h"
#include "sparse/entries.h"
#include "sparse/key_graph.h"
#include "sparse/key_groups.h"
#include "sparse/selector_of.h"

namespace attend {
namespace {

struct GraphOptions {
  Budget budget;
  int64_t degree, effort, queries, dense_layers;
};

class GraphIndex : public SelectorIndex {
 public:
  GraphIndex(const SelectorShape& shape, const GraphOptions& options)
      : shape_(shape), o_(options), heads_(shape), scratch_(static_cast<size_t>(shape.kv_heads)) {}

  // Keys that are new join the graph when they are no longer among the newest ones.
  void update(int layer, int kv_head, const KeyView&, int64_t from) override {
    if (Head& head = heads_.at(layer, kv_head); from < head.graph.end()) head.graph = KeyGraph();
  }
  bool can_cut(int layer, int kv_head, int64_t count) const override {
    const Head& head = heads_.at(layer, kv_head);
    return head.graph.end() + o_.budget.recent <= count && head.sampled <= count;
  }

  // Every 1, 2, 4.. tokens' queries are kept, as many as fit.
  bool wants_queries(int layer) const override { return layer >= o_.dense_layers; }
  void queried(int layer, int kv_head, const KeyView& keys, const NewQueries& queries) override {
    Head& head = heads_.at(layer, kv_head);
    const int64_t first = keys.count() - queries.rows, width = shape_.group * shape_.d;
    const int64_t most = std::max<int64_t>(1, o_.queries / shape_.group);
    for (int64_t r = 0; r < queries.rows; ++r) {
      const int64_t position = position_at(keys, first + r);
      if (position % head.every != 0) continue;
      const float* q = queries.q + r * queries.row_stride;
      head.queries.insert(head.queries.end(), q, q + width);
      head.positions.push_back(position);
      head.sampled = position + 1;
      if (static_cast<int64_t>(head.positions.size()) <= most) continue;
      head.every *= 2;
      size_t kept = 0;
      for (size_t i = 0; i < head.positions.size(); ++i) {
        if (head.positions[i] % head.every != 0) continue;
        std::copy_n(head.queries.begin() + static_cast<std::ptrdiff_t>(i) * width, width,
                    head.queries.begin() + static_cast<std::ptrdiff_t>(kept) * width);
        head.positions[kept++] = head.positions[i];
      }
      head.positions.resize(kept);
      head.queries.resize(kept * static_cast<size_t>(width));
    }
  }

  void save(int layer, int kv_head, StateWriter& out) const override {
    const Head& head = heads_.at(layer, kv_head);
    out.put(head.queries), out.put(head.positions), out.put(head.every), out.put(head.sampled);
    head.graph.save(out);
  }
  void load(int layer, int kv_head, const KeyView& keys, int64_t next, StateReader& in) override {
    const int64_t most = std::max<int64_t>(1, o_.queries / shape_.group);
    Head head;
    in.get(head.queries, most * shape_.group * shape_.d);
    in.get(head.positions, most);
    head.every = in.get<int64_t>(), head.sampled = in.get<int64_t>();
    StateReader::require(head.queries.size() == head.positions.size() * static_cast<size_t>(shape_.group * shape_.d) &&
                         head.every > 0 && head.sampled >= 0 && head.sampled <= next);
    head.graph = KeyGraph(o_.budget.sinks, o_.degree, shape_.d, shape_.isa);
    head.graph.load(in, std::max<int64_t>(0, keys.count() - o_.budget.recent - o_.budget.sinks));
    if (head.graph.end() == o_.budget.sinks) head.graph = KeyGraph();
    heads_.at(layer, kv_head) = std::move(head);
  }

  void select(int layer, int kv_head, const KeyView& keys, const float* q, Selection& selection) override {
    const int64_t n = keys.count();
    selection.everything = layer < o_.dense_layers || n <= o_.budget.keys;
    if (selection.everything) return;
    Head& head = heads_.at(layer, kv_head);
    Scratch& scratch = scratch_[static_cast<size_t>(kv_head)];
    const int64_t sinks = o_.budget.sinks, near = n - o_.budget.recent;
    if (head.graph.end() == 0) {
      head.graph = KeyGraph(sinks, o_.degree, shape_.d, shape_.isa);
      head.graph.build(keys, near - sinks, head.queries, std::max(o_.degree, kBuildEffort), scratch.graph);
    }
    while (head.graph.end() < near) head.graph.insert(keys, std::max(o_.degree, kBuildEffort), scratch.graph);
    scratch.graph.reads = 0;
    // What the budget leaves is shared out among the heads of the group; a key that two want is read once.
    const int64_t group = shape_.group, left = o_.budget.left();
    scratch.chosen.clear();
    for (int64_t g = 0; g < group; ++g) {
      const int64_t share = left * (g + 1) / group - left * g / group;
      if (share == 0) continue;
      head.graph.search(keys, q + g * shape_.d, share, o_.effort, scratch.graph, scratch.slots);
      scratch.chosen.insert(scratch.chosen.end(), scratch.slots.begin(), scratch.slots.end());
    }
    std::sort(scratch.chosen.begin(), scratch.chosen.end());
    append_range(selection.slots, {0, sinks});
    for (int64_t slot : scratch.chosen) append_range(selection.slots, {slot, slot + 1});
    append_range(selection.slots, {near, n});
    selection.index_bytes =
        scratch.graph.reads * (bytes_of(keys, {0, n}, shape_.d, 0) / n + static_cast<int64_t>(sizeof(int32_t)));
  }

  void clear() override { heads_.clear(); }
  int64_t bytes() const override {
    int64_t total = 0;
    for (const Head& head : heads_)
      total += head.graph.bytes() + static_cast<int64_t>(head.queries.capacity() * sizeof(float) +
                                                         head.positions.capacity() * sizeof(int64_t));
    return total;
  }

 private:
  static constexpr int64_t kBuildEffort = 32;
  struct Head {
    KeyGraph graph;
    std::vector<float> queries;  // [positions, group, d]
    std::vector<int64_t> positions;
    int64_t every = 1, sampled = 0;
  };
  struct Scratch {
    KeyGraph::Scratch graph;
    std::vector<int64_t> slots, chosen;
  };

  SelectorShape shape_;
  GraphOptions o_;
  PerHead<Head> heads_;
  std::vector<Scratch> scratch_;  // of kv heads
};

constexpr Option kOptions[] = {
    {"budget", "tokens", "keys that a token reads", "740", OptionType::kInteger, 1, 1e15},
    {"sinks", "tokens", "first keys that are always read, at most a quarter of the budget", "128", OptionType::kInteger,
     0, 1e9},
    {"recent", "tokens", "newest keys that are always read, at most two thirds of what sinks leave", "512",
     OptionType::kInteger, 1, 1e9},
    {"degree", "edges", "of a key", "32", OptionType::kInteger, 2, 512},
    {"effort", "keys", "that a search keeps on its way, at least as many as it is to find", "64", OptionType::kInteger,
     1, 1e6},
    {"queries", "", "of the text, for each kv head, that the graph is made after", "1024", OptionType::kInteger, 1,
     1e6},
    {"dense", "layers", "first layers that read everything", "0", OptionType::kInteger, 0, 1e6}};
constexpr Paper kPapers[] = {
    {"RetrievalAttention: Accelerating Long-Context LLM Inference via Vector Retrieval", "2409.10516", ""},
    {"RoarGraph: A Projected Bipartite Graph for Efficient Cross-Modal Approximate Nearest Neighbor Search",
     "2408.08933", ""}};
constexpr std::string_view kAliases[] = {"retrieval"};

constexpr Entry kGraph = {
    .kind = Kind::kSelector,
    .name = "graph",
    .room = "sparse",
    .equation =
        "reads sinks, the newest keys and, for each query head, about the (budget - sinks - recent) / group keys of\n"
        "largest q.k, found by a best-first walk over a graph of keys",
    .summary = "Walks a graph over keys, made after the prompt's own queries, to those of the largest scores.",
    .options = kOptions,
    .in = {},
    .out = {},
    .papers = kPapers,
    .traits = {.exact_for = "texts within the budget", .forms = {}, .patterns = {}, .same_bits = SameBits::kStride},
    .notes =
        "RetrievalAttention (128 sinks, 512 newest keys and 100 found ones are its sizes): "
        "queries lie elsewhere than keys, so a graph of keys near each other misleads them; edges follow RoarGraph: "
        "the key that a query of the text wants most leads to those that it wants next. Differs: a sample of the "
        "text's queries guides the graph (the paper takes all, on a GPU); edges back from wanted keys, without "
        "pruning; what no query wanted is linked by inserting each key among its nearest ones, as in navigable small "
        "worlds, which keys of decoded tokens do, too (the paper leaves these in the window); one graph a kv head; "
        "searches begin at the keys wanted most often. Keys that move make the graph anew. The graph is made when the "
        "first token is decoded, on the threads of its step, and takes 4 degree bytes a key beside the queries: "
        "seconds "
        "where a prompt of 2,048 tokens of SmolLM2 takes as many, so that it pays only where many tokens follow. Small "
        "budgets of long texts are its place: a search looks at about effort times degree keys.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      const GraphOptions o{Budget::with_window(spec.integer("budget"), spec.integer("sinks"), spec.integer("recent")),
                           spec.integer("degree"), spec.integer("effort"), spec.integer("queries"),
                           spec.integer("dense")};
      return std::make_unique<SelectorOf<GraphIndex, GraphOptions>>(o);
    },
    .aliases = kAliases};

}  // namespace

void register_graph(Registry& registry) {
  registry.add(kGraph);
}

}  // namespace attend
