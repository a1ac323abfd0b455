// Worker of scripts/peers.py: ggml_flash_attn_ext on ggml's CPU backend, as llama.cpp builds it.
#include <cmath>
#include <memory>

#include "ggml-cpu.h"
#include "ggml.h"
#include "peers_worker.h"

namespace {

struct Loaded {
  ggml_context* context = nullptr;
  std::vector<ggml_cgraph*> graphs;
  std::vector<ggml_cplan> plans;
  std::vector<std::vector<uint8_t>> work;
  std::vector<ggml_tensor*> outs;
  size_t turn = 0;

  ~Loaded() { ggml_free(context); }
};

// [B, H, T, D] in memory; ggml names axes from the innermost.
ggml_tensor* tensor_of(ggml_context* context, const std::vector<float>& values, ggml_type type, int64_t batch,
                       int64_t heads, int64_t tokens, int64_t width) {
  ggml_tensor* tensor = ggml_new_tensor_4d(context, type, width, tokens, heads, batch);
  const int64_t count = static_cast<int64_t>(values.size());
  if (type == GGML_TYPE_F16) {
    ggml_fp32_to_fp16_row(values.data(), static_cast<ggml_fp16_t*>(tensor->data), count);
  } else if (type == GGML_TYPE_BF16) {
    ggml_fp32_to_bf16_row(values.data(), static_cast<ggml_bf16_t*>(tensor->data), count);
  } else {
    std::copy(values.begin(), values.end(), static_cast<float*>(tensor->data));
  }
  return tensor;
}

// What llama.cpp gives: f16, 0 or -inf. A single query that sees all keys needs none.
ggml_tensor* mask_of(ggml_context* context, const peers::Shape& s) {
  if ((!s.causal && s.window == 0) || (s.queries == 1 && s.window == 0)) return nullptr;
  ggml_tensor* mask = ggml_new_tensor_2d(context, GGML_TYPE_F16, s.keys, s.queries);
  const ggml_fp16_t shown = ggml_fp32_to_fp16(0), hidden = ggml_fp32_to_fp16(-INFINITY);
  for (int64_t i = 0; i < s.queries; ++i)
    for (int64_t j = 0; j < s.keys; ++j)
      static_cast<ggml_fp16_t*>(mask->data)[i * s.keys + j] = s.visible(i, j) ? shown : hidden;
  return mask;
}

std::function<void()> load(const peers::Shape& s) {
  const ggml_type type = s.type == "f16" ? GGML_TYPE_F16 : s.type == "bf16" ? GGML_TYPE_BF16 : GGML_TYPE_F32;
  const int64_t count = s.batch * s.heads * s.queries * s.width, kv_count = s.batch * s.kv_heads * s.keys * s.width;
  const size_t bytes =
      static_cast<size_t>(s.copies) * (static_cast<size_t>(kv_count) * 8 + static_cast<size_t>(count) * 4) +
      static_cast<size_t>(count) * 4 + static_cast<size_t>(s.queries * s.keys) * 2 +
      (static_cast<size_t>(s.copies) + 1) * ggml_graph_overhead() + (size_t{1} << 20);
  auto loaded = std::make_shared<Loaded>();
  loaded->context = ggml_init({bytes, nullptr, false});
  if (!loaded->context) throw std::runtime_error("ggml_init failed");
  ggml_context* context = loaded->context;
  ggml_tensor* q = tensor_of(context, peers::read(s, "q", count), GGML_TYPE_F32, s.batch, s.heads, s.queries, s.width);
  ggml_tensor* mask = mask_of(context, s);
  const std::vector<float> keys = peers::read(s, "k", kv_count), values = peers::read(s, "v", kv_count);
  for (int i = 0; i < s.copies; ++i) {
    ggml_tensor* k = tensor_of(context, keys, type, s.batch, s.kv_heads, s.keys, s.width);
    ggml_tensor* v = tensor_of(context, values, type, s.batch, s.kv_heads, s.keys, s.width);
    const float scale = 1 / std::sqrt(static_cast<float>(s.width));
    ggml_tensor* out = ggml_flash_attn_ext(context, q, k, v, mask, scale, 0, 0);
    ggml_cgraph* graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, out);
    ggml_cplan plan = ggml_graph_plan(graph, s.threads, nullptr);
    loaded->work.emplace_back(plan.work_size);
    plan.work_data = loaded->work.back().data();
    loaded->graphs.push_back(graph);
    loaded->plans.push_back(plan);
    loaded->outs.push_back(out);
  }
  auto call = [loaded] {
    const size_t i = loaded->turn++ % loaded->graphs.size();
    if (ggml_graph_compute(loaded->graphs[i], &loaded->plans[i]) != GGML_STATUS_SUCCESS)
      throw std::runtime_error("ggml_graph_compute failed");
  };
  call();
  // ggml leaves [B, T, H, D].
  std::vector<float> result(static_cast<size_t>(count));
  const float* out = static_cast<const float*>(loaded->outs[0]->data);
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t i = 0; i < s.queries; ++i)
        std::copy_n(out + ((b * s.queries + i) * s.heads + h) * s.width, s.width,
                    result.data() + ((b * s.heads + h) * s.queries + i) * s.width);
  peers::write(s, result);
  return call;
}

}  // namespace

int main() {
  ggml_cpu_init();
  return peers::serve(load);
}
