#include "bench_inputs.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "attend/tensor/quantised_row.h"

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

Sizes sizes_of(const AttentionCall& row) {
  return {row.b, row.hq, row.hkv, row.tq, row.tk, row.d, row.dv};
}

double visible_pairs(const AttentionCall& row, const Entry& entry, const Spec& spec) {
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

namespace {

// Rows of an f32 array in a quantised type.
Buffer coded_rows(const View& x, DType type) {
  const int64_t width = x.shape[3], rows = x.count() / width, row = row_bytes(type, width);
  Buffer coded(rows * row);
  for (int64_t r = 0; r < rows; ++r) quantise_row(x.as<float>() + r * width, width, type, coded.data() + r * row);
  return coded;
}

// Keys by channel in groups of 32 as kivi has them, or rows that lie side by side.
CodedKeys make_coded(const AttentionCall& row, const View& k, const View& v) {
  constexpr int64_t kGroup = 32;
  const DType k_type = row.kv_type, v_type = value_type(k_type);
  const int64_t k_row = row_bytes(k_type, row.d), v_row = row_bytes(v_type, row.dv), heads = row.b * row.hkv;
  if (!is_by_channel(k_type)) {
    CodedKeys c{coded_rows(k, k_type), coded_rows(v, v_type), {}, {}, {}};
    for (int64_t h = 0; h < heads; ++h)
      c.runs.push_back(
          {c.k.data() + h * row.tk * k_row, c.v.data() + h * row.tk * v_row, k_row, v_row, 0, row.tk, k_type, v_type});
    for (const KeyRun& run : c.runs) c.views.push_back({{&run, 1}, {}});
    return c;
  }
  const int64_t groups = (row.tk + kGroup - 1) / kGroup;
  CodedKeys c{Buffer(heads * row.tk * k_row), coded_rows(v, v_type), Buffer(heads * groups * 4 * row.d), {}, {}};
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = g * kGroup, n = std::min(kGroup, row.tk - first), at = h * row.tk + first;
      F16* scale = c.groups.as<F16>() + (h * groups + g) * 2 * row.d;
      quantise_channels(k.as<float>() + at * row.d, n, row.d, k_type, scale, scale + row.d, c.k.data() + at * k_row);
      c.runs.push_back({c.k.data() + at * k_row, c.v.data() + at * v_row, k_row, v_row, first, n, k_type, v_type, scale,
                        scale + row.d});
    }
  for (int64_t h = 0; h < heads; ++h)
    c.views.push_back({std::span(c.runs).subspan(static_cast<size_t>(h * groups), static_cast<size_t>(groups)), {}});
  return c;
}

// The arrays become what the rows hold.
void decode(const CodedKeys& coded, const AttentionCall& row, const View& k, const View& v) {
  for (size_t h = 0; h < coded.views.size(); ++h)
    for (const KeyRun& run : coded.views[h].runs)
      for (int64_t r = 0; r < run.count; ++r) {
        const int64_t at = static_cast<int64_t>(h) * row.tk + run.first_slot + r;
        for (int64_t c = 0; c < row.d; ++c) k.as<float>()[at * row.d + c] = element_of(run.keys(), r, row.d, c);
        for (int64_t c = 0; c < row.dv; ++c) v.as<float>()[at * row.dv + c] = element_of(run.values(), r, row.dv, c);
      }
}

}  // namespace

CallArrays make_arrays(const AttentionCall& row, const Entry& entry, const Spec& spec, int copies) {
  auto takes = [&](std::string_view name) {
    return std::any_of(entry.in.begin(), entry.in.end(), [&](const Port& port) { return port.name == name; });
  };
  CallArrays a{{}, make_array(DType::kF32, 4, {row.b, row.hq, row.tq, row.dv}), {}, {}, {}, {}};
  if (takes("q")) {
    a.q = make_array(DType::kF32, 4, {row.b, row.hq, row.tq, row.d});
    fill_normal(a.q.view, 2, 1);
  }
  std::memset(a.out.view.data, 0, static_cast<size_t>(a.out.view.count() * 4));
  if (is_quantised(row.kv_type)) {
    for (auto* arrays : {&a.k, &a.v}) {
      arrays->push_back(make_array(DType::kF32, 4, {row.b, row.hkv, row.tk, arrays == &a.k ? row.d : row.dv}));
      fill_normal(arrays->back().view, 1, arrays == &a.k ? 2 : 3);
    }
    for (int i = 0; i < copies; ++i) a.coded.push_back(make_coded(row, a.k[0].view, a.v[0].view));
    decode(a.coded[0], row, a.k[0].view, a.v[0].view);
    return a;
  }
  for (int i = 0; i < copies && takes("k"); ++i) {
    a.k.push_back(make_array(row.kv_type, 4, {row.b, row.hkv, row.tk, row.d}));
    a.v.push_back(make_array(row.kv_type, 4, {row.b, row.hkv, row.tk, row.dv}));
    fill_normal(a.k.back().view, 1, 2);
    fill_normal(a.v.back().view, 1, 3);
  }
  const auto& learned = entry.traits.gradients;
  Entry shaped = entry;
  if (row.axis) shaped.axis = row.axis;
  for (const Port& port : entry.in) {
    const bool small = port.shape.find("Tk") == std::string_view::npos;
    const bool asked = port.required ||
                       (row.backward && small && std::find(learned.begin(), learned.end(), port.name) != learned.end());
    if (!asked || port.name == "q" || port.name == "k" || port.name == "v") continue;
    int rank = 0;
    const Shape shape = port_shape(shaped, port, spec, sizes_of(row), rank);
    if (port.types == "i32") {
      const View& view = a.others.emplace(port.name, make_array(DType::kI32, rank, shape)).first->second.view;
      std::mt19937_64 random(4);
      std::uniform_int_distribution<int32_t> uniform(static_cast<int32_t>(port.low), static_cast<int32_t>(port.high));
      for (int64_t i = 0; i < view.count(); ++i) view.as<int32_t>()[i] = uniform(random);
      continue;
    }
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

Tensors numbers(const CallArrays& a, size_t copy) {
  Tensors in;
  if (a.q.view.data) in["q"] = a.q.view;
  if (!a.k.empty()) in["k"] = a.k[copy].view, in["v"] = a.v[copy].view;
  for (const auto& [name, array] : a.others) in[name] = array.view;
  return in;
}

Tensors inputs(const CallArrays& a, size_t copy) {
  if (a.coded.empty()) return numbers(a, copy);
  return {{"q", a.q.view}, {"k", std::span<const KeyView>(a.coded[copy].views)}};
}

double sampled_error(const AttentionCall& row, const Entry& entry, const Spec& spec, const CallArrays& a,
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

double short_error(AttentionCall row, const Entry& entry, const Spec& spec, Context& context, std::string& failure) {
  row.b = 1, row.hq = std::min<int64_t>(row.hq, 2), row.hkv = std::min(row.hkv, row.hq);
  row.tk = std::min<int64_t>(row.tk, 96), row.tq = std::min(row.tq, row.tk);
  const CallArrays a = make_arrays(row, entry, spec, 1);
  const Tensors in = numbers(a, 0);
  registry().make<Operator>(spec)->forward(inputs(a, 0), {{"out", a.out.view}}, Form::kAny, context);
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

}  // namespace attend::app
