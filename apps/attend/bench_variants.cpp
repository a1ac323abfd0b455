// What a hook or a mask costs beside the plain kernel, and the backward pass.
#include <algorithm>
#include <cmath>

#include "attend/exact/attention_operator.h"
#include "attend/reference/softmax.h"
#include "attend/tensor/npy.h"
#include "bench.h"
#include "bench_inputs.h"

namespace attend::app {
namespace {

constexpr int64_t kHeads = 8, kWidth = 64;

struct Arrays {
  Array q, k, v, out, lse, d_out, dq, dk, dv;

  Arrays(int64_t heads, int64_t tokens) {
    uint64_t seed = 1;
    for (Array* a : {&q, &k, &v, &out, &d_out, &dq, &dk, &dv}) {
      *a = make_array(DType::kF32, 4, {1, heads, tokens, kWidth});
      fill_normal(a->view, a == &q ? 2.0f : 1.0f, seed++);
    }
    lse = make_array(DType::kF32, 3, {1, heads, tokens});
  }
  Qkv in() const { return {.q = q.view, .k = k.view, .v = v.view}; }
  AttnOut outputs() const { return {out.view, lse.view}; }
};

double least_seconds(double pairs, double matrices, double exps_a_pair, Limits& limits,
                     Compute compute = Compute::kF32) {
  auto rate = [&] { return compute == Compute::kBF16 ? limits.bf16_multiply_adds() : limits.multiply_adds(); };
  const double flops = std::max(rate(), rate());
  const double exps = std::max(limits.exponentials(), limits.exponentials());
  return pairs * (matrices * 2 * kWidth / flops + exps_a_pair / exps);
}

double largest_difference(const View& a, const View& b) {
  double worst = 0;
  for (int64_t i = 0; i < a.count(); ++i)
    if (const double d = std::abs(value_at(a, i) - value_at(b, i)); !(d <= worst)) worst = d;
  return worst;
}

// A causal text of 4,096 tokens under `variant` beside the plain kernel; `options` are those beside the variant.
BenchResult run_variant(const SoftmaxOptions& options, const Variant& variant, const View& toeplitz, Limits& limits,
                        Context& context) {
  constexpr int64_t kTokens = 4096;
  const Arrays a(kHeads, kTokens);
  const Array want = make_array(DType::kF32, 4, {1, kHeads, kTokens, kWidth});
  Qkv biased = a.in();
  biased.bias = toeplitz;
  softmax_attention(biased, {.causal = true, .compute = options.compute}, {.out = want.view}, context);
  auto call = [&] { softmax_attention(a.in(), options, {.out = a.out.view}, context, variant); };
  call();
  BenchResult result{};
  const double pairs = kHeads * kTokens * (kTokens + 1) / 2.0;
  result.flops = pairs * 4 * kWidth;
  result.error = largest_difference(a.out.view, want.view);
  // Both add the same two numbers, or none.
  if (result.error != 0) result.failure = "differs from the same bias or option";
  if (!result.failure.empty()) return result;
  measure(
      result, call, [&] { return least_seconds(pairs, 2, 1, limits, options.compute); }, context,
      [&] { softmax_attention(a.in(), {.causal = true, .compute = options.compute}, {.out = a.out.view}, context); });
  return result;
}

BenchResult mask_row(Limits& limits, Context& context) {
  const BlockMask mask = block_mask([](int, int, int i, int j) { return j <= i; }, {1, 1, 4096, 4096}, context);
  return run_variant({}, {.mask = &mask}, {}, limits, context);
}

BenchResult score_row(Compute compute, Limits& limits, Context& context) {
  auto closer = [](float s, int, int, int i, int j) { return s + 0.0625f * static_cast<float>(j - i); };
  const Hook hook = make_hook(closer);
  std::vector<float> distances(8191);
  for (int d = -4095; d <= 4095; ++d) distances[static_cast<size_t>(d + 4095)] = 0.0625f * static_cast<float>(d);
  View toeplitz = dense_view(distances.data() + 4095, DType::kF32, {1, 1, 4096, 4096});
  toeplitz.stride = {0, 0, -1, 1};
  return run_variant({.causal = true, .compute = compute}, {.score = &hook}, toeplitz, limits, context);
}

BenchResult backward_row(int64_t tokens, Limits& limits, Context& context) {
  const Arrays a(kHeads, tokens);
  const SoftmaxOptions options{.causal = true};
  auto call = [&](const Arrays& x) {
    softmax_attention(x.in(), options, x.outputs(), context);
    softmax_attention_backward(x.in(), options, x.outputs(), {.out = x.d_out.view},
                               {.q = x.dq.view, .k = x.dk.view, .v = x.dv.view}, context);
  };
  BenchResult result{};
  const double pairs = static_cast<double>(kHeads * tokens * (tokens + 1)) / 2;
  result.flops = pairs * 14 * kWidth;
  // Proved on a text short enough for the definition.
  const Arrays brief(1, std::min<int64_t>(tokens, 200));
  call(brief);
  const auto reference = make_softmax_reference(options);
  const Spec spec = parse_spec("softmax:causal=true");
  const std::pair<std::string, const Array*> gradients[] = {{"q", &brief.dq}, {"k", &brief.dk}, {"v", &brief.dv}};
  Tensors in = {{"q", brief.q.view}, {"k", brief.k.view}, {"v", brief.v.view}}, want;
  std::vector<Array> storage;
  for (const auto& [name, got] : gradients) {
    storage.push_back(make_array(DType::kF64, 4, got->view.shape));
    want[name] = storage.back().view;
  }
  reference->backward(in, {}, {{"out", brief.d_out.view}}, want, context);
  in["grad out"] = brief.d_out.view;
  for (const auto& [name, got] : gradients) {
    const double error = largest_difference(got->view, std::get<View>(want.at(name)));
    result.error = std::max(result.error, error);
    if (!(error <= softmax_bound(spec, in, "grad " + name))) result.failure = "gradient of " + name + " is wrong";
  }
  if (!result.failure.empty()) return result;
  measure(
      result, [&] { call(a); }, [&] { return least_seconds(pairs, 7, 2, limits); }, context);
  return result;
}

}  // namespace

std::vector<BenchRow> variant_rows() {
  auto shape = [](int64_t tokens) {
    return std::vector<std::pair<std::string, int64_t>>{{"B", 1},       {"Hq", kHeads}, {"Hkv", kHeads}, {"Tq", tokens},
                                                        {"Tk", tokens}, {"D", kWidth},  {"Dv", kWidth}};
  };
  std::vector<BenchRow> rows = {
      {"exact/mask-lambda-f32", "softmax with a causal block mask, beside the option", "f32", shape(4096), false,
       mask_row},
      {"exact/hook-score-f32", "softmax:causal=true with a score hook, beside none", "f32", shape(4096), false,
       [](Limits& l, Context& c) { return score_row(Compute::kF32, l, c); }},
      {"exact/hook-score-bf16", "softmax:causal=true,compute=bf16 with a score hook, beside none", "f32", shape(4096),
       false, [](Limits& l, Context& c) { return score_row(Compute::kBF16, l, c); }}};
  for (int64_t tokens : {1024, 4096})
    rows.push_back({tokens == 1024 ? "exact/backward-f32" : "exact/backward-f32-4k",
                    "softmax:causal=true, forward and backward", "f32", shape(tokens), false,
                    [tokens](Limits& limits, Context& context) { return backward_row(tokens, limits, context); }});
  return rows;
}

}  // namespace attend::app
