// Files whose hyperparameters and tensors don't fit each other are refused in one line, before anything large happens.
#include "attend/lm/graph.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "support/expect_error.h"
#include "support/small_model.h"

namespace attend {
namespace {

using test::expect_error;
using test::SmallModel;

Graph graph_of(const SmallModel& model) {
  const std::string bytes = model.bytes();
  return make_graph(Gguf::parse(test::as_bytes(bytes), "small.gguf"));
}

TEST(Graph, ListsOperations) {
  for (const char* architecture : {"llama", "gemma3"}) {
    SmallModel model;
    model.architecture = architecture;
    const Graph graph = graph_of(model);
    EXPECT_EQ(graph.architecture, architecture);
    EXPECT_EQ(graph.layers.size(), 2u);
    EXPECT_EQ(graph.vocabulary, 269);
    EXPECT_EQ(graph.layers[0].window, model.architecture == "gemma3" ? 6 : 0);
    EXPECT_EQ(graph.matrices[static_cast<size_t>(graph.output_matrix)].tensor, "token_embd.weight");
  }
}

TEST(Graph, MakesEverySixthLayerOfGemmaGlobal) {
  SmallModel model;
  model.architecture = "gemma3";
  model.layers = 13;
  const Graph graph = graph_of(model);
  for (size_t l = 0; l < 13; ++l) EXPECT_EQ(graph.layers[l].window, l == 5 || l == 11 ? 0 : 6) << l;
}

TEST(Graph, RefusesContradictions) {
  struct Case {
    const char* key;
    int64_t value;
    const char* part;
  };
  for (const Case& c : {Case{"block_count", 3, "blk.2."},
                        Case{"block_count", 1, "blk.1."},
                        Case{"block_count", 0, "block_count"},
                        Case{"block_count", 4'000'000'000, "block_count"},
                        Case{"block_count", -1, "block_count"},
                        Case{"embedding_length", 64, "token_embd"},
                        Case{"embedding_length", 0, "embedding_length"},
                        Case{"embedding_length", 4'000'000'000, "embedding_length"},
                        Case{"feed_forward_length", 47, "ffn_"},
                        Case{"feed_forward_length", 4'000'000'000, "feed_forward"},
                        Case{"attention.head_count", 3, "heads"},
                        Case{"attention.head_count", 0, "head_count"},
                        Case{"attention.head_count", 8, "attn_"},
                        Case{"attention.head_count_kv", 3, "kv heads"},
                        Case{"attention.head_count_kv", 4, "attn_"},
                        Case{"attention.key_length", 16, "attn_"},
                        Case{"attention.key_length", 7, "dimension_count"},
                        Case{"attention.key_length", 513, "key_length"},
                        Case{"attention.value_length", 4, "attn_v"},
                        Case{"context_length", 0, "context_length"},
                        Case{"context_length", 4'000'000'000, "context_length"}}) {
    SCOPED_TRACE(std::string(c.key) + " = " + std::to_string(c.value));
    for (const char* architecture : {"llama", "gemma3"}) {
      SmallModel model;
      model.architecture = architecture;
      model.integers[c.key] = c.value;
      try {
        graph_of(model);
        ADD_FAILURE() << "accepted";
      } catch (const Error& error) {
        EXPECT_TRUE(error.kind() == ErrorKind::kFile || error.kind() == ErrorKind::kUnsupported) << error.what();
        if (std::string_view(architecture) == "llama") {
          EXPECT_NE(std::string_view(error.what()).find(c.part), std::string_view::npos) << error.what();
        }
      }
    }
  }
}

TEST(Graph, RefusesNumbersThatAreNone) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const char* key : {"attention.layer_norm_rms_epsilon", "rope.freq_base"})
    for (float value : {0.0f, -1.0f, inf, std::nanf("")}) {
      SmallModel model;
      model.reals[key] = value;
      expect_error(ErrorKind::kFile, key, [&] { graph_of(model); });
    }
}

TEST(Graph, RefusesTensorsThatDontFit) {
  SmallModel missing;
  missing.shapes["blk.1.ffn_down.weight"] = {};
  expect_error(ErrorKind::kFile, "blk.1.ffn_down.weight", [&] { graph_of(missing); });
  SmallModel rank;
  rank.shapes["output_norm.weight"] = {1, 32};
  expect_error(ErrorKind::kFile, "output_norm.weight", [&] { graph_of(rank); });
  SmallModel vocabulary;
  vocabulary.integers["vocab_size"] = 268;
  expect_error(ErrorKind::kFile, "vocab_size", [&] { graph_of(vocabulary); });
  SmallModel extra;
  extra.extra_tensor = "blk.0.attn_q.bias";
  expect_error(ErrorKind::kUnsupported, "blk.0.attn_q.bias", [&] { graph_of(extra); });
}

TEST(Graph, RefusesUnknownArchitecturesAndFeatures) {
  SmallModel other;
  other.architecture = "mamba";
  expect_error(ErrorKind::kUnsupported, "architecture mamba is not supported; supported: gemma3, llama",
               [&] { graph_of(other); });
  SmallModel scaled;
  scaled.texts["llama.rope.scaling.type"] = "su";
  expect_error(ErrorKind::kUnsupported, "su, is not supported", [&] { graph_of(scaled); });
}

TEST(Graph, ReadsRotaryScalings) {
  SmallModel model;
  model.texts["llama.rope.scaling.type"] = "yarn";
  model.more_reals = {{"llama.rope.scaling.factor", 4.0f}, {"llama.rope.scaling.yarn_beta_fast", 16.0f}};
  model.more_integers = {{"llama.rope.scaling.original_context_length", 100}};
  const RopeOptions yarn = graph_of(model).rotaries[0].options;
  EXPECT_EQ(yarn.scaling, RopeScaling::kYarn);
  EXPECT_EQ(yarn.factor, 4);
  EXPECT_EQ(yarn.beta_fast, 16);
  EXPECT_EQ(yarn.original, 100);
  EXPECT_NEAR(yarn.magnitude, 1 + 0.1 * std::log(4.0), 1e-12);
  model.more_reals["llama.rope.scaling.factor"] = 0.5f;
  expect_error(ErrorKind::kFile, "factor", [&] { graph_of(model); });
}

TEST(Graph, RefusesRotaryDivisorsOfAnotherLength) {
  SmallModel model;
  model.vectors["rope_freqs.weight"] = {1, 1, 1};
  expect_error(ErrorKind::kFile, "rope_freqs.weight", [&] { graph_of(model); });
}

}  // namespace
}  // namespace attend
