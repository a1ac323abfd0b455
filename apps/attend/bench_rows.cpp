#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "attend/exact/attention_operator.h"
#include "bench.h"
#include "bench_inputs.h"

namespace attend::app {
namespace {

bool has_port(const Entry& entry, std::string_view name) {
  return std::any_of(entry.in.begin(), entry.in.end(), [&](const Port& port) { return port.name == name; });
}

double flops_of(Compute compute, Limits& limits) {
  if (compute == Compute::kBF16) return limits.bf16_multiply_adds();
  if (is_int8(compute)) return limits.products(WeightType::kQ8_0);
  if (compute == Compute::kInt8Qk)  // half of the products each
    return 2 / (1 / limits.products(WeightType::kQ8_0) + 1 / limits.bf16_multiply_adds());
  return limits.multiply_adds();
}

// Backward passes of what reads something else than keys.
std::vector<AttentionCall> backward_without_keys() {
  AttentionCall mla{
      "exact/mla-backward-f32-r256", "mla:causal=true,rope=32", 1, 8, 8, 1024, 1024, 96, 64, DType::kF32, false, true};
  // Latents of four times a head and rotary keys of half of one, as in the paper; every head meets both.
  constexpr double kRank = 256, kCache = kRank + 32, kTokens = 8 * 1024, kPairs = 8 * (1024 * 1025 / 2.0);
  mla.axis = [](std::string_view name, const Spec& spec, const Sizes& sizes) -> int64_t {
    const int64_t rope = spec.integer("rope"), rank = static_cast<int64_t>(kRank);
    return name == "R" ? rank : name == "C" ? rank + rope : name == "N" ? sizes.d - rope : -1;
  };
  // Queries and outputs pass their matrices forward, back, and to the gradients of these.
  mla.flops = kPairs * 2 * (4 * kCache + 3 * kRank) + kTokens * 2 * 3 * kRank * (64 + 64);
  mla.exps = kPairs * 2;

  AttentionCall gaam{"exact/gaam-backward-f32-d64", "gaam", 1, 8, 8, 1024, 1024, 64, 64, DType::kF32, false, true};
  constexpr double kElements = kTokens * 64, kGaussians = 4;
  gaam.flops = kElements * (16 * kGaussians + 50);  // attend/exact/gaam.h
  gaam.exps = kElements * 2;
  return {mla, gaam};
}

std::vector<AttentionCall> attentions() {
  const std::string causal = "softmax:causal=true", full = "softmax";
  constexpr DType f32 = DType::kF32, f16 = DType::kF16, bf16 = DType::kBF16, q8 = DType::kQ8_0, q4 = DType::kQ4_0,
                  kivi4 = DType::kQ4_C, kivi2 = DType::kQ2_C;
  std::vector<AttentionCall> rows = {
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
      {"exact/prefill-int8-qk-causal-d64", causal + ",compute=int8-qk", 1, 8, 8, 2048, 2048, 64, 64, bf16, false},
      {"exact/prefill-int8-qk-causal-d128", causal + ",compute=int8-qk", 1, 8, 8, 2048, 2048, 128, 128, bf16, false},
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
      {"exact/decode-kivi4-8x2-32k", causal, 1, 8, 2, 1, 32768, 128, 128, kivi4, true},
      {"exact/decode-kivi2-8x2-32k", causal, 1, 8, 2, 1, 32768, 128, 128, kivi2, true},
      {"exact/decode-f16-8x1-32k", causal, 1, 8, 1, 1, 32768, 128, 128, f16, true},
      {"exact/decode-f16-4x1-32k-d256", causal, 1, 4, 1, 1, 32768, 256, 256, f16, true},
      {"exact/decode-q8_0-4x1-32k-d256", causal, 1, 4, 1, 1, 32768, 256, 256, q8, true},
      {"exact/decode-q4_0-4x1-32k-d256", causal, 1, 4, 1, 1, 32768, 256, 256, q4, true},
      {"exact/decode-f16-8x8-32k", causal, 1, 8, 8, 1, 32768, 64, 64, f16, true},
      {"exact/decode-q8_0-8x8-32k", causal, 1, 8, 8, 1, 32768, 64, 64, q8, true},
      {"exact/decode-q4_0-8x8-32k", causal, 1, 8, 8, 1, 32768, 64, 64, q4, true},
      {"exact/decode-kivi4-8x8-32k", causal, 1, 8, 8, 1, 32768, 64, 64, kivi4, true},
      {"exact/decode-kivi2-8x8-32k", causal, 1, 8, 8, 1, 32768, 64, 64, kivi2, true},
      {"exact/decode-f32-8x8-32k", causal, 1, 8, 8, 1, 32768, 64, 64, f32, true},
      {"exact/decode-f16-32x8-8k", causal, 1, 32, 8, 1, 8192, 128, 128, f16, true},
  };
  // Time a key must not depend on how many there are.
  for (const int64_t thousands : {1, 4, 16, 64, 256})
    rows.push_back(
        {fmt::format("exact/keys-{}k", thousands), causal, 1, 8, 2, 1, thousands * 1024, 128, 128, f16, true});
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
    if (!k) continue;
    const bool halves = k->types.find("f16") != std::string_view::npos;
    const AttentionCall shapes[] = {{name + "-prefill-f32-d64", spec, 1, 8, 8, 2048, 2048, 64, 64, f32, false},
                                    {name + (halves ? "-decode-f16-8x2-32k" : "-decode-f32-8x2-32k"), spec, 1, 8, 2, 1,
                                     32768, 128, 128, halves ? f16 : f32, true}};
    const Spec complete = registry().complete(parse_spec(spec));
    auto takes = [&](const AttentionCall& shape) {
      return !entry->refuses || entry->refuses(complete, sizes_of(shape)).empty();
    };
    // What takes neither, a shorter text.
    const AttentionCall shorter{name + "-prefill-f32-d64-256", spec, 1, 8, 8, 256, 256, 64, 64, f32, false};
    if (std::none_of(std::begin(shapes), std::end(shapes), takes) && takes(shorter)) rows.push_back(shorter);
    for (const AttentionCall& shape : shapes)
      if (takes(shape)) rows.push_back(shape);
    AttentionCall back{name + "-backward-f32-d64", spec, 1, 8, 8, 1024, 1024, 64, 64, f32, false, true};
    if (!takes(back)) back.name += "-256", back.tq = back.tk = 256;
    if (!entry->traits.gradients.empty() && takes(back)) rows.push_back(back);
  }
  for (const AttentionCall& row : backward_without_keys()) rows.push_back(row);
  return rows;
}

BenchResult run(const AttentionCall& row, Limits& limits, Context& context) {
  const Entry& entry = registry().at(parse_spec(row.spec).name);
  const Spec spec = registry().complete(parse_spec(row.spec));
  const auto op = registry().make<Operator>(spec);
  double key_bytes = static_cast<double>(row_bytes(row.kv_type, row.d) + row_bytes(value_type(row.kv_type), row.dv));
  if (is_by_channel(row.kv_type)) key_bytes += 4.0 * static_cast<double>(row.d) / 32;
  const double kv_bytes = static_cast<double>(row.b * row.hkv * row.tk) * key_bytes;
  const int copies = row.cold ? copies_beyond_caches(kv_bytes) : 1;
  const CallArrays a = make_arrays(row, entry, spec, copies);
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
        const Compute compute = softmax_options(spec).compute;
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

  Gradients(const Entry& entry, const Operator& op, const CallArrays& a, DType type) : in(inputs(a, 0)) {
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

  void run(const Operator& op, Context& context) const {
    op.forward(in, out, Form::kAny, context);
    op.backward(in, out, loss, wanted, context);
  }
};

// Gradients on a text short enough for the definition.
BenchResult prove_backward(const AttentionCall& row, Context& context) {
  const Entry& entry = registry().at(parse_spec(row.spec).name);
  const Spec spec = registry().complete(parse_spec(row.spec));
  const auto op = registry().make<Operator>(spec);
  BenchResult result{};
  AttentionCall brief = row;
  brief.hq = brief.hkv = 2, brief.tq = brief.tk = 96;
  const CallArrays short_arrays = make_arrays(brief, entry, spec, 1);
  const auto reference = entry.reference(spec);
  const Gradients got(entry, *op, short_arrays, DType::kF32), want(entry, *reference, short_arrays, DType::kF64);
  got.run(*op, context);
  want.run(*reference, context);
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
  return result;
}

BenchResult run_backward(const AttentionCall& row, Limits& limits, Context& context) {
  const Entry& entry = registry().at(parse_spec(row.spec).name);
  const Spec spec = registry().complete(parse_spec(row.spec));
  const auto op = registry().make<Operator>(spec);
  BenchResult result = prove_backward(row, context);
  if (!result.failure.empty()) return result;
  const double pairs = visible_pairs(row, entry, spec) * static_cast<double>(row.b * row.hq);
  result.flops = row.flops > 0 ? row.flops : pairs * 2 * static_cast<double>(4 * row.d + 3 * row.dv);
  const double exps = row.flops > 0 ? row.exps : 2 * pairs;
  const CallArrays arrays = make_arrays(row, entry, spec, 1);
  const Gradients all(entry, *op, arrays, DType::kF32);
  measure(
      result, [&] { all.run(*op, context); },
      [&] {
        const double flops = std::max(limits.multiply_adds(), limits.multiply_adds());
        return result.flops / flops + exps / std::max(limits.exponentials(), limits.exponentials());
      },
      context);
  return result;
}

}  // namespace

namespace {

BenchResult prove(const AttentionCall& row, Context& context) {
  if (row.backward) return prove_backward(row, context);
  const Entry& entry = registry().at(parse_spec(row.spec).name);
  BenchResult result{};
  result.error = short_error(row, entry, registry().complete(parse_spec(row.spec)), context, result.failure);
  return result;
}

BenchRow row_of(const AttentionCall& a) {
  return {a.name,
          a.backward ? a.spec + ", forward and backward" : a.spec,
          std::string(name_of(a.kv_type)),
          {{"B", a.b}, {"Hq", a.hq}, {"Hkv", a.hkv}, {"Tq", a.tq}, {"Tk", a.tk}, {"D", a.d}, {"Dv", a.dv}},
          a.cold,
          [a](Limits& limits, Context& context) {
            return a.backward ? run_backward(a, limits, context) : run(a, limits, context);
          },
          [a](Context& context) { return prove(a, context); }};
}

}  // namespace

std::vector<BenchRow> attention_rows() {
  std::vector<BenchRow> rows;
  for (const AttentionCall& call : attentions()) rows.push_back(row_of(call));
  // On one thread and on all, each beside the machine's limit for as many.
  const AttentionCall scaled[] = {
      {"exact/threads-prefill", "softmax:causal=true", 1, 8, 8, 2048, 2048, 64, 64, DType::kF32, false},
      {"exact/threads-decode", "softmax:causal=true", 1, 8, 2, 1, 32768, 128, 128, DType::kF16, true},
      {"exact/threads-backward", "softmax:causal=true", 1, 8, 8, 1024, 1024, 64, 64, DType::kF32, false, true}};
  for (const AttentionCall& call : scaled) {
    BenchRow all = row_of(call), one = all;
    all.name += "-all", one.name += "-1";
    one.run = [measured = all.run](Limits&, Context& context) {
      Context alone(1);
      alone.isa = context.isa;
      Limits limits(alone);
      return measured(limits, alone);
    };
    rows.push_back(std::move(one));
    rows.push_back(std::move(all));
  }
  return rows;
}

}  // namespace attend::app
