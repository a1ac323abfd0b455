#include "architecture.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "attend/tensor/error.h"

namespace attend {
namespace {

constexpr Architecture kArchitectures[] = {{"gemma3", make_gemma3}, {"llama", make_llama}};

void check_tensors(const Graph& graph, const Gguf& file) {
  std::set<std::string_view> used;
  auto check = [&](const std::string& name, int rank, int64_t n, int64_t k) {
    const GgufTensor& tensor = file.tensor(name);
    const int64_t columns = rank == 2 ? tensor.shape[1] : 1;
    if (tensor.rank != rank || tensor.shape[0] != n || columns != k) {
      const std::string got =
          fmt::format("[{}]", fmt::join(tensor.shape.begin(), tensor.shape.begin() + tensor.rank, ", "));
      throw Error(ErrorKind::kFile, "model", fmt::format("{}: shape of {}", file.name(), name), got,
                  rank == 2 ? fmt::format("the hyperparameters say [{}, {}]", n, k)
                            : fmt::format("the hyperparameters say [{}]", n));
    }
    used.insert(tensor.name);
  };
  for (const MatrixRef& m : graph.matrices) check(m.tensor, 2, m.n, m.k);
  for (const VectorRef& v : graph.vectors) check(v.tensor, 1, v.n, 1);
  for (const Rotary& r : graph.rotaries)
    for (const std::string& tensor : {r.short_factors, r.long_factors})
      if (!tensor.empty()) check(tensor, 1, r.options.dims / 2, 1);
  for (const GgufTensor& tensor : file.tensors())
    if (!used.contains(tensor.name))
      throw Error(ErrorKind::kUnsupported, "model", fmt::format("{}: tensor", file.name()), tensor.name,
                  fmt::format("is not part of architecture {} as attend implements it", graph.architecture));
}

}  // namespace

int Graph::add_slot(std::string_view slot_name, int64_t slot_width) {
  slots.push_back({slot_name, slot_width});
  return static_cast<int>(slots.size()) - 1;
}

int Graph::add_matrix(std::string tensor, int64_t n, int64_t k) {
  matrices.push_back({std::move(tensor), n, k});
  return static_cast<int>(matrices.size()) - 1;
}

int Graph::add_vector(std::string tensor, int64_t n) {
  vectors.push_back({std::move(tensor), n});
  return static_cast<int>(vectors.size()) - 1;
}

int64_t Hyperparameters::integer(std::string_view key, int64_t min, int64_t max) const {
  return file.integer(prefix + std::string(key), min, max);
}

int64_t Hyperparameters::integer(std::string_view key, int64_t min, int64_t max, int64_t fallback) const {
  return file.integer(prefix + std::string(key), min, max, fallback);
}

double Hyperparameters::real(std::string_view key, double min, double max) const {
  const double value = file.real(prefix + std::string(key));
  if (!(value >= min && value <= max))
    throw Error(ErrorKind::kFile, "model", fmt::format("{}: {}{}", file.name(), prefix, key), fmt::format("{}", value),
                fmt::format("must be {} to {}", min, max));
  return value;
}

double Hyperparameters::real(std::string_view key, double min, double max, double fallback) const {
  return file.has(prefix + std::string(key)) ? real(key, min, max) : fallback;
}

void Hyperparameters::require_zero(std::string_view key) const {
  const std::string full = prefix + std::string(key);
  if (!file.has(full)) return;
  double value = 1;
  try {
    value = file.real(full);
  } catch (const Error&) {
    value = static_cast<double>(file.integer(full, 0, int64_t{1} << 40));
  }
  if (value != 0)
    throw Error(ErrorKind::kUnsupported, "model", fmt::format("{}: {}", file.name(), full), fmt::format("{}", value),
                "is not supported");
}

void Hyperparameters::contradiction(const std::string& what) const {
  throw Error(ErrorKind::kFile, "model", file.name(), "", what);
}

Dimensions read_dimensions(const Hyperparameters& hyper) {
  constexpr int64_t kMostHeads = 1024, kMostHeadSize = 512, kMostWidth = 1 << 16;
  Dimensions dims{};
  dims.layers = hyper.integer("block_count", 1, 1024);
  dims.context = hyper.integer("context_length", 1, int64_t{1} << 30);
  dims.width = hyper.integer("embedding_length", 1, kMostWidth);
  dims.feed_forward = hyper.integer("feed_forward_length", 1, 1 << 18);
  dims.heads = hyper.integer("attention.head_count", 1, kMostHeads);
  dims.kv_heads = hyper.integer("attention.head_count_kv", 1, kMostHeads, dims.heads);
  if (dims.heads % dims.kv_heads)
    hyper.contradiction(fmt::format("{} query heads can't share {} kv heads evenly", dims.heads, dims.kv_heads));
  const bool sized = hyper.file.has(hyper.prefix + "attention.key_length");
  if (!sized && dims.width % dims.heads)
    hyper.contradiction(fmt::format("width {} is no multiple of {} heads", dims.width, dims.heads));
  dims.d = hyper.integer("attention.key_length", 1, kMostHeadSize, dims.width / dims.heads);
  dims.dv = hyper.integer("attention.value_length", 1, kMostHeadSize, dims.width / dims.heads);
  if (dims.d < 1 || dims.dv < 1 || dims.d > kMostHeadSize || dims.dv > kMostHeadSize)
    hyper.contradiction(fmt::format("heads of {} and {} elements, must be 1 to {}", dims.d, dims.dv, kMostHeadSize));
  if (dims.heads * std::max(dims.d, dims.dv) > kMostWidth)
    hyper.contradiction(fmt::format("{} heads of {} are wider than {}", dims.heads, dims.d, kMostWidth));
  dims.epsilon = hyper.real("attention.layer_norm_rms_epsilon", 1e-12, 1);
  const GgufTensor& embedding = hyper.file.tensor("token_embd.weight");
  if (embedding.rank != 2 || embedding.shape[1] != dims.width || embedding.shape[0] > 1 << 24)
    hyper.contradiction(fmt::format("token_embd.weight must be [vocabulary, {}]", dims.width));
  dims.vocabulary = embedding.shape[0];
  if (hyper.integer("vocab_size", 1, 1 << 24, dims.vocabulary) != dims.vocabulary)
    hyper.contradiction(
        fmt::format("{}vocab_size differs from the {} rows of token_embd.weight", hyper.prefix, dims.vocabulary));
  return dims;
}

Rotary read_rotary(const Hyperparameters& hyper, RopeOptions rope) {
  rope.base = hyper.real("rope.freq_base", kLeastBase, 1e12, rope.base);
  const std::string key = hyper.prefix + "rope.scaling.type";
  // A factor without a type is a linear one; the key rope.scale_linear is its older name.
  const bool scaled =
      hyper.file.has(hyper.prefix + "rope.scaling.factor") || hyper.file.has(hyper.prefix + "rope.scale_linear");
  const std::string_view type = hyper.file.text(key, scaled ? "linear" : "none");
  if (type == "linear") {
    rope.scaling = RopeScaling::kLinear;
  } else if (type == "yarn") {
    rope.scaling = RopeScaling::kYarn;
  } else if (type == "longrope") {
    rope.scaling = RopeScaling::kLongRope;
  } else if (type != "none") {
    throw Error(ErrorKind::kUnsupported, "model", fmt::format("{}: {}", hyper.file.name(), key), type,
                "is not supported; supported: none, linear, yarn, longrope");
  }
  Rotary rotary{rope, {}, {}};
  RopeOptions& o = rotary.options;
  if (o.scaling != RopeScaling::kNone) {
    o.factor = hyper.real("rope.scaling.factor", 0, 1e6, hyper.real("rope.scale_linear", 0, 1e6, 1));
    if (o.factor == 0) o.factor = 1;  // as writers of the format mean it
    if (o.factor < 1)
      hyper.contradiction(fmt::format("{}rope.scaling.factor = {}, must be at least 1", hyper.prefix, o.factor));
    o.original = hyper.integer("rope.scaling.original_context_length", 2, int64_t{1} << 30,
                               std::max<int64_t>(2, hyper.integer("context_length", 1, int64_t{1} << 30)));
    const double given = hyper.real("rope.scaling.attn_factor", 0, 1e6, 0);
    double own = 1;  // what the scaling itself multiplies by
    if (o.scaling == RopeScaling::kYarn) {
      o.extrapolation = hyper.real("rope.scaling.yarn_ext_factor", 0, 1, 1);
      o.beta_fast = hyper.real("rope.scaling.yarn_beta_fast", 1e-6, 1e6, 32);
      o.beta_slow = hyper.real("rope.scaling.yarn_beta_slow", 1e-6, o.beta_fast, std::min(1.0, o.beta_fast));
      if (o.extrapolation != 0) own = 1 + 0.1 * std::log(o.factor);
      own *= hyper.real("rope.scaling.yarn_attn_factor", 1e-6, 1e6, 1);
    }
    // Longrope's is part of the file's, the others' multiply it.
    if (given != 0 || own != 1) o.magnitude = own * (given == 0 ? 1 : given);
  }
  auto tensor = [&](const char* name) { return hyper.file.find(name) ? name : ""; };
  if (o.scaling == RopeScaling::kLongRope) {
    rotary.short_factors = tensor("rope_factors_short.weight");
    rotary.long_factors = tensor("rope_factors_long.weight");
  } else {
    rotary.short_factors = tensor("rope_freqs.weight");
  }
  return rotary;
}

std::string layer_tensor(int64_t layer, std::string_view name) {
  return fmt::format("blk.{}.{}.weight", layer, name);
}

Graph make_graph(const Gguf& file) {
  const std::string_view name = file.text("general.architecture");
  for (const Architecture& architecture : kArchitectures)
    if (architecture.name == name) {
      Graph graph = architecture.make(file);
      graph.architecture = name;
      graph.name = file.text("general.name", name);
      check_tensors(graph, file);
      return graph;
    }
  throw Error(ErrorKind::kUnsupported, fmt::format("[model] architecture {} is not supported; supported: {}", name,
                                                   fmt::join(supported_architectures(), ", ")));
}

std::vector<std::string_view> supported_architectures() {
  std::vector<std::string_view> names;
  for (const Architecture& architecture : kArchitectures) names.push_back(architecture.name);
  return names;
}

}  // namespace attend
