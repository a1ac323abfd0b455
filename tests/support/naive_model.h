#pragma once
// A forward pass of a small model in double precision that shares no code with the library.
#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "attend/lm/gguf.h"
#include "support/small_model.h"

namespace attend::test {

using Row = std::vector<double>;

// Weights that each query gave to each key: weights[head][query][key], 0 where it saw it not.
using Weights = std::vector<std::vector<Row>>;

// The model's equations over a whole text, in plain loops.
class NaiveModel {
 public:
  NaiveModel(const SmallModel& small, const std::string& bytes)
      : m(small), file(Gguf::parse(test::as_bytes(bytes), "small")), gemma(small.architecture == "gemma3") {}

  // Called once `seen` tokens of a layer are read: may change kept[kv head][key], which says what the next token meets
  // of keys[kv head][key].
  std::function<void(int64_t layer, int64_t seen, const Weights&, const std::vector<std::vector<Row>>& keys,
                     std::vector<std::vector<bool>>& kept)>
      evict;

  // Of the layer that `evict` is called for: queries before they are turned, by query head, and values, by kv head,
  // which `evict` may change.
  mutable std::vector<std::vector<Row>> queries, values;

  std::vector<Row> logits(const std::vector<int32_t>& ids) const {
    std::vector<Row> x;
    for (int32_t id : ids) {
      Row row;
      for (int64_t c = 0; c < m.width; ++c)
        row.push_back(at("token_embd.weight", id * m.width + c) * (gemma ? std::sqrt(m.width) : 1));
      x.push_back(row);
    }
    for (int64_t l = 0; l < m.layers; ++l) layer(l, x);
    std::vector<Row> out;
    for (const Row& row : x) out.push_back(times("token_embd.weight", norm("output_norm.weight", row)));
    return out;
  }

 private:
  double at(const std::string& name, int64_t i) const {
    float value;
    std::memcpy(&value, file.tensor(name).data.data() + i * 4, 4);
    return value;
  }

  Row times(const std::string& name, const Row& x) const {
    const GgufTensor& w = file.tensor(name);
    Row y;
    for (int64_t n = 0; n < w.shape[0]; ++n) {
      double sum = 0;
      for (size_t c = 0; c < x.size(); ++c) sum += at(name, n * w.shape[1] + static_cast<int64_t>(c)) * x[c];
      y.push_back(sum);
    }
    return y;
  }

  Row norm(const std::string& name, Row x) const {
    double square = 0;
    for (double v : x) square += v * v / static_cast<double>(x.size());
    for (size_t c = 0; c < x.size(); ++c) x[c] *= at(name, static_cast<int64_t>(c)) / std::sqrt(square + 1e-5f);
    return x;
  }

  // One head of a row: normed if the architecture does, then rotated.
  Row head(const std::string& block, const char* which, const Row& x, int64_t h, int64_t position, double base) const {
    Row y(x.begin() + h * m.head, x.begin() + (h + 1) * m.head);
    if (gemma) y = norm(block + which + "_norm.weight", y);
    const size_t half = static_cast<size_t>(m.head / 2);
    for (size_t i = 0; i < half; ++i) {
      const double angle =
          static_cast<double>(position) * std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(m.head));
      const size_t a = gemma ? i : 2 * i, b = gemma ? i + half : 2 * i + 1;
      const double u = y[a], v = y[b];
      y[a] = u * std::cos(angle) - v * std::sin(angle);
      y[b] = u * std::sin(angle) + v * std::cos(angle);
    }
    return y;
  }

  void layer(int64_t l, std::vector<Row>& x) const {
    const std::string block = fmt::format("blk.{}.", l);
    const bool local = gemma && l % 6 != 5;
    const double base = 10000;  // of both kinds: the file says so, and it is the local default
    std::vector<Row> q, k, v;
    for (const Row& row : x) {
      const Row h = norm(block + "attn_norm.weight", row);
      q.push_back(times(block + "attn_q.weight", h));
      k.push_back(times(block + "attn_k.weight", h));
      v.push_back(times(block + "attn_v.weight", h));
    }
    std::vector<std::vector<Row>> keys(static_cast<size_t>(m.kv_heads));
    for (int64_t kv = 0; kv < m.kv_heads; ++kv)
      for (size_t j = 0; j < x.size(); ++j)
        keys[static_cast<size_t>(kv)].push_back(head(block, "attn_k", k[j], kv, static_cast<int64_t>(j), base));
    queries.assign(static_cast<size_t>(m.heads), {});
    for (int64_t h = 0; h < m.heads; ++h)
      for (const Row& row : q) queries[static_cast<size_t>(h)].push_back(head(block, "attn_q", row, h, 0, base));
    values.assign(keys.size(), {});
    for (size_t kv = 0; kv < keys.size(); ++kv)
      for (const Row& row : v) {
        const auto begin = row.begin() + static_cast<std::ptrdiff_t>(kv) * m.head;
        values[kv].emplace_back(begin, begin + m.head);
      }
    std::vector<std::vector<bool>> kept(keys.size(), std::vector<bool>(x.size(), true));
    Weights weights(static_cast<size_t>(m.heads), std::vector<Row>(x.size(), Row(x.size())));
    for (size_t i = 0; i < x.size(); ++i) {
      Row attention;
      for (int64_t h = 0; h < m.heads; ++h) {
        const size_t kv = static_cast<size_t>(h / (m.heads / m.kv_heads));
        const Row query = head(block, "attn_q", q[i], h, static_cast<int64_t>(i), base);
        Row out(static_cast<size_t>(m.head));
        double total = 0;
        for (size_t j = 0; j <= i; ++j) {
          if (!kept[kv][j] || (local && static_cast<int64_t>(i - j) >= m.window)) continue;
          const Row& key = keys[kv][j];
          double score = 0;
          for (size_t c = 0; c < key.size(); ++c) score += query[c] * key[c];
          const double weight = std::exp(score / std::sqrt(static_cast<double>(m.head)));
          total += weight;
          weights[static_cast<size_t>(h)][i][j] = weight;
          for (size_t c = 0; c < out.size(); ++c) out[c] += weight * values[kv][j][c];
        }
        for (double o : out) attention.push_back(o / total);
        for (double& weight : weights[static_cast<size_t>(h)][i]) weight /= total;
      }
      if (evict) evict(l, static_cast<int64_t>(i) + 1, weights, keys, kept);
      Row h = times(block + "attn_output.weight", attention);
      if (gemma) h = norm(block + "post_attention_norm.weight", h);
      for (size_t c = 0; c < h.size(); ++c) x[i][c] += h[c];
      h = norm(block + "ffn_norm.weight", x[i]);
      Row gate = times(block + "ffn_gate.weight", h);
      const Row up = times(block + "ffn_up.weight", h);
      for (size_t c = 0; c < gate.size(); ++c) {
        const double g = gate[c];
        const double active =
            gemma ? g / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g))) : g / (1 + std::exp(-g));
        gate[c] = active * up[c];
      }
      h = times(block + "ffn_down.weight", gate);
      if (gemma) h = norm(block + "post_ffw_norm.weight", h);
      for (size_t c = 0; c < h.size(); ++c) x[i][c] += h[c];
    }
  }

  const SmallModel& m;
  Gguf file;
  bool gemma;
};

}  // namespace attend::test
