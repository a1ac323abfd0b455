// The properties of docs/architecture.md's contracts, one function each.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "attend/tensor/quantised_row.h"
#include "conformance/suite.h"

namespace attend::conformance {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

View rows_of(const View& v, int64_t first, int64_t count) {
  View slice = v;
  slice.data = v.as<char>() + first * v.stride[2] * size_of(v.type);
  slice.shape[2] = count;
  return slice;
}

// Rows of an array [1, heads, Tk, width] as a store keeps them.
struct StoredRows {
  std::vector<uint8_t> bytes;  // of quantised rows
  const char* data;
  int64_t head, row;  // bytes from one to the next
  int64_t stride;     // of rows, in the unit of key runs

  const void* at(int64_t h, int64_t j) const { return data + h * head + j * row; }
};

// The array's own memory; or, for a quantised type, rows of f32 coded, with the array now holding what was coded.
StoredRows stored_rows(const View& x, DType type) {
  const int64_t size = size_of(x.type);
  if (!is_quantised(type)) return {{}, x.as<char>(), x.stride[1] * size, x.stride[2] * size, x.stride[2]};
  const int64_t width = x.shape[3], keys = x.shape[2], row = row_bytes(type, width) + 5;  // rows lie anywhere
  StoredRows rows{std::vector<uint8_t>(static_cast<size_t>(x.shape[1] * keys * row), 0xff), nullptr, keys * row, row,
                  row};
  rows.data = reinterpret_cast<const char*>(rows.bytes.data());
  for (int64_t h = 0; h < x.shape[1]; ++h)
    for (int64_t j = 0; j < keys; ++j) {
      uint8_t* coded = rows.bytes.data() + h * rows.head + j * row;
      quantise_row(x.at<float>({0, h, j}), width, type, coded);
      dequantise_row(coded, width, type, x.at<float>({0, h, j}));
    }
  return rows;
}

}  // namespace

void Suite::check_reference() {
  // Odd and prime lengths, one token, more queries than keys, grouped heads, Dv != D, splits of 512 crossed.
  const Sizes shapes[] = {
      {1, 1, 1, 1, 1, 1, 1},      {2, 4, 2, 7, 13, 16, 16},  {1, 3, 1, 31, 17, 5, 9},     {1, 2, 2, 1, 129, 64, 64},
      {1, 8, 2, 1, 531, 40, 24},  {1, 2, 1, 67, 67, 80, 33}, {2, 1, 1, 15, 16, 129, 128}, {1, 6, 3, 5, 1031, 17, 19},
      {1, 1, 1, 3, 25, 512, 512}, {1, 9, 3, 33, 47, 64, 64}, {1, 2, 1, 29, 0, 8, 8},
  };
  for (const Sizes& sizes : shapes)
    for (const Spec& s : option_grid(sizes)) {
      if (!takes(sizes, s)) continue;
      const bool small = sizes.tq * sizes.tk * sizes.hq < 4000;
      std::vector<std::set<std::string, std::less<>>> port_sets = {{}};
      if (s.options.empty() || small)
        for (const Port& port : entry_.in)
          if (!port.required && port.name != "v") port_sets.push_back({std::string(port.name)});
      for (const auto& ports : port_sets)
        for (DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
          if (type != DType::kF32 && !s.options.empty() && !small) continue;
          const Layout layout = random_() % 2 ? Layout::kStrided : Layout::kDense;
          Call call = make_call(sizes, s, type, layout, ports);
          record("reference", call.text(), [&] { return compare_with_reference(call, result(call)); });
        }
    }
}

void Suite::check_threads() {
  for (const Sizes& sizes :
       {Sizes{1, 4, 2, 1, 2100, 32, 32}, Sizes{2, 2, 1, 301, 301, 16, 24}, Sizes{2, 4, 4, 67, 67, 16, 16}}) {
    if (!takes(sizes, spec({{"causal", "true"}}))) continue;
    Call call = make_call(sizes, spec({{"causal", "true"}}), DType::kF32, Layout::kDense, {});
    record("threads", call.text(), [&] {
      const Outputs one = result(call, 1);
      std::string failure = compare_bits(one, result(call, 2));
      return failure.empty() ? compare_bits(one, result(call, 3)) : failure;
    });
  }
}

void Suite::check_batch() {
  const Spec causal = spec({{"causal", "true"}});
  Call call = make_call(fit({3, 4, 2, 37, 53, 24, 16}, causal), causal, DType::kF16, Layout::kStrided, {});
  record("batch", call.text(), [&] {
    const Outputs together = result(call);
    for (int64_t b = 0; b < call.sizes.b; ++b) {
      Call one{call.sizes, call.spec, call.layout, call.kv_type, {}, {}};
      one.sizes.b = 1;
      Tensors in;
      for (const auto& [name, array] : call.arrays) in[name] = part(array.view(), *in_port(name), "B", b, 1);
      const Outputs alone = outputs(one);
      forward(one, in, alone, 1);
      for (const Port& port : entry_.out)
        if (first_difference(alone.arrays.find(port.name)->second.view(),
                             part(together.arrays.find(port.name)->second.view(), port, "B", b, 1)) >= 0)
          return fmt::format("{} of batch entry {} depends on the others", port.name, b);
    }
    return std::string();
  });
}

void Suite::check_future() {
  const auto& patterns = entry_.traits.patterns;
  const bool always_causal = std::find(patterns.begin(), patterns.end(), "causal") != patterns.end() &&
                             std::find(patterns.begin(), patterns.end(), "full") == patterns.end();
  if (!has_option("causal") && !always_causal) return;
  const Spec causal = spec({{"causal", "true"}});
  Call call = make_call(fit({1, 2, 1, 40, 40, 16, 16}, causal), causal, DType::kF32, Layout::kDense, {});
  record("no leak from the future", call.text(), [&] {
    const Outputs before = result(call);
    const int64_t cut = 23;
    for (const auto& [name, array] : call.arrays) {
      if (in_port(name)->shape.find("Tk") == std::string_view::npos) continue;
      const View later = part(array.view(), *in_port(name), "Tk", cut, 40 - cut);
      for (int64_t i = 0; i < later.count(); ++i) store(later, i, kNan);
    }
    const Outputs after = result(call);
    const View &x = before.arrays.find("out")->second.view(), &y = after.arrays.find("out")->second.view();
    if (first_difference(rows_of(x, 0, cut), rows_of(y, 0, cut)) >= 0)
      return std::string("rows before the change depend on later keys");
    for (int64_t i = cut * 16; i < 40 * 16; ++i)
      if (!std::isnan(value_at(y, i))) return fmt::format("out[{}] hides a NaN that it sees", i);
    return std::string();
  });
}

void Suite::check_hidden_nan() {
  if (!has_option("window")) return;
  for (const double poison : {kNan, std::numeric_limits<double>::infinity()}) {
    const Spec windowed = spec({{"causal", "true"}, {"window", "9"}});
    Call call = make_call(fit({1, 2, 1, 30, 30, 16, 16}, windowed), windowed, DType::kF32, Layout::kDense, {});
    record("a bad value shows where it is seen", call.text(), [&] {
      const int64_t bad = 11;
      const Outputs clean = result(call);
      for (const char* port : {"k", "v"})
        for (int64_t i = 0; i < call.arrays.find(port)->second.view().count(); ++i)
          if (i / 16 % 30 == bad) store(call.arrays.find(port)->second.view(), i, poison);
      const Outputs out = result(call);
      const View &x = clean.arrays.find("out")->second.view(), &y = out.arrays.find("out")->second.view();
      for (int64_t h = 0; h < 2; ++h)
        for (int64_t i = 0; i < 30; ++i) {
          const bool sees = i >= bad && i - bad < 9;
          for (int64_t c = 0; c < 16; ++c) {
            const int64_t at = (h * 30 + i) * 16 + c;
            if (!sees && value_at(x, at) != value_at(y, at)) return fmt::format("row {} shows what it can't see", i);
            if (sees && std::isnan(poison) && !std::isnan(value_at(y, at)))
              return fmt::format("row {} hides what it sees", i);
          }
        }
      return std::string();
    });
  }
}

// A prompt cut into chunks gives the bits of the whole, for every cut.
void Suite::check_chunks() {
  if (!has_port("q_positions")) return;
  for (const char* window : {"0", "70"}) {
    const Spec cut_spec = spec({{"causal", "true"}, {"window", window}, {"sinks", "3"}});
    Call call = make_call(fit({1, 6, 2, 600, 600, 16, 16}, cut_spec), cut_spec, DType::kF16, Layout::kDense, {});
    record("chunks", call.text(), [&] {
      const Outputs whole = result(call, 2);
      for (int64_t chunk : {1, 17, 64, 255}) {
        const Outputs cut = outputs(call);
        for (int64_t first = 0; first < 600; first += chunk * (chunk == 1 ? 37 : 1)) {
          const int64_t n = std::min(chunk, 600 - first), seen = first + n;
          std::vector<int32_t> positions(static_cast<size_t>(n));
          std::iota(positions.begin(), positions.end(), static_cast<int32_t>(first));
          Tensors in = call.tensors(), out = cut.tensors();
          for (auto& [name, arg] : in)
            arg = part(part(std::get<View>(arg), *in_port(name), "Tq", first, n), *in_port(name), "Tk", 0, seen);
          in["q_positions"] = dense_view(positions.data(), DType::kI32, {1, n});
          for (auto& [name, arg] : out) arg = rows_of(std::get<View>(arg), first, n);
          const std::unique_lock<std::mutex> pool = pool_for(2);
          Context context(2);
          context.isa = isa_;
          registry_.make<Operator>(call.spec)->forward(in, out, Form::kAny, context);
          for (const auto& [name, arg] : out)
            if (first_difference(std::get<View>(arg), rows_of(whole.arrays.find(name)->second.view(), first, n)) >= 0)
              return fmt::format("{} of chunk [{}, {}) differs from the whole", name, first, seen);
        }
      }
      return std::string();
    });
  }
}

void Suite::check_limits() {
  if (!has_option("window")) return;
  const Spec causal = spec({{"causal", "true"}});
  Call call = make_call(fit({1, 2, 1, 45, 45, 16, 16}, causal), causal, DType::kF32, Layout::kDense, {});
  record("window of the whole text", call.text(), [&] {
    const Outputs exact = result(call);
    call.spec = spec({{"causal", "true"}, {"window", "45"}});
    return compare_bits(exact, result(call));
  });
}

// Keys as pages with positions: pages change no bit, nor does dropping keys that nobody sees. Quantised rows give the
// bits of the same numbers as f32, to the mechanism and to its definition. Where the mechanism turns keys, pages hold
// turned ones, which no other type than f32 holds as they are.
void Suite::check_key_views() {
  if (!has_port("q_positions") || !has_option("window") || !takes({1, 4, 2, 3, 1300, 24, 16}, spec({}))) return;
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
    const bool quantised = is_quantised(type), turns = registry_.make<Operator>(spec({}))->turns();
    if (turns && type != DType::kF32) continue;
    const Sizes sizes = {1, 4, 2, 3, 1300, quantised ? 64 : 24, quantised ? 32 : 16};
    Call call = make_call(sizes, spec({{"causal", "true"}, {"window", "100"}, {"sinks", "5"}}),
                          quantised ? DType::kF32 : type, Layout::kDense, {});
    const View &k = call.arrays.find("k")->second.view(), &v = call.arrays.find("v")->second.view();
    Array turned;
    if (turns) {
      turned = make_array(DType::kF32, 4, k.shape);
      std::copy_n(k.as<float>(), k.count(), turned.view.as<float>());
      std::vector<int32_t> positions(static_cast<size_t>(sizes.tk));
      std::iota(positions.begin(), positions.end(), 0);
      Context context(1);
      context.isa = isa_;
      registry_.make<Operator>(call.spec)->turn_keys(turned.view, positions, context);
    }
    const StoredRows k_rows = stored_rows(turns ? turned.view : k, type), v_rows = stored_rows(v, type);
    record("pages and dropped keys", fmt::format("{} stored as {}", call.text(), name_of(type)), [&] {
      const Outputs plain = result(call);
      const auto needed = registry_.make<Operator>(call.spec)->needed_from(1297);
      for (const bool drop : {false, true}) {
        std::vector<int32_t> kept;
        for (int32_t j = 0; j < 1300; ++j)
          if (!drop ||
              std::any_of(needed.begin(), needed.end(), [&](const KeyRange& r) { return j >= r.begin && j < r.end; }))
            kept.push_back(j);
        if (drop && kept.size() > 200) return fmt::format("{} keys are kept of a window of 100", kept.size());
        std::vector<std::vector<KeyRun>> runs(2);
        std::vector<KeyView> views;
        for (int64_t h = 0; h < 2; ++h) {
          for (size_t slot = 0; slot < kept.size();) {
            size_t end = slot + 1;
            while (end < kept.size() && kept[end] == kept[end - 1] + 1 && end - slot < 37) ++end;
            runs[static_cast<size_t>(h)].push_back({k_rows.at(h, kept[slot]), v_rows.at(h, kept[slot]), k_rows.stride,
                                                    v_rows.stride, static_cast<int64_t>(slot),
                                                    static_cast<int64_t>(end - slot), type, type});
            slot = end;
          }
          views.push_back({runs[static_cast<size_t>(h)], kept});
        }
        Tensors in = call.tensors();
        in["k"] = std::span<const KeyView>(views);
        in.erase("v");
        for (int threads : {1, 2}) {
          const Outputs out = outputs(call);
          forward(call, in, out, threads);
          if (std::string failure = compare_bits(plain, out); !failure.empty())
            return fmt::format("{}{}", drop ? "dropped keys: " : "pages: ", failure);
        }
        if (drop || turns) continue;
        if (std::string failure = compare_with_reference(call, plain); !failure.empty()) return failure;
        in["dv"] = dense_view(nullptr, DType::kF32, {sizes.dv});
        if (std::string failure = compare_references(call, call.tensors(), in); !failure.empty()) return failure;
      }
      return std::string();
    });
  }
}

// Wrong arguments are refused before anything is written.
void Suite::check_refusals() {
  const Call call = make_call(fit({1, 4, 2, 5, 9, 8, 8}, spec({})), spec({}), DType::kF32, Layout::kDense, {});
  auto refuses = [&](std::string_view what, const std::function<void(Tensors&, Tensors&)>& spoil) {
    record("refuses", std::string(what), [&] {
      const Outputs out = outputs(call), untouched = outputs(call);
      Tensors in = call.tensors(), to = out.tensors();
      spoil(in, to);
      Context context(1);
      context.isa = isa_;
      try {
        registry_.make<Operator>(call.spec)->forward(in, to, Form::kAny, context);
      } catch (const Error& e) {
        if (e.kind() != ErrorKind::kArgument) return fmt::format("is refused as another kind: {}", e.what());
        return compare_bits(out, untouched);
      }
      return std::string("is accepted");
    });
  };
  auto edit = [](Tensors& t, const char* name) -> View& { return std::get<View>(t[name]); };
  for (const Port& port : entry_.in) {
    if (!port.required && port.name != "v") continue;
    const std::string name(port.name);
    refuses("a missing " + name, [&](Tensors& in, Tensors&) { in.erase(name); });
    const int last = call.arrays.find(name)->second.view().rank - 1;
    refuses(name + " of i64", [&](Tensors& in, Tensors&) { edit(in, name.c_str()).type = DType::kI64; });
    refuses(name + " of a lower rank", [&](Tensors& in, Tensors&) { edit(in, name.c_str()).rank = last; });
    // Of positions there may be more than a call needs.
    const bool positions = port.shape.ends_with(" T");
    refuses(name + " of another width", [&](Tensors& in, Tensors&) {
      int64_t& width = edit(in, name.c_str()).shape[last];
      width = positions ? 0 : width + 1;
    });
    if (name == "q" || name == "k" || name == "v")
      refuses(name + " with a strided last axis",
              [&](Tensors& in, Tensors&) { edit(in, name.c_str()).stride[last] = 2; });
  }
  refuses("heads that do not divide", [&](Tensors& in, Tensors&) { edit(in, "q").shape[1] = 3; });
  refuses("an unknown port", [&](Tensors& in, Tensors&) { in["gate"] = in["q"]; });
  refuses("an output over an input", [&](Tensors& in, Tensors& out) { edit(out, "out").data = edit(in, "q").data; });
}

}  // namespace attend::conformance
