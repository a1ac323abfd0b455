#include "state.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
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
  Policy stored = policy;
  stored[Kind::kStore] = registry.policy("softmax")[Kind::kStore];
  // A plan is what its file says, not how that is called.
  for (auto& spec : stored.by_kind)
    for (const Option& option : spec ? registry.at(spec->name).options : std::span<const Option>())
      if (option.path && !spec->text(option.name).empty()) {
        std::ifstream in(spec->text(option.name), std::ios::binary);
        const std::string file((std::istreambuf_iterator<char>(in)), {});
        Sha256 sha;
        sha.add(file.data(), file.size());
        spec->set(option.name, sha.hex());
      }
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
}

std::vector<std::byte> Session::more_state() const {
  StateWriter out;
  retainer_->save(out);
  if (reader_) reader_->save(out);
  return out.bytes();
}

void Session::take_more_state(std::span<const std::byte> bytes) {
  StateReader in(bytes);
  retainer_->load(*store_, position_, in);
  if (reader_) reader_->load(*store_, position_, in, 1);
  in.finish();
}

Session Session::fork() const {
  check_settled("fork");
  Session copy(model_, made_of_, *registry_, limit_, store_->fork());
  if (copy.policy_ != policy_)
    throw Error(ErrorKind::kFile, "fork", "policy", "", "has a plan whose file has changed since");
  copy.position_ = position_;
  copy.take_more_state(more_state());
  copy.peak_bytes_ = copy.bytes();
  if (!last_.empty()) {
    copy.logits_ = Buffer(static_cast<int64_t>(last_.size_bytes()));
    std::memcpy(copy.logits_.data(), last_.data(), last_.size_bytes());
    copy.last_ = {copy.logits_.as<float>(), last_.size()};
  }
  return copy;
}

void Session::save(const std::filesystem::path& path) const {
  check_saves();
  save_store(*store_, {fingerprint(*model_), policy_}, position_, path, more_state());
}

void Session::restore(const std::filesystem::path& path) {
  check_saves();
  if (position_ > 0)
    throw Error(ErrorKind::kArgument, "restore", "session", fmt::format("{} tokens", position_), "must be new");
  std::vector<std::byte> more;
  const int64_t tokens = load_store(path, {fingerprint(*model_), policy_}, *store_, &more);
  try {
    if (tokens > limit_)
      throw Error(ErrorKind::kArgument, "restore", "tokens", std::to_string(tokens),
                  fmt::format("the context holds {}", limit_));
    position_ = tokens;
    take_more_state(more);
  } catch (...) {
    clear();
    throw;
  }
  peak_bytes_ = bytes();
}

}  // namespace attend
