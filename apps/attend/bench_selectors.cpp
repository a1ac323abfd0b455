// Selectors: a token that chooses and reads a part of long stores, beside one that reads all of it and one that reads
// as many keys as were chosen.
//
// Keys are synthetic, after what models' keys are like: all share an offset larger than what tells them apart (4 a
// channel, in a quarter of the channels), and runs of 64 to 512 tokens share a topic (deviation 0.4 a channel). The
// rest is a key's own: it follows the key before it (correlation 0.9), and its deviation falls with the channel as 1.2
// / (1 + c / 16). A query head looks for one key: that key's scaled score is about 14 above the mean of the rest, about
// half of the weight; heads look for different keys. Values are normal. The error is |out - exact| / |exact| over all
// heads, a mean over 16 tokens.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "attend/exact/softmax.h"
#include "attend/exact/weight_statistics.h"
#include "attend/simd/isa.h"
#include "attend/sparse/selected_keys.h"
#include "attend/tensor/npy.h"
#include "attend/tensor/parallel.h"
#include "attend/tensor/registry.h"
#include "bench.h"
#include "bench_inputs.h"

namespace attend::app {
namespace {

constexpr int64_t kHeads = 8, kKvHeads = 2, kGroup = kHeads / kKvHeads, kTokens = 16;

// One layer of keys and values, and queries [tokens, heads, d].
struct Layer {
  std::vector<Array> k, v;  // of a kv head
  std::vector<KeyRun> runs;
  std::vector<KeyView> keys;
};

struct Text {
  std::vector<float> own;      // [kv heads, n, d]: what tells a key from others
  std::vector<float> queries;  // [tokens, heads, d]
};

Text draw(int64_t n, int64_t d, Layer& layer) {
  std::mt19937_64 random(7);
  std::normal_distribution<float> normal;
  Text text;
  text.own.resize(static_cast<size_t>(kKvHeads * n * d));
  for (int64_t h = 0; h < kKvHeads; ++h) {
    std::vector<float> offset(static_cast<size_t>(d)), topic(offset);
    for (int64_t c = 0; c < d; ++c) offset[static_cast<size_t>(c)] = c % 4 ? 0.0f : 4 * normal(random);
    layer.k.push_back(make_array(DType::kF16, 2, {n, d})), layer.v.push_back(make_array(DType::kF16, 2, {n, d}));
    int64_t end = 0;
    for (int64_t j = 0; j < n; ++j) {
      if (j == end) {
        end += 64 + static_cast<int64_t>(random() % 449);
        for (float& x : topic) x = 0.4f * normal(random);
      }
      for (int64_t c = 0; c < d; ++c) {
        const size_t at = static_cast<size_t>((h * n + j) * d + c);
        const float deviation = 1.2f / (1 + static_cast<float>(c) / 16);
        text.own[at] = 0.436f * deviation * normal(random) + (j ? 0.9f * text.own[at - static_cast<size_t>(d)] : 0.0f);
        *layer.k.back().view.at<F16>({j, c}) =
            to_f16(offset[static_cast<size_t>(c)] + topic[static_cast<size_t>(c)] + text.own[at]);
        *layer.v.back().view.at<F16>({j, c}) = to_f16(normal(random));
      }
    }
  }
  int64_t first[kHeads];
  for (int64_t& target : first) target = static_cast<int64_t>(random() % static_cast<uint64_t>(n - kTokens));
  for (int64_t t = 0; t < kTokens; ++t)
    for (int64_t h = 0; h < kHeads; ++h) {
      const int64_t target = first[h] + t;
      const float* own = text.own.data() + (h / kGroup * n + target) * d;
      float square = 0;
      for (int64_t c = 0; c < d; ++c) square += own[c] * own[c];
      const float factor = 20 * std::sqrt(static_cast<float>(d)) / square;
      for (int64_t c = 0; c < d; ++c) text.queries.push_back(factor * own[c] + 0.1f * normal(random));
    }
  return text;
}

void bind(Layer& layer, int64_t n, int64_t d) {
  for (size_t h = 0; h < static_cast<size_t>(kKvHeads); ++h)
    layer.runs.push_back({.k = layer.k[h].view.data,
                          .v = layer.v[h].view.data,
                          .k_stride = d,
                          .v_stride = d,
                          .first_slot = 0,
                          .count = n,
                          .k_type = DType::kF16,
                          .v_type = DType::kF16});
  for (const KeyRun& run : layer.runs) layer.keys.push_back({{&run, 1}, {}});
}

// A model's step over one layer: choose for each kv head, then attend to what was chosen.
struct Reader {
  SelectorIndex& index;
  int64_t d;
  Context& context;
  std::vector<Selection> selections = std::vector<Selection>(kKvHeads);
  std::vector<SelectedKeys> selected = std::vector<SelectedKeys>(kKvHeads);
  std::vector<KeyView> chosen = std::vector<KeyView>(kKvHeads);
  std::vector<float> bias{};
  Array lse = make_array(DType::kF32, 3, {1, kHeads, 1});
  std::vector<std::vector<float>> weights = std::vector<std::vector<float>>(kHeads);

  View view(float* x) const { return dense_view(x, DType::kF32, {1, kHeads, 1, d}); }

  // Gives the bytes that it read.
  double step(int layer, const Layer& keys, float* q, float* out) {
    parallel_for(context.threads, kKvHeads, [&](int64_t h, int) {
      Selection& selection = selections[static_cast<size_t>(h)];
      selection = Selection();
      index.select(layer, static_cast<int>(h), keys.keys[static_cast<size_t>(h)], q + h * kGroup * d, selection);
      if (selection.everything) selection.slots.assign(1, {0, keys.keys[static_cast<size_t>(h)].count()});
      selected[static_cast<size_t>(h)].cut(keys.keys[static_cast<size_t>(h)], selection, d, d, false, kGroup);
    });
    int64_t most = 0, bytes = 0;
    for (size_t h = 0; h < selections.size(); ++h) {
      chosen[h] = selected[h].view();
      most = std::max(most, chosen[h].count());
      bytes += selections[h].index_bytes + 2 * chosen[h].count() * row_bytes(DType::kF16, d);
    }
    Qkv in{.q = view(q), .keys = chosen, .dv = d};
    if (!selections[0].log_weights.empty()) {
      bias.assign(static_cast<size_t>(kHeads * most), 0.0f);
      for (size_t h = 0; h < selections.size(); ++h)
        for (size_t g = 0; g < static_cast<size_t>(kGroup); ++g) {
          const size_t count = static_cast<size_t>(chosen[h].count());
          std::copy_n(selections[h].log_weights.begin() + static_cast<std::ptrdiff_t>(g * count), count,
                      bias.begin() + static_cast<std::ptrdiff_t>((h * kGroup + g) * static_cast<size_t>(most)));
        }
      in.bias = dense_view(bias.data(), DType::kF32, {1, kHeads, 1, most});
    }
    softmax_attention(in, {}, {.out = view(out), .lse = lse.view}, context);
    if (selections[0].everything && index.wants_weights(layer)) weigh(layer, in, q);
    return static_cast<double>(bytes);
  }

  void weigh(int layer, const Qkv& in, const float* q) {
    std::vector<KeyStatistics> places;
    for (size_t h = 0; h < weights.size(); ++h) {
      weights[h].assign(static_cast<size_t>(in.keys[h / kGroup].count()), 0.0f);
      places.push_back({.sum = weights[h].data()});
    }
    add_weights(in, {}, lse.view, {places}, context);
    for (size_t h = 0; h < static_cast<size_t>(kKvHeads); ++h)
      index.weighed(layer, static_cast<int>(h), q + static_cast<int64_t>(h) * kGroup * d,
                    std::span(weights).subspan(h * kGroup, kGroup));
  }
};

// `tokens`: a call's, so that what is done once in a while takes part. `all`: beside a token that reads all keys, else
// beside one that reads as many as were chosen.
BenchResult run_selector(const std::string& text, int64_t n, int64_t d, int64_t tokens, bool all, Limits& limits,
                         Context& context) {
  const double layer_bytes = 4.0 * static_cast<double>(kKvHeads * n * d);
  const int copies = copies_beyond_caches(layer_bytes);
  std::vector<Layer> layers(static_cast<size_t>(copies));
  Text drawn = draw(n, d, layers[0]);
  for (Layer& layer : layers) {
    for (size_t h = 0; &layer != &layers[0] && h < static_cast<size_t>(kKvHeads); ++h)
      for (auto arrays : {&Layer::k, &Layer::v}) {
        (layer.*arrays).push_back(make_array(DType::kF16, 2, {n, d}));
        std::memcpy((layer.*arrays).back().view.data, (layers[0].*arrays)[h].view.data,
                    static_cast<size_t>(n * d) * sizeof(F16));
      }
    bind(layer, n, d);
  }
  // Upper layers: those that a selector reads whole come first.
  const int above = 10 + copies, count = above + copies;
  const auto index =
      registry()
          .make<Selector>(parse_specs(text)[0])
          ->open({.layers = count, .kv_heads = kKvHeads, .group = kGroup, .d = d, .isa = active_isa(context)});
  Reader reader{.index = *index, .d = d, .context = context};
  std::vector<float> out(static_cast<size_t>(kHeads * d)), want(out);
  auto query = [&](int64_t token) { return drawn.queries.data() + token % kTokens * kHeads * d; };
  for (int layer = 0; layer < count; ++layer)
    for (int h = 0; h < kKvHeads; ++h)
      index->update(layer, h, layers[static_cast<size_t>(layer % copies)].keys[static_cast<size_t>(h)], 0);
  for (int layer = 0; layer < above; ++layer)  // layers that choose for others do so here
    if (index->wants_weights(layer)) reader.step(layer, layers[0], query(0), out.data());

  auto exact = [&](const Layer& layer, int64_t keys, int64_t token, float* to) {
    std::vector<KeyRun> runs = layer.runs;
    std::vector<KeyView> views = layer.keys;
    for (size_t h = 0; h < runs.size(); ++h) {
      // A part that was not read just now.
      const int64_t first = keys < n ? token * 7919 * 64 % (n - keys) : 0;
      runs[h].k = static_cast<const std::byte*>(runs[h].k) + first * d * 2;
      runs[h].v = static_cast<const std::byte*>(runs[h].v) + first * d * 2;
      runs[h].count = keys;
      views[h].runs = {&runs[h], 1};
    }
    softmax_attention({.q = reader.view(query(token)), .keys = views, .dv = d}, {}, {.out = reader.view(to)}, context);
  };
  BenchResult result{};
  int64_t chosen = 0;
  for (int64_t t = 0; t < kTokens; ++t) {
    result.bytes += reader.step(above, layers[static_cast<size_t>(above % copies)], query(t), out.data()) / kTokens;
    exact(layers[0], n, t, want.data());
    double difference = 0, norm = 0;
    for (size_t i = 0; i < out.size(); ++i) {
      const double x = static_cast<double>(out[i]), y = static_cast<double>(want[i]);
      difference += (x - y) * (x - y), norm += y * y;
    }
    result.error += std::sqrt(difference / norm) / kTokens;
    for (const KeyView& keys : reader.chosen) chosen += keys.count();
  }
  chosen /= kTokens * kKvHeads;
  result.flops = 4.0 * kHeads * static_cast<double>(chosen * d);
  int64_t token = 0, plain = 0;
  for (int layer = above; layer < count; ++layer)  // what is made when the first query comes
    for (int64_t t = 0; t < tokens; ++t)
      reader.step(layer, layers[static_cast<size_t>(layer % copies)], query(t), out.data());
  auto call = [&] {
    for (int64_t t = 0; t < tokens; ++t, ++token) {
      const int layer = above + static_cast<int>(token / tokens % copies);
      reader.step(layer, layers[static_cast<size_t>(layer % copies)], query(token), out.data());
    }
  };
  auto beside = [&] {
    for (int64_t t = 0; t < tokens; ++t, ++plain)
      exact(layers[static_cast<size_t>(plain % copies)], all ? n : chosen, plain, want.data());
  };
  measure(
      result, call, [&] { return static_cast<double>(tokens) * result.bytes / limits.reads(); }, context, beside);
  for (double* x : {&result.seconds.low, &result.seconds.median, &result.seconds.high})
    *x /= static_cast<double>(tokens);
  return result;
}

}  // namespace

std::vector<BenchRow> selector_rows() {
  std::vector<BenchRow> rows;
  for (const Entry* entry : registry().entries()) {
    if (entry->kind != Kind::kSelector) continue;
    const std::string name(entry->name);
    const bool budgeted = std::any_of(entry->options.begin(), entry->options.end(),
                                      [](const Option& option) { return option.name == "budget"; });
    const Spec complete = registry().complete(parse_spec(name));
    // What is told of the queries of a prompt has none here to be told of.
    if (registry()
            .make<Selector>(complete)
            ->open({.layers = 32, .kv_heads = 1, .group = 1, .d = 64, .isa = Isa::kAvx2})
            ->wants_queries(31))
      continue;
    const int64_t tokens = complete.find("stride") ? complete.integer("stride") : 1;
    auto add = [&](const std::string& row, const std::string& spec, int64_t n, int64_t d, bool all) {
      rows.push_back(
          {row,
           spec,
           "f16",
           {{"Hq", kHeads}, {"Hkv", kKvHeads}, {"Tq", 1}, {"Tk", n}, {"D", d}},
           true,
           [=](Limits& limits, Context& context) { return run_selector(spec, n, d, tokens, all, limits, context); }});
    };
    for (int64_t n : {32768, 65536})
      for (int64_t d : {64, 128})
        for (bool all : {true, false})
          add(fmt::format("sparse/{}-{}k-d{}{}", name, n / 1024, d, all ? "" : "/budget"),
              budgeted ? fmt::format("{}:budget={}", name, n / 16) : name + ":bits=11", n, d, all);
    // Where the selector says that it costs no more than reading everything.
    if (const int64_t n = registry().make<Selector>(complete)->pays_from(); n > 0)
      for (int64_t d : {64, 128}) add(fmt::format("sparse/{}-pays-d{}", name, d), name, n, d, true);
  }
  return rows;
}

}  // namespace attend::app
