#pragma once
// A whole model in a few hundred kilobytes, with weights drawn from a fixed seed: every architecture that attend reads.
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <string>

#include "support/small_vocabulary.h"

namespace attend::test {

struct SmallModel {
  std::string architecture = "llama";
  int64_t layers = 2, width = 32, feed_forward = 48, heads = 4, kv_heads = 2, head = 8, context = 400, window = 6;
  int64_t vocabulary = 269;                 // that of write_small_bpe
  std::map<std::string, int64_t> integers;  // hyperparameters replaced; below 0: left out
  std::map<std::string, float> reals;
  std::map<std::string, std::vector<int64_t>> shapes;  // of tensors, replaced; empty: left out
  std::map<std::string, std::string> texts;            // more keys
  std::map<std::string, float> more_reals;
  std::map<std::string, int64_t> more_integers;
  std::map<std::string, std::vector<float>> vectors;  // more tensors
  std::string extra_tensor, first_token = "<|endoftext|>";
  float weight_scale = 0.3f;

  std::string bytes() const {
    GgufWriter w;
    w.text("general.architecture", architecture);
    const auto integer = [&](const std::string& key, int64_t value) {
      const auto given = integers.find(key);
      const int64_t chosen = given == integers.end() ? value : given->second;
      if (chosen >= 0) w.u32(architecture + "." + key, static_cast<uint32_t>(chosen));
    };
    const auto real = [&](const std::string& key, float value) {
      const auto given = reals.find(key);
      w.f32(architecture + "." + key, given == reals.end() ? value : given->second);
    };
    integer("block_count", layers);
    integer("context_length", context);
    integer("vocab_size", vocabulary);
    integer("embedding_length", width);
    integer("feed_forward_length", feed_forward);
    integer("attention.head_count", heads);
    integer("attention.head_count_kv", kv_heads);
    integer("attention.key_length", head);
    integer("attention.value_length", head);
    real("attention.layer_norm_rms_epsilon", 1e-5f);
    real("rope.freq_base", 10000);
    if (architecture == "gemma3") integer("attention.sliding_window", window);
    for (const auto& [key, value] : texts) w.text(key, value);
    for (const auto& [key, value] : more_reals) w.f32(key, value);
    for (const auto& [key, value] : more_integers) w.u32(key, static_cast<uint32_t>(value));
    write_small_bpe(w, "smollm", first_token);

    std::mt19937 random(42);
    std::normal_distribution<float> normal;
    const auto tensor = [&](const std::string& name, std::vector<int64_t> shape, float offset = 0) {
      if (const auto given = shapes.find(name); given != shapes.end()) shape = given->second;
      if (shape.empty()) return;
      int64_t count = 1;
      for (int64_t extent : shape) count *= extent;
      std::vector<float> values(static_cast<size_t>(count));
      for (float& x : values) x = offset + weight_scale * normal(random);
      w.tensor(name, shape, values);
    };
    const bool gemma = architecture == "gemma3";
    tensor("token_embd.weight", {vocabulary, width});
    tensor("output_norm.weight", {width}, 1);
    for (int64_t l = 0; l < layers; ++l) {
      const std::string block = "blk." + std::to_string(l) + ".";
      for (const char* name : {"attn_norm", "ffn_norm"}) tensor(block + name + ".weight", {width}, 1);
      tensor(block + "attn_q.weight", {heads * head, width});
      for (const char* name : {"attn_k", "attn_v"}) tensor(block + name + ".weight", {kv_heads * head, width});
      tensor(block + "attn_output.weight", {width, heads * head});
      for (const char* name : {"ffn_gate", "ffn_up"}) tensor(block + name + ".weight", {feed_forward, width});
      tensor(block + "ffn_down.weight", {width, feed_forward});
      if (!gemma) continue;
      for (const char* name : {"attn_q_norm", "attn_k_norm"}) tensor(block + name + ".weight", {head}, 1);
      for (const char* name : {"post_attention_norm", "post_ffw_norm"}) tensor(block + name + ".weight", {width}, 1);
    }
    if (!extra_tensor.empty()) tensor(extra_tensor, {width});
    for (const auto& [name, values] : vectors) w.tensor(name, {static_cast<int64_t>(values.size())}, values);
    return w.bytes();
  }

  // Writes the file into a fresh folder, removed with the result.
  struct File {
    std::filesystem::path folder, path;
    ~File() { std::filesystem::remove_all(folder); }
  };
  File file() const {
    char name[] = "/tmp/attend-model-XXXXXX";
    File out{mkdtemp(name), {}};
    out.path = out.folder / "small.gguf";
    const std::string all = bytes();
    std::ofstream(out.path, std::ios::binary).write(all.data(), static_cast<std::streamsize>(all.size()));
    return out;
  }
};

}  // namespace attend::test
