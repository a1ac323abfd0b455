#include "check_reads.h"

#include <fmt/format.h>

#include <vector>

#include "attend/tensor/error.h"

namespace attend {
namespace {

void read_one(const Operator& mechanism, const AttentionLayer& layer, DType k_type, DType v_type) {
  Context context(1);
  int32_t position = 0;
  const std::vector<std::byte> k(static_cast<size_t>(row_bytes(k_type, layer.d))),
      v(static_cast<size_t>(row_bytes(v_type, layer.dv)));
  const std::vector<F16> zeros(static_cast<size_t>(layer.d));
  KeyRun run{.k = k.data(),
             .v = v.data(),
             .k_stride = row_bytes(k_type, layer.d) / size_of(k_type),
             .v_stride = row_bytes(v_type, layer.dv) / size_of(v_type),
             .first_slot = 0,
             .count = 1,
             .k_type = k_type,
             .v_type = v_type};
  if (is_by_channel(k_type)) run.k_scale = run.k_offset = zeros.data();
  const std::vector<KeyView> keys(static_cast<size_t>(layer.kv_heads), KeyView{{&run, 1}, {}});
  std::vector<float> new_keys(static_cast<size_t>(layer.kv_heads * layer.d)),
      q(static_cast<size_t>(layer.heads * layer.d)), out(static_cast<size_t>(layer.heads * layer.dv)),
      lse(static_cast<size_t>(layer.heads)), sums(lse.size());
  if (mechanism.turns())
    mechanism.turn_keys(dense_view(new_keys.data(), DType::kF32, {1, layer.kv_heads, 1, layer.d}), {&position, 1},
                        context);
  const Tensors in = {{"q", dense_view(q.data(), DType::kF32, {1, layer.heads, 1, layer.d})},
                      {"k", std::span<const KeyView>(keys)},
                      {"q_positions", dense_view(&position, DType::kI32, {1, 1})}};
  Tensors results = {{"out", dense_view(out.data(), DType::kF32, {1, layer.heads, 1, layer.dv})}};
  if (!mechanism.gives_weights()) return mechanism.forward(in, results, Form::kAny, context);
  results.emplace("lse", dense_view(lse.data(), DType::kF32, {1, layer.heads, 1}));
  std::vector<KeyStatistics> places;
  for (float& sum : sums) places.push_back({.sum = &sum});
  mechanism.forward_and_add_weights(in, results, {places}, context);
}

}  // namespace

void check_reads(std::string_view name, const Operator& mechanism, const AttentionLayer& layer, const Codec& codec) {
  try {
    read_one(mechanism, layer, codec.type, codec.type);
    for (const CodecStage& stage : codec.stages) read_one(mechanism, layer, stage.keys, stage.values);
  } catch (const Error& e) {
    throw Error(ErrorKind::kUnsupported, "policy", name, "",
                fmt::format("can't run in a model, which has queries and stored keys and values alone: {}", e.what()));
  }
}

}  // namespace attend
