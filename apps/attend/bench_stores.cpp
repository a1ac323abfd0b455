// Stores: attention over each beside attention over one buffer, and the memory that each holds as texts come and go.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <random>

#include "attend/exact/softmax.h"
#include "attend/kv/store.h"
#include "attend/report/table.h"
#include "attend/tensor/npy.h"
#include "attend/tensor/registry.h"
#include "bench.h"
#include "bench_inputs.h"
#include "json.h"
#include "terminal.h"

namespace attend::app {
namespace {

constexpr int64_t kHeads = 8, kWidth = 64;

std::unique_ptr<StoreFactory> opener(const std::string& spec) {
  return registry().make<StoreFactory>(parse_specs(spec)[0]);
}

// One text of `tokens`, all but the last 2,048 read in chunks and these decoded: pages and capacities are as they come.
void fill(Store& store, int64_t tokens) {
  const StoreShape& shape = store.shape();
  const int64_t chunk = 512, decoded = 2048;
  const Array k = make_array(DType::kF32, 3, {shape.kv_heads, chunk, shape.d});
  const Array v = make_array(DType::kF32, 3, {shape.kv_heads, chunk, shape.dv});
  fill_normal(k.view, 1, 1);
  fill_normal(v.view, 1, 2);
  std::vector<int32_t> position;
  for (int64_t t = 0; t < tokens;) {
    const int64_t n = t < tokens - decoded ? std::min(chunk, tokens - decoded - t) : 1;
    // Chunks differ, so that no pages are equal.
    for (int64_t h = 0; h < shape.kv_heads; ++h)
      for (int64_t i = 0; i < chunk; ++i) *k.view.at<float>({h, i}) = static_cast<float>(t / chunk) / 16;
    auto rows = [&](const Array& all) {
      View view = all.view;
      view.shape[1] = n;
      view.data = all.view.at<float>({0, n > 1 ? 0 : t % chunk});
      return view;
    };
    position.clear();
    for (int64_t i = 0; i < n; ++i) position.push_back(static_cast<int32_t>(t + i));
    for (int layer = 0; layer < shape.layers; ++layer) store.append(layer, rows(k), rows(v), position);
    t += n;
  }
}

// A token decoded over 32,768 keys in each of enough stores to come from memory.
BenchResult run_decode(const std::string& spec, DType codec, Limits& limits, Context& context) {
  constexpr int64_t kTokens = 32768;
  const StoreShape shape{
      .layers = 1, .kv_heads = kHeads, .d = kWidth, .dv = kWidth, .codec = codec, .context = kTokens};
  BenchResult result{};
  result.flops = 4.0 * kHeads * kTokens * kWidth;
  result.bytes = 2.0 * kHeads * kTokens * static_cast<double>(row_bytes(codec, kWidth));
  const int copies = copies_beyond_caches(result.bytes);
  std::vector<std::unique_ptr<Store>> stores, plain;
  for (int i = 0; i < copies; ++i) {
    stores.push_back(opener(spec)->open(shape));  // of its own factory: one would share equal pages
    plain.push_back(opener("contiguous")->open(shape));
    fill(*stores.back(), kTokens);
    fill(*plain.back(), kTokens);
  }
  const Array q = make_array(DType::kF32, 4, {1, kHeads, 1, kWidth});
  fill_normal(q.view, 2, 3);
  const Array out = make_array(DType::kF32, 4, {1, kHeads, 1, kWidth});
  const Array want = make_array(DType::kF32, 4, {1, kHeads, 1, kWidth});
  auto attend_over = [&](const Store& store, const View& to) {
    std::vector<KeyView> keys;
    for (int h = 0; h < kHeads; ++h) keys.push_back(store.keys(0, h));
    softmax_attention({.q = q.view, .keys = keys, .dv = kWidth}, {.causal = true}, {.out = to}, context);
  };
  attend_over(*stores[0], out.view);
  attend_over(*plain[0], want.view);
  if (std::memcmp(out.view.data, want.view.data, static_cast<size_t>(out.view.count()) * sizeof(float)) != 0) {
    result.failure = "differs from the same keys in one buffer";
    return result;
  }
  size_t next = 0, next_plain = 0;
  measure(
      result, [&] { attend_over(*stores[next++ % stores.size()], out.view); },
      [&] { return result.bytes / limits.reads(); }, context,
      [&] { attend_over(*plain[next_plain++ % plain.size()], want.view); });
  return result;
}

int64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  int64_t total = 0, resident = 0;
  file >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

struct Held {
  double tokens = 0, bytes = 0, resident = 0, sequences = 0;  // means over the steps
};

// Texts arrive at random, with prompts and answers of random lengths, each decoded a token a step until its end: what a
// server's memory holds.
Held run_arrivals(const std::string& spec, const StoreShape& shape) {
  constexpr int kSteps = 3000, kWarm = 800;
  struct Text {
    std::unique_ptr<Store> store;
    int64_t held, end;
  };
  std::mt19937 random(1);
  std::exponential_distribution<double> prompts(1 / 160.0), answers(1 / 340.0);
  const Array rows = make_array(DType::kF32, 3, {shape.kv_heads, shape.context, shape.d});
  fill_normal(rows.view, 1, 1);
  const auto opens = opener(spec);
  const int64_t before = resident_bytes();
  std::vector<Text> texts;
  Held mean;
  auto read = [&](Text& text, int64_t count) {
    View view = rows.view;
    view.shape[1] = count;
    std::vector<int32_t> position;
    for (int64_t i = 0; i < count; ++i) position.push_back(static_cast<int32_t>(text.held + i));
    for (int layer = 0; layer < shape.layers; ++layer) {
      // No two rows are equal, so that no pages are.
      for (int64_t h = 0; h < shape.kv_heads; ++h)
        for (int64_t i = 0; i < count; ++i) *rows.view.at<float>({h, i}) = static_cast<float>(random() % 60000);
      text.store->append(layer, view, view, position);
    }
    text.held += count;
  };
  for (int step = 0; step < kSteps; ++step) {
    if (random() % 20 == 0) {
      const auto prompt = std::min<int64_t>(shape.context / 2, 1 + static_cast<int64_t>(prompts(random)));
      const auto answer = std::min<int64_t>(shape.context / 2, 1 + static_cast<int64_t>(answers(random)));
      texts.push_back({opens->open(shape), 0, prompt + answer});
      read(texts.back(), prompt);
    }
    for (Text& text : texts)
      if (text.held < text.end) read(text, 1);
    std::erase_if(texts, [](const Text& text) { return text.held >= text.end; });
    if (step < kWarm || step % 20) continue;
    constexpr double kSamples = (kSteps - kWarm) / 20;
    for (const Text& text : texts) {
      mean.tokens += static_cast<double>(text.held) / kSamples;
      mean.bytes += static_cast<double>(text.store->bytes()) / kSamples;
    }
    mean.sequences += static_cast<double>(texts.size()) / kSamples;
    mean.resident += static_cast<double>(resident_bytes() - before) / kSamples;
  }
  return mean;
}

}  // namespace

std::vector<BenchRow> store_rows() {
  std::vector<BenchRow> rows;
  for (const Entry* entry : registry().entries()) {
    if (entry->kind != Kind::kStore || entry->name == "contiguous") continue;
    for (DType codec : {DType::kF16, DType::kQ8_0}) {
      const std::string spec(entry->name);
      rows.push_back(
          {fmt::format("kv/decode/{}/{}", spec, name_of(codec)),
           spec,
           std::string(name_of(codec)),
           {{"Hq", kHeads}, {"Hkv", kHeads}, {"Tq", 1}, {"Tk", 32768}, {"D", kWidth}},
           true,
           [spec, codec](Limits& limits, Context& context) { return run_decode(spec, codec, limits, context); }});
    }
  }
  return rows;
}

int bench_memory(bool json) {
  const StoreShape shape{.layers = 4, .kv_heads = 2, .d = kWidth, .dv = kWidth, .codec = DType::kF16, .context = 2048};
  const double token = static_cast<double>(shape.layers * shape.kv_heads * 2 * row_bytes(shape.codec, kWidth));
  Json out = {{"context", shape.context}, {"bytes_per_token", token}, {"rows", Json::array()}};
  Table table({{"store", true}, {"texts"}, {"tokens held"}, {"MB of these"}, {"MB held"}, {"waste"}, {"MB resident"}});
  auto row = [&](const std::string& name, const Held& held) {
    const double waste = 1 - held.tokens * token / held.bytes;
    out["rows"].push_back({{"store", name},
                           {"texts", held.sequences},
                           {"tokens_held", held.tokens},
                           {"bytes_held", held.bytes},
                           {"waste", waste},
                           {"resident_bytes", held.resident}});
    table.row({name, number_text(held.sequences), number_text(held.tokens), number_text(held.tokens * token / 1e6),
               number_text(held.bytes / 1e6), fmt::format("{:.1f}%", waste * 100),
               held.resident > 0 ? number_text(held.resident / 1e6) : "-"});
  };
  for (const char* spec : {"contiguous", "paged:page=16", "paged:page=64", "virtual"}) {
    const Held held = run_arrivals(spec, shape);
    if (std::string_view(spec) == "contiguous") {
      Held whole = held;  // what a server holds that gives each text room for the context
      whole.bytes = held.sequences * static_cast<double>(shape.context) * token;
      whole.resident = 0;
      row("preallocated", whole);
    }
    row(spec, held);
  }
  if (json) {
    print_json(out);
  } else {
    fmt::print("Texts come and go at random; each may hold {} tokens of {} bytes. Means over time.\n\n{}",
               shape.context, token, table.text(has_colour(Stream::kOut)));
  }
  return 0;
}

}  // namespace attend::app
