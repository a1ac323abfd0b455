#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "attend/tensor/compute.h"
#include "attend/tensor/error.h"
#include "attend/tensor/npy.h"
#include "attend/tensor/quantised_row.h"
#include "attend/tensor/registry.h"
#include "bench.h"

namespace attend::app {

void fill_normal(const View& view, float deviation, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> values(65521);  // a prime: rows differ
  for (float& x : values) x = normal(random);
  for (int64_t i = 0; i < view.count(); ++i) {
    const float x = values[static_cast<size_t>(i) % values.size()];
    if (view.type == DType::kF16) {
      view.as<F16>()[i] = to_f16(x);
    } else if (view.type == DType::kBF16) {
      view.as<BF16>()[i] = to_bf16(x);
    } else {
      view.as<float>()[i] = x;
    }
  }
}

namespace {

struct Attention {
  std::string name, spec;
  int64_t b, hq, hkv, tq, tk, d, dv;
  DType kv_type;
  bool cold, backward = false;  // backward: forward and backward, with the parameters that have gradients
};

Sizes sizes_of(const Attention& row) {
  return {row.b, row.hq, row.hkv, row.tq, row.tk, row.d, row.dv};
}

// Pairs of one head: the entry's own count, or those visible by the options that rows use; without an option, by the
// patterns that the entry covers.
double visible_pairs(const Attention& row, const Entry& entry, const Spec& spec) {
  if (entry.pairs) return entry.pairs(spec, sizes_of(row));
  auto tokens = [&](std::string_view option) { return spec.find(option) ? spec.integer(option) : 0; };
  const int64_t window = tokens("window"), sinks = tokens("sinks");
  const auto& patterns = entry.traits.patterns;
  auto covers = [&](std::string_view pattern) {
    return std::find(patterns.begin(), patterns.end(), pattern) != patterns.end();
  };
  const bool causal = spec.find("causal") ? spec.flag("causal") : covers("causal") && !covers("full");
  double pairs = 0;
  for (int64_t i = 0; i < row.tq; ++i) {
    const int64_t p = i + row.tk - row.tq, end = causal ? p + 1 : row.tk;
    const int64_t begin = window ? std::max<int64_t>(0, p - window + 1) : 0;
    pairs += static_cast<double>(end - begin + std::min({sinks, begin, end}));
  }
  return pairs;
}

// Keys and values of one call as rows that only key views carry.
struct Coded {
  Buffer k, v;
  std::vector<KeyRun> runs;  // [B * Hkv]
  std::vector<KeyView> views;
};

struct Arrays {
  Array q, out;
  std::vector<Array> k, v;
  std::vector<Coded> coded;                          // in place of k and v, which then hold the same numbers once
  std::map<std::string, Array, std::less<>> others;  // required ports beside q, k and v

  size_t copies() const { return coded.empty() ? k.size() : coded.size(); }
};

// Rows of an f32 array in a quantised type.
Buffer coded_rows(const View& x, DType type) {
  const int64_t width = x.shape[3], rows = x.count() / width, row = row_bytes(type, width);
  Buffer coded(rows * row);
  for (int64_t r = 0; r < rows; ++r) quantise_row(x.as<float>() + r * width, width, type, coded.data() + r * row);
  return coded;
}

void decode_rows(const Buffer& coded, DType type, const View& x) {
  const int64_t width = x.shape[3], rows = x.count() / width, row = row_bytes(type, width);
  for (int64_t r = 0; r < rows; ++r) dequantise_row(coded.data() + r * row, width, type, x.as<float>() + r * width);
}

Coded make_coded(const Attention& row, const View& k, const View& v) {
  const int64_t k_row = row_bytes(row.kv_type, row.d), v_row = row_bytes(row.kv_type, row.dv);
  Coded c{coded_rows(k, row.kv_type), coded_rows(v, row.kv_type), {}, {}};
  for (int64_t h = 0; h < row.b * row.hkv; ++h)
    c.runs.push_back({c.k.data() + h * row.tk * k_row, c.v.data() + h * row.tk * v_row, k_row, v_row, 0, row.tk});
  for (const KeyRun& run : c.runs) c.views.push_back({{&run, 1}, row.kv_type, row.kv_type, {}});
  return c;
}

// Inputs of one call; `copies` of keys and values.
Arrays make_arrays(const Attention& row, const Entry& entry, const Spec& spec, int copies) {
  Arrays a{make_array(DType::kF32, 4, {row.b, row.hq, row.tq, row.d}),
           make_array(DType::kF32, 4, {row.b, row.hq, row.tq, row.dv}),
           {},
           {},
           {},
           {}};
  fill_normal(a.q.view, 2, 1);
  std::memset(a.out.view.data, 0, static_cast<size_t>(a.out.view.count() * 4));
  if (is_quantised(row.kv_type)) {
    for (auto* arrays : {&a.k, &a.v}) {
      arrays->push_back(make_array(DType::kF32, 4, {row.b, row.hkv, row.tk, arrays == &a.k ? row.d : row.dv}));
      fill_normal(arrays->back().view, 1, arrays == &a.k ? 2 : 3);
    }
    for (int i = 0; i < copies; ++i) a.coded.push_back(make_coded(row, a.k[0].view, a.v[0].view));
    decode_rows(a.coded[0].k, row.kv_type, a.k[0].view);
    decode_rows(a.coded[0].v, row.kv_type, a.v[0].view);
    return a;
  }
  for (int i = 0; i < copies; ++i) {
    a.k.push_back(make_array(row.kv_type, 4, {row.b, row.hkv, row.tk, row.d}));
    a.v.push_back(make_array(row.kv_type, 4, {row.b, row.hkv, row.tk, row.dv}));
    fill_normal(a.k.back().view, 1, 2);
    fill_normal(a.v.back().view, 1, 3);
  }
  const auto& learned = entry.traits.gradients;
  for (const Port& port : entry.in) {
    const bool small = port.shape.find("Tk") == std::string_view::npos;
    const bool asked = port.required ||
                       (row.backward && small && std::find(learned.begin(), learned.end(), port.name) != learned.end());
    if (!asked || port.name == "q" || port.name == "k" || port.name == "v") continue;
    int rank = 0;
    const Shape shape = port_shape(entry, port, spec, sizes_of(row), rank);
    const View& view = a.others.emplace(port.name, make_array(DType::kF32, rank, shape)).first->second.view;
    fill_normal(view, 1, 4);
    // Normal values become uniform ones.
    if (port.low < port.high)
      for (int64_t i = 0; i < view.count(); ++i)
        view.as<float>()[i] = static_cast<float>(
            port.low +
            (port.high - port.low) * (0.5 + 0.5 * std::erf(static_cast<double>(view.as<float>()[i]) * M_SQRT1_2)));
  }
  return a;
}

// What the definition reads.
Tensors numbers(const Arrays& a, size_t copy) {
  Tensors in = {{"q", a.q.view}, {"k", a.k[copy].view}, {"v", a.v[copy].view}};
  for (const auto& [name, array] : a.others) in[name] = array.view;
  return in;
}

Tensors inputs(const Arrays& a, size_t copy) {
  if (a.coded.empty()) return numbers(a, copy);
  return {{"q", a.q.view}, {"k", std::span<const KeyView>(a.coded[copy].views)}};
}

bool has_port(const Entry& entry, std::string_view name) {
  return std::any_of(entry.in.begin(), entry.in.end(), [&](const Port& port) { return port.name == name; });
}

Compute compute_of(const Spec& spec) {
  return spec.find("compute") ? attend::compute_of(spec.text("compute")) : Compute::kF32;
}

double flops_of(Compute compute, Limits& limits) {
  if (compute == Compute::kBF16) return limits.bf16_multiply_adds();
  if (is_int8(compute)) return limits.products(WeightType::kQ8_0);
  return limits.multiply_adds();
}

// Largest difference from the reference over a sample of queries; throws nothing, says what is wrong.
double sampled_error(const Attention& row, const Entry& entry, const Spec& spec, const Arrays& a,
                     std::string& failure) {
  constexpr int64_t kSample = 3;
  std::vector<int64_t> queries;
  for (int64_t s = 0; s < std::min(kSample, row.tq); ++s)
    queries.push_back(row.tq == 1 ? 0 : s * (row.tq - 1) / (kSample - 1));
  double worst = 0, limit = 0;
  Context context(1);
  for (int64_t i : queries) {
    Tensors in = numbers(a, 0);
    View& q = std::get<View>(in["q"]);
    q.data = q.at<float>({0, 0, i});
    q.shape[2] = 1;
    std::vector<int32_t> positions(static_cast<size_t>(row.b), static_cast<int32_t>(i + row.tk - row.tq));
    in["q_positions"] = dense_view(positions.data(), DType::kI32, {row.b, 1});
    Array want = make_array(DType::kF64, 4, {row.b, row.hq, 1, row.dv});
    entry.reference(spec)->forward(in, {{"out", want.view}}, Form::kAny, context);
    limit = std::max(limit, entry.bound(spec, in, "out"));
    for (int64_t b = 0; b < row.b; ++b)
      for (int64_t h = 0; h < row.hq; ++h)
        for (int64_t c = 0; c < row.dv; ++c) {
          const double error = std::abs(*a.out.view.at<float>({b, h, i, c}) - *want.view.at<double>({b, h, 0, c}));
          if (!(error <= worst)) worst = error;
        }
  }
  if (!(worst <= limit)) failure = fmt::format("error {:.3g} is above the bound {:.3g}", worst, limit);
  return worst;
}

// The same on a text short enough for the whole reference.
double short_error(Attention row, const Entry& entry, const Spec& spec, Context& context, std::string& failure) {
  row.b = 1, row.hq = std::min<int64_t>(row.hq, 2), row.hkv = std::min(row.hkv, row.hq);
  row.tk = std::min<int64_t>(row.tk, 96), row.tq = std::min(row.tq, row.tk);
  const Arrays a = make_arrays(row, entry, spec, 1);
  const Tensors in = inputs(a, 0);
  registry().make<Operator>(spec)->forward(in, {{"out", a.out.view}}, Form::kAny, context);
  const Array want = make_array(DType::kF64, 4, {row.b, row.hq, row.tq, row.dv});
  entry.reference(spec)->forward(in, {{"out", want.view}}, Form::kAny, context);
  double worst = 0;
  for (int64_t i = 0; i < want.view.count(); ++i)
    if (const double error = std::abs(a.out.view.as<float>()[i] - want.view.as<double>()[i]); !(error <= worst))
      worst = error;
  if (const double limit = entry.bound(spec, in, "out"); !(worst <= limit))
    failure = fmt::format("error {:.3g} is above the bound {:.3g}", worst, limit);
  return worst;
}

std::vector<Attention> attentions() {
  const std::string causal = "softmax:causal=true", full = "softmax";
  constexpr DType f32 = DType::kF32, f16 = DType::kF16, bf16 = DType::kBF16, q8 = DType::kQ8_0, q4 = DType::kQ4_0;
  std::vector<Attention> rows = {
      {"exact/prefill-f32-causal-d64", causal, 1, 8, 8, 2048, 2048, 64, 64, f32, false},
      {"exact/prefill-f32-causal-d128", causal, 1, 8, 8, 2048, 2048, 128, 128, f32, false},
      {"exact/prefill-f32-full-d64", full, 1, 8, 8, 2048, 2048, 64, 64, f32, false},
      {"exact/prefill-f32-full-d128", full, 1, 8, 8, 2048, 2048, 128, 128, f32, false},
      {"exact/prefill-f32-causal-8x2-4k-d128", causal, 1, 8, 2, 4096, 4096, 128, 128, f32, false},
      {"exact/prefill-f16-causal-d64", causal, 1, 8, 8, 2048, 2048, 64, 64, f16, false},
      {"exact/prefill-f16-causal-d128", causal, 1, 8, 8, 2048, 2048, 128, 128, f16, false},
      {"exact/prefill-bf16-causal-d64", causal + ",compute=bf16", 1, 8, 8, 2048, 2048, 64, 64, bf16, false},
      {"exact/prefill-bf16-causal-d128", causal + ",compute=bf16", 1, 8, 8, 2048, 2048, 128, 128, bf16, false},
      {"exact/prefill-bf16-full-d64", full + ":compute=bf16", 1, 8, 8, 2048, 2048, 64, 64, bf16, false},
      {"exact/prefill-bf16-full-d128", full + ":compute=bf16", 1, 8, 8, 2048, 2048, 128, 128, bf16, false},
      {"exact/prefill-int8-causal-d64", causal + ",compute=int8", 1, 8, 8, 2048, 2048, 64, 64, bf16, false},
      {"exact/prefill-int8-causal-d128", causal + ",compute=int8", 1, 8, 8, 2048, 2048, 128, 128, bf16, false},
      {"exact/prefill-int8-hadamard-causal-d128", causal + ",compute=int8-hadamard", 1, 8, 8, 2048, 2048, 128, 128,
       bf16, false},
      {"exact/prefill-fp8-causal-d128", causal + ",compute=fp8", 1, 8, 8, 2048, 2048, 128, 128, bf16, false},
      {"exact/prefill-bf16-kept-in-f32-d128", causal, 1, 8, 8, 2048, 2048, 128, 128, bf16, false},
      {"exact/window256-f32", causal + ",window=256", 1, 8, 8, 8192, 8192, 64, 64, f32, false},
      {"exact/short-t16", full, 32, 12, 12, 16, 16, 64, 64, f32, false},
      {"exact/short-t64", full, 32, 12, 12, 64, 64, 64, 64, f32, false},
      {"exact/short-t256", full, 32, 12, 12, 256, 256, 64, 64, f32, false},
      {"exact/decode-f16-8x2-32k", causal, 1, 8, 2, 1, 32768, 128, 128, f16, true},
      {"exact/decode-bf16-8x2-32k", causal, 1, 8, 2, 1, 32768, 128, 128, bf16, true},
      {"exact/decode-f32-8x2-32k", causal, 1, 8, 2, 1, 32768, 128, 128, f32, true},
      {"exact/decode-q8_0-8x2-32k", causal, 1, 8, 2, 1, 32768, 128, 128, q8, true},
      {"exact/decode-q4_0-8x2-32k", causal, 1, 8, 2, 1, 32768, 128, 128, q4, true},
      {"exact/decode-f16-8x1-32k", causal, 1, 8, 1, 1, 32768, 128, 128, f16, true},
      {"exact/decode-f16-8x8-32k", causal, 1, 8, 8, 1, 32768, 64, 64, f16, true},
      {"exact/decode-q8_0-8x8-32k", causal, 1, 8, 8, 1, 32768, 64, 64, q8, true},
      {"exact/decode-q4_0-8x8-32k", causal, 1, 8, 8, 1, 32768, 64, 64, q4, true},
      {"exact/decode-f32-8x8-32k", causal, 1, 8, 8, 1, 32768, 64, 64, f32, true},
      {"exact/decode-f16-32x8-8k", causal, 1, 32, 8, 1, 8192, 128, 128, f16, true},
  };
  // Every other mechanism gets the same two, as far as it takes their shapes.
  for (const Entry* entry : registry().entries()) {
    if (entry->kind != Kind::kMechanism || entry->name == "softmax") continue;
    const std::string name = fmt::format("{}/{}", entry->room, entry->name);
    const bool has_causal = std::any_of(entry->options.begin(), entry->options.end(),
                                        [](const Option& option) { return option.name == "causal"; });
    const std::string spec = std::string(entry->name) + (has_causal ? ":causal=true" : "");
    const Port* k = nullptr;
    for (const Port& port : entry->in)
      if (port.name == "k") k = &port;
    const bool halves = k && k->types.find("f16") != std::string_view::npos;
    const Attention shapes[] = {{name + "-prefill-f32-d64", spec, 1, 8, 8, 2048, 2048, 64, 64, f32, false},
                                {name + (halves ? "-decode-f16-8x2-32k" : "-decode-f32-8x2-32k"), spec, 1, 8, 2, 1,
                                 32768, 128, 128, halves ? f16 : f32, true}};
    const Spec complete = registry().complete(parse_spec(spec));
    auto takes = [&](const Attention& shape) {
      return !entry->refuses || entry->refuses(complete, sizes_of(shape)).empty();
    };
    // What takes neither, a shorter text.
    const Attention shorter{name + "-prefill-f32-d64-256", spec, 1, 8, 8, 256, 256, 64, 64, f32, false};
    if (std::none_of(std::begin(shapes), std::end(shapes), takes) && takes(shorter)) rows.push_back(shorter);
    for (const Attention& shape : shapes)
      if (takes(shape)) rows.push_back(shape);
    const Attention back{name + "-backward-f32-d64", spec, 1, 8, 8, 1024, 1024, 64, 64, f32, false, true};
    if (!entry->traits.gradients.empty() && takes(back)) rows.push_back(back);
  }
  return rows;
}

BenchResult run(const Attention& row, Limits& limits, Context& context) {
  const Entry& entry = registry().at(parse_spec(row.spec).name);
  const Spec spec = registry().complete(parse_spec(row.spec));
  const auto op = registry().make<Operator>(spec);
  const double kv_bytes =
      static_cast<double>(row.b * row.hkv * row.tk * (row_bytes(row.kv_type, row.d) + row_bytes(row.kv_type, row.dv)));
  const int copies = row.cold ? copies_beyond_caches(kv_bytes) : 1;
  const Arrays a = make_arrays(row, entry, spec, copies);
  size_t turn = 0;
  auto call = [&] {
    const size_t i = turn++ % a.copies();
    op->forward(inputs(a, i), {{"out", a.out.view}}, Form::kAny, context);
  };
  call();
  BenchResult result{};
  const double head_pairs = visible_pairs(row, entry, spec), pairs = head_pairs * static_cast<double>(row.b * row.hq);
  result.flops = pairs * 2 * static_cast<double>(row.d + row.dv);
  // One query reads the keys that it meets.
  result.bytes = kv_bytes * (row.tq == 1 ? std::min(1.0, head_pairs / static_cast<double>(row.tk)) : 1);
  result.error = has_port(entry, "q_positions") && a.others.empty()
                     ? sampled_error(row, entry, spec, a, result.failure)
                     : short_error(row, entry, spec, context, result.failure);
  if (!result.failure.empty()) return result;

  measure(
      result, call,
      [&] {
        // Of two bursts the faster: what else runs on the machine must not lower the limit.
        const Compute compute = compute_of(spec);
        const double flops = std::max(flops_of(compute, limits), flops_of(compute, limits));
        const double exps = std::max(limits.exponentials(), limits.exponentials());
        const double seconds = result.flops / flops + pairs / exps;
        return row.cold ? std::max(seconds, result.bytes / std::max(limits.reads(), limits.reads())) : seconds;
      },
      context);
  return result;
}

// Outputs and gradients of one call, forward and backward.
struct Gradients {
  Tensors in, loss, out, wanted;
  std::vector<Array> storage;

  Gradients(const Entry& entry, const Operator& op, const Arrays& a, DType type) : in(inputs(a, 0)) {
    auto add = [&](Tensors& to, std::string_view name, DType of, int rank, const Shape& shape) {
      storage.push_back(make_array(of, rank, shape));
      to[std::string(name)] = storage.back().view;
    };
    for (const auto& [name, spec] : op.infer(in)) add(out, name, type, spec.rank, spec.shape);
    const View& first = std::get<View>(out.at("out"));
    add(loss, "out", DType::kF32, first.rank, first.shape);
    fill_normal(std::get<View>(loss.at("out")), 1, 5);
    for (const std::string_view port : entry.traits.gradients)
      if (const auto found = in.find(port); found != in.end()) {
        const View& of = std::get<View>(found->second);
        add(wanted, port, type, of.rank, of.shape);
      }
  }
};

BenchResult run_backward(const Attention& row, Limits& limits, Context& context) {
  const Entry& entry = registry().at(parse_spec(row.spec).name);
  const Spec spec = registry().complete(parse_spec(row.spec));
  const auto op = registry().make<Operator>(spec);
  BenchResult result{};
  const double pairs = visible_pairs(row, entry, spec) * static_cast<double>(row.b * row.hq);
  result.flops = pairs * 2 * static_cast<double>(4 * row.d + 3 * row.dv);
  auto call = [&](const Gradients& g) {
    op->forward(g.in, g.out, Form::kAny, context);
    op->backward(g.in, g.out, g.loss, g.wanted, context);
  };
  // Proved on a text short enough for the definition.
  Attention brief = row;
  brief.hq = brief.hkv = 2, brief.tq = brief.tk = 96;
  const Arrays short_arrays = make_arrays(brief, entry, spec, 1);
  const auto reference = entry.reference(spec);
  const Gradients got(entry, *op, short_arrays, DType::kF32), want(entry, *reference, short_arrays, DType::kF64);
  call(got);
  reference->forward(want.in, want.out, Form::kAny, context);
  reference->backward(want.in, want.out, want.loss, want.wanted, context);
  Tensors with_loss = got.in;
  with_loss["grad out"] = got.loss.at("out");
  for (const auto& [name, arg] : got.wanted) {
    const View &x = std::get<View>(arg), &y = std::get<View>(want.wanted.at(name));
    double worst = 0;
    for (int64_t i = 0; i < x.count(); ++i)
      if (const double error = std::abs(value_at(x, i) - value_at(y, i)); !(error <= worst)) worst = error;
    result.error = std::max(result.error, worst);
    if (const double limit = entry.bound(spec, with_loss, "grad " + name); !(worst <= limit))
      result.failure =
          fmt::format("the gradient of {} has an error of {:.3g} above the bound {:.3g}", name, worst, limit);
  }
  if (!result.failure.empty()) return result;
  const Arrays arrays = make_arrays(row, entry, spec, 1);
  const Gradients all(entry, *op, arrays, DType::kF32);
  measure(
      result, [&] { call(all); },
      [&] {
        const double flops = std::max(limits.multiply_adds(), limits.multiply_adds());
        return result.flops / flops + 2 * pairs / std::max(limits.exponentials(), limits.exponentials());
      },
      context);
  return result;
}

}  // namespace

std::vector<BenchRow> attention_rows() {
  std::vector<BenchRow> rows;
  for (const Attention& a : attentions())
    rows.push_back({a.name,
                    a.backward ? a.spec + ", forward and backward" : a.spec,
                    std::string(name_of(a.kv_type)),
                    {{"B", a.b}, {"Hq", a.hq}, {"Hkv", a.hkv}, {"Tq", a.tq}, {"Tk", a.tk}, {"D", a.d}, {"Dv", a.dv}},
                    a.cold,
                    [a](Limits& limits, Context& context) {
                      return a.backward ? run_backward(a, limits, context) : run(a, limits, context);
                    }});
  return rows;
}

}  // namespace attend::app
