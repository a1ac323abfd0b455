// llama: pre-norm transformer with rotary positions and a gated SiLU feed-forward (Touvron et al. 2023,
// arXiv:2302.13971; grouped heads: arXiv:2307.09288).
//
//   x += o(attention(rope(q(norm x)), rope(k(norm x)), v(norm x)))
//   x += down(silu(gate(norm x)) * up(norm x))
#include <fmt/format.h>

#include <cmath>

#include "architecture.h"

namespace attend {

Graph make_llama(const Gguf& file) {
  const Hyperparameters hyper{file, "llama."};
  const Dimensions n = read_dimensions(hyper);
  hyper.require_zero("expert_count");
  const int64_t rotated = hyper.integer("rope.dimension_count", 2, n.d, n.d);
  if (rotated % 2) hyper.contradiction(fmt::format("llama.rope.dimension_count = {}, must be even", rotated));

  Graph g;
  g.vocabulary = n.vocabulary, g.context = n.context, g.width = n.width;
  g.rotaries = {read_rotary(hyper, {.dims = rotated, .base = 10000, .interleaved = true})};
  const int x = g.add_slot("x", n.width), h = g.add_slot("h", n.width);
  const int q = g.add_slot("q", n.heads * n.d), k = g.add_slot("k", n.kv_heads * n.d);
  const int v = g.add_slot("v", n.kv_heads * n.dv), a = g.add_slot("attention", n.heads * n.dv);
  const int gate = g.add_slot("gate", n.feed_forward), up = g.add_slot("up", n.feed_forward);
  const int heads = static_cast<int>(n.heads), kv_heads = static_cast<int>(n.kv_heads);

  const int embedding = g.add_matrix("token_embd.weight", n.vocabulary, n.width);
  auto& run = g.operations;
  run.push_back(op::Embed{embedding, x});
  for (int64_t l = 0; l < n.layers; ++l) {
    auto matrix = [&](std::string_view name, int64_t rows, int64_t columns) {
      return g.add_matrix(layer_tensor(l, name), rows, columns);
    };
    auto norm = [&](std::string_view name) {
      return op::RmsNorm{x, g.add_vector(layer_tensor(l, name), n.width), h, 1, n.epsilon};
    };
    run.push_back(norm("attn_norm"));
    run.push_back(op::Product{h,
                              {{matrix("attn_q", n.heads * n.d, n.width), q},
                               {matrix("attn_k", n.kv_heads * n.d, n.width), k},
                               {matrix("attn_v", n.kv_heads * n.dv, n.width), v}}});
    run.push_back(op::Rotate{q, heads, static_cast<int>(l)});
    run.push_back(op::Rotate{k, kv_heads, static_cast<int>(l)});
    run.push_back(op::Attend{q, k, v, a, static_cast<int>(l)});
    g.layers.push_back({heads, kv_heads, n.d, n.dv, 1 / std::sqrt(static_cast<double>(n.d)), 0, 0});
    if (l == n.layers - 1) run.push_back(op::SelectRows{{x, a}});
    run.push_back(op::Product{a, {{matrix("attn_output", n.width, n.heads * n.dv), h}}});
    run.push_back(op::Add{x, h});
    run.push_back(norm("ffn_norm"));
    run.push_back(op::Product{
        h, {{matrix("ffn_gate", n.feed_forward, n.width), gate}, {matrix("ffn_up", n.feed_forward, n.width), up}}});
    run.push_back(op::Gate{gate, up, Activation::kSilu});
    run.push_back(op::Product{gate, {{matrix("ffn_down", n.width, n.feed_forward), h}}});
    run.push_back(op::Add{x, h});
  }
  run.push_back(op::RmsNorm{x, g.add_vector("output_norm.weight", n.width), h, 1, n.epsilon});
  g.output_slot = h;
  g.output_matrix = file.find("output.weight") ? g.add_matrix("output.weight", n.vocabulary, n.width) : embedding;
  return g;
}

}  // namespace attend
