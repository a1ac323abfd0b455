// gemma3: norms before and after each block, norms of queries and keys, a gated GELU feed-forward, and local layers
// with a window between global ones (Gemma 3 technical report, arXiv:2503.19786). Norm weights hold their +1 already.
//
//   x = sqrt(width) * embedding
//   x += norm(o(attention(rope(norm q(norm x)), rope(norm k(norm x)), v(norm x))))
//   x += norm(down(gelu(gate(norm x)) * up(norm x)))
#include <fmt/format.h>

#include <cmath>

#include "architecture.h"

namespace attend {

Graph make_gemma3(const Gguf& file) {
  const Hyperparameters hyper{file, "gemma3."};
  const Dimensions n = read_dimensions(hyper);
  hyper.require_zero("attn_logit_softcapping");
  hyper.require_zero("final_logit_softcapping");
  if (n.d % 2) hyper.contradiction(fmt::format("gemma3.attention.key_length = {}, must be even", n.d));
  const int64_t window = hyper.integer("attention.sliding_window", 1, int64_t{1} << 30);
  constexpr int64_t kPeriod = 6;  // five local layers, then a global one
  // The 27B model, which has 62 layers, scales by its width.
  const double scale = 1 / std::sqrt(n.layers == 62 ? static_cast<double>(n.width) / static_cast<double>(n.heads)
                                                    : static_cast<double>(n.d));

  Graph g;
  g.vocabulary = n.vocabulary, g.context = n.context, g.width = n.width;
  // A scaling is that of the global layers.
  g.rotaries = {read_rotary(hyper, {.dims = n.d, .base = 1e6}),
                {.options = {.dims = n.d, .base = hyper.real("rope.freq_base_swa", kLeastBase, 1e12, 10000)},
                 .short_factors = {},
                 .long_factors = {}}};
  const int x = g.add_slot("x", n.width), h = g.add_slot("h", n.width);
  const int q = g.add_slot("q", n.heads * n.d), k = g.add_slot("k", n.kv_heads * n.d);
  const int v = g.add_slot("v", n.kv_heads * n.dv), a = g.add_slot("attention", n.heads * n.dv);
  const int gate = g.add_slot("gate", n.feed_forward), up = g.add_slot("up", n.feed_forward);
  const int heads = static_cast<int>(n.heads), kv_heads = static_cast<int>(n.kv_heads);

  const int embedding = g.add_matrix("token_embd.weight", n.vocabulary, n.width);
  auto& run = g.operations;
  run.push_back(op::Embed{embedding, x});
  run.push_back(op::Scale{x, std::sqrt(static_cast<float>(n.width))});
  for (int64_t l = 0; l < n.layers; ++l) {
    const bool local = l % kPeriod != kPeriod - 1;
    auto matrix = [&](std::string_view name, int64_t rows, int64_t columns) {
      return g.add_matrix(layer_tensor(l, name), rows, columns);
    };
    auto norm = [&](std::string_view name, int from, int to) {
      return op::RmsNorm{from, g.add_vector(layer_tensor(l, name), n.width), to, 1, n.epsilon};
    };
    auto head_norm = [&](std::string_view name, int slot, int groups) {
      return op::RmsNorm{slot, g.add_vector(layer_tensor(l, name), n.d), slot, groups, n.epsilon};
    };
    run.push_back(norm("attn_norm", x, h));
    run.push_back(op::Product{h,
                              {{matrix("attn_q", n.heads * n.d, n.width), q},
                               {matrix("attn_k", n.kv_heads * n.d, n.width), k},
                               {matrix("attn_v", n.kv_heads * n.dv, n.width), v}}});
    run.push_back(head_norm("attn_q_norm", q, heads));
    run.push_back(head_norm("attn_k_norm", k, kv_heads));
    run.push_back(op::Rotate{q, heads, static_cast<int>(l)});
    run.push_back(op::Rotate{k, kv_heads, static_cast<int>(l)});
    run.push_back(op::Attend{q, k, v, a, static_cast<int>(l)});
    g.layers.push_back({heads, kv_heads, n.d, n.dv, scale, local ? window : 0, local});
    if (l == n.layers - 1) run.push_back(op::SelectRows{{x, a}});
    run.push_back(op::Product{a, {{matrix("attn_output", n.width, n.heads * n.dv), h}}});
    run.push_back(norm("post_attention_norm", h, h));
    run.push_back(op::Add{x, h});
    run.push_back(norm("ffn_norm", x, h));
    run.push_back(op::Product{
        h, {{matrix("ffn_gate", n.feed_forward, n.width), gate}, {matrix("ffn_up", n.feed_forward, n.width), up}}});
    run.push_back(op::Gate{gate, up, Activation::kGelu});
    run.push_back(op::Product{gate, {{matrix("ffn_down", n.width, n.feed_forward), h}}});
    run.push_back(norm("post_ffw_norm", h, h));
    run.push_back(op::Add{x, h});
  }
  run.push_back(op::RmsNorm{x, g.add_vector("output_norm.weight", n.width), h, 1, n.epsilon});
  g.output_slot = h;
  g.output_matrix = file.find("output.weight") ? g.add_matrix("output.weight", n.vocabulary, n.width) : embedding;
  return g;
}

}  // namespace attend
