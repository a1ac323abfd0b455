#include "state.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "attend/kv/store_file.h"
#include "attend/lm/engine.h"
#include "attend/tensor/error.h"
#include "executor.h"
#include "retainer.h"
#include "selective_reader.h"
#include "sha256.h"

namespace attend {

std::string state_policy(const Policy& policy, const Registry& registry) {
  for (Kind kind : {Kind::kSelector, Kind::kPlan, Kind::kAllocator, Kind::kRetention})
    if (policy[kind]) return "";
  Policy stored = policy;
  stored[Kind::kStore] = registry.policy("softmax")[Kind::kStore];
  return to_string(stored, registry);
}

std::string fingerprint(const LanguageModel& model) {
  constexpr int64_t kRows = 64;
  const Graph& graph = model.graph();
  Sha256 sha;
  auto add = [&](const auto& value) { sha.add(&value, sizeof value); };
  const std::string name = fmt::format("{}|{}|", graph.architecture, graph.name);
  sha.add(name.data(), name.size());
  add(static_cast<int64_t>(model.compute()));
  for (const AttentionLayer& layer : graph.layers) {
    for (int64_t size : {int64_t{layer.heads}, int64_t{layer.kv_heads}, layer.d, layer.dv, layer.window}) add(size);
    add(layer.scale);
  }
  for (size_t i = 0; i < graph.vectors.size(); ++i)
    sha.add(model.vector(static_cast<int>(i)), static_cast<size_t>(graph.vectors[i].n) * sizeof(float));
  std::vector<float> row;
  for (size_t i = 0; i < graph.matrices.size(); ++i) {
    const auto [tensor, n, k] = graph.matrices[i];
    row.resize(static_cast<size_t>(k));
    for (int64_t r = 0; r < std::min(n, kRows); ++r) {
      unpack_row(model.matrix(static_cast<int>(i)), r * n / std::min(n, kRows), row.data());
      sha.add(row.data(), row.size() * sizeof(float));
    }
  }
  return sha.hex();
}

void Session::check_saves() const {
  check_settled("state");
  if (policy_.empty())
    throw Error(ErrorKind::kUnsupported, "state", "policy", "",
                "keeps more than keys and values (a retention, plan, allocator or selector): its state is not saved");
}

void Session::save(const std::filesystem::path& path) const {
  check_saves();
  save_store(*store_, {fingerprint(*model_), policy_}, position_, path);
}

void Session::restore(const std::filesystem::path& path) {
  if (position_ > 0)
    throw Error(ErrorKind::kArgument, "restore", "session", fmt::format("{} tokens", position_), "must be new");
  check_saves();
  const int64_t tokens = load_store(path, {fingerprint(*model_), policy_}, *store_);
  if (tokens > limit_) {
    store_->clear();
    throw Error(ErrorKind::kArgument, "restore", "tokens", std::to_string(tokens),
                fmt::format("the context holds {}", limit_));
  }
  position_ = tokens;
  peak_bytes_ = bytes();
}

}  // namespace attend
