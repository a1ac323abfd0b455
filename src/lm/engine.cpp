#include "attend/lm/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <tuple>

#include "attend/exact/divided_frequencies.h"
#include "attend/kv/codec.h"
#include "attend/kv/staged_store.h"
#include "attend/lm/token_class.h"
#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "check_reads.h"
#include "executor.h"
#include "retainer.h"
#include "selective_reader.h"
#include "state.h"
#include "trial.h"

namespace attend {
namespace {

bool has_option(const Entry& entry, std::string_view name) {
  return std::any_of(entry.options.begin(), entry.options.end(), [&](const Option& o) { return o.name == name; });
}

// Rotary options that the policy leaves at their defaults are those of the model.
void set_rotary(Spec& spec, const Entry& entry, const Rotary& rotary, int64_t context) {
  const RopeOptions& o = rotary.options;
  auto set = [&](std::string_view name, std::string value) {
    for (const Option& option : entry.options)
      if (option.name == name && *spec.find(name) == option.fallback) spec.set(name, std::move(value));
  };
  set("base", fmt::format("{}", o.base));
  set("dims", std::to_string(o.dims));
  set("interleaved", o.interleaved ? "true" : "false");
  set("context", std::to_string(context));
  if (o.scaling == RopeScaling::kNone) return;
  if (!has_option(entry, "scaling"))
    throw Error(ErrorKind::kUnsupported, "policy", entry.name, "", "does not know this model's rotary scaling");
  if (spec.text("scaling") != "none") return;  // the policy's own
  spec.set("scaling", std::string(kRopeScalings[static_cast<size_t>(o.scaling)]));
  for (const auto& [name, value] : {std::pair{"factor", o.factor},
                                    {"magnitude", o.magnitude},
                                    {"extrapolation", o.extrapolation},
                                    {"beta_fast", o.beta_fast},
                                    {"beta_slow", o.beta_slow}})
    set(name, fmt::format("{}", value));
  set("original", std::to_string(o.original));
}

// A mechanism with positions of its own has something to do where distances grow: in a layer whose window is narrower
// than the mechanism's, the model's attention stays.
bool keeps_its_own(const Spec& policy, const AttentionLayer& layer, const Registry& registry) {
  if (layer.window == 0) return false;
  const Spec spec = registry.complete(policy);
  const int64_t window = spec.find("window") ? spec.integer("window") : 0;
  return (window == 0 || window >= layer.window) && registry.make<Operator>(spec)->turns();
}

// The policy's mechanism as one layer of a model runs it: causal, scaled and windowed as the layer is.
Spec layer_spec(const Spec& mechanism, const AttentionLayer& layer, const Registry& registry) {
  const Spec policy = keeps_its_own(mechanism, layer, registry) ? Spec{"softmax", {}} : mechanism;
  const Entry& entry = registry.at(policy.name);
  auto require = [&](std::string_view option, std::string_view why) {
    if (!has_option(entry, option))
      throw Error(ErrorKind::kSpec, "policy", policy.name, "", fmt::format("has no option {}, which {}", option, why));
  };
  const auto& patterns = entry.traits.patterns;
  const bool always_causal = std::find(patterns.begin(), patterns.end(), "full") == patterns.end();
  if (!always_causal) require("causal", "a language model needs");
  Spec spec = registry.complete(policy);
  if (has_option(entry, "causal")) spec.set("causal", "true");
  if (has_option(entry, "prefix") && spec.integer("prefix") > 0)
    throw Error(ErrorKind::kSpec, "policy", policy.name, "",
                "has a prefix that tokens see before it is read: a language model reads in order");
  require("scale", "this model sets");
  if (spec.real("scale") == 0) spec.set("scale", fmt::format("{}", layer.scale));
  if (layer.window > 0) {
    require("window", "local layers of this model need");
    const int64_t window = spec.integer("window");
    if (window == 0 || window >= layer.window) {
      spec.set("window", std::to_string(layer.window));
      if (has_option(entry, "sinks")) spec.set("sinks", "0");
    }
  }
  return spec;
}

// The operator of a layer. One that turns queries and keys itself is made again with the model's rotary options.
std::unique_ptr<Operator> make_mechanism(Spec& spec, const AttentionLayer& layer, const LanguageModel& model,
                                         const Registry& registry) {
  const Graph& graph = model.graph();
  auto mechanism = registry.make<Operator>(spec);
  if (!mechanism->turns()) return mechanism;
  const Rotary& rotary = graph.rotaries[static_cast<size_t>(layer.rotary)];
  if (!rotary.long_factors.empty() || rotary.options.scaling == RopeScaling::kLongRope)
    throw Error(ErrorKind::kUnsupported, "policy", spec.name, "",
                "can't take this model's rotary divisors, which change with the text's length");
  set_rotary(spec, registry.at(spec.name), rotary, graph.context);
  mechanism = registry.make<Operator>(spec);
  if (const auto divisors = model.divisors(layer.rotary); !divisors.empty()) {
    auto* divides = dynamic_cast<DividesFrequencies*>(mechanism.get());
    if (!divides)
      throw Error(ErrorKind::kUnsupported, "policy", spec.name, "", "can't take this model's rotary divisors");
    divides->divide_frequencies(divisors);
  }
  return mechanism;
}

std::unique_ptr<Store> open_store(const Graph& graph, const Policy& policy, const Registry& registry, int64_t context,
                                  const StoreFactory* stores) {
  const AttentionLayer& first = graph.layers.front();
  const auto own = registry.make<StoreFactory>(*policy[Kind::kStore]);
  const auto codec = registry.make<Codec>(*policy[Kind::kCodec]);
  return open_store(stores ? *stores : *own,
                    {.layers = static_cast<int>(graph.layers.size()),
                     .kv_heads = first.kv_heads,
                     .d = first.d,
                     .dv = first.dv,
                     .codec = codec->type,
                     .context = context > 0 ? context : graph.context},
                    *codec);
}

}  // namespace

Policy model_policy(std::string_view text, ComputeMode compute, const Registry& registry) {
  Policy policy = registry.policy(text);
  if (compute == ComputeMode::kF32) {
    bool named = false;
    for (const Spec& spec : parse_specs(text)) named |= registry.at(spec.name).kind == Kind::kCodec;
    if (!named) policy[Kind::kCodec] = registry.complete(Spec{"f32", {}});
  }
  return policy;
}

Policy exact_policy(const Policy& policy, ComputeMode compute, const Registry& registry) {
  Policy exact = model_policy("softmax", compute, registry);
  if (!registry.make<Codec>(*policy[Kind::kCodec])->quantises()) exact[Kind::kCodec] = policy[Kind::kCodec];
  exact[Kind::kStore] = policy[Kind::kStore];
  return exact;
}

Session::Session(std::shared_ptr<const LanguageModel> model, const Policy& policy, const Registry& registry,
                 int64_t context, const StoreFactory* stores)
    : Session(model, policy, registry, context, open_store(model->graph(), policy, registry, context, stores)) {}

Session::Session(std::shared_ptr<const LanguageModel> model, const Policy& policy, const Registry& registry,
                 int64_t context, std::unique_ptr<Store> store)
    : model_(std::move(model)),
      made_of_(policy),
      registry_(&registry),
      limit_(context > 0 ? context : model_->graph().context),
      store_(std::move(store)) {
  const Graph& graph = model_->graph();
  const AttentionLayer& first = graph.layers.front();
  const auto codec = registry.make<Codec>(*policy[Kind::kCodec]);
  key_bytes_ = row_bytes(codec->type, first.d) + row_bytes(codec->type, first.dv);
  std::vector<Spec> specs;
  for (const AttentionLayer& layer : graph.layers) {
    Spec spec = layer_spec(*policy[Kind::kMechanism], layer, registry);
    std::unique_ptr<Operator> mechanism = make_mechanism(spec, layer, *model_, registry);
    const auto same = std::find(specs.begin(), specs.end(), spec);
    const size_t index = static_cast<size_t>(same - specs.begin());
    if (same == specs.end()) {
      check_reads(spec.name, *mechanism, layer, *codec);
      specs.push_back(spec);
      mechanisms_.push_back(std::move(mechanism));
    }
    layers_.push_back(mechanisms_[index].get());
  }
  // A mechanism with positions of its own may read beyond what the model was trained on.
  // Layers with a window never see far.
  bool turned = true;
  for (size_t l = 0; l < layers_.size(); ++l) turned &= layers_[l]->turns() || graph.layers[l].window > 0;
  if (context < 0 || (limit_ > graph.context && !turned))
    throw Error(ErrorKind::kArgument, "session", "context", std::to_string(context),
                fmt::format("must be at most the model's {} tokens", graph.context));
  policy_ = state_policy(policy, registry);
  retainer_ = std::make_unique<Retainer>(graph, policy, registry, layers_);
  retainer_->turn_by(
      [of = model_.get(), tokens = limit_](int rotary) -> const RopeAngles& { return of->rotary(rotary, tokens); });
  if (const auto& selector = policy[Kind::kSelector]) {
    if (const auto observer = retainer_->observer_of_decoding())
      throw Error(
          ErrorKind::kUnsupported, "policy", selector->name, "",
          fmt::format("reads a part of the keys, where {} needs the weights of all; stride=0 makes it act on the "
                      "prompt alone",
                      policy[*observer]->name));
    const bool drops_keys = policy[Kind::kRetention] || policy[Kind::kPlan];
    const bool in_f32 = std::all_of(specs.begin(), specs.end(), [](const Spec& spec) {
      return !spec.find("compute") || compute_of(spec.text("compute")) == Compute::kF32;
    });
    reader_ = std::make_unique<SelectiveReader>(graph, *selector, registry, layers_, drops_keys, in_f32,
                                                active_isa(Context(1)));
  }
  executor_ = std::make_unique<Executor>(*model_, limit_, layers_);
  trial_ = std::make_unique<Trial>(graph.layers.size());
}

Session::~Session() = default;
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;

void Session::check(std::span<const int32_t> ids, int64_t chunk) const {
  if (chunk < 1) throw Error(ErrorKind::kArgument, "session", "chunk", std::to_string(chunk), "must be at least 1");
  check_settled("session");
  check_ids(ids);
}

void Session::check_settled(std::string_view op) const {
  if (trial_->open())
    throw Error(ErrorKind::kArgument, op, "tokens", fmt::format("{} on trial", trial_->ids().size()),
                "must be accepted or taken back first");
}

void Session::check_ids(std::span<const int32_t> ids) const {
  const int64_t n = static_cast<int64_t>(ids.size());
  if (n == 0) throw Error(ErrorKind::kArgument, "session", "tokens", "none", "a prompt needs at least one token");
  if (n > limit_ - position_)
    throw Error(ErrorKind::kArgument, "session", "tokens", std::to_string(position_ + n),
                fmt::format("the context holds {}", limit_));
  for (int32_t id : ids)
    if (id < 0 || id >= model_->graph().vocabulary)
      throw Error(ErrorKind::kArgument, "session", "token id", std::to_string(id),
                  fmt::format("the vocabulary has 0 to {}", model_->graph().vocabulary - 1));
}

int64_t Session::step(int64_t chunk, int64_t left) const {
  return std::min({chunk, left, retainer_->next_act(position_) - position_});
}

View Session::feed(std::span<const int32_t> ids, int64_t left, int64_t wanted, Context& context) {
  const int64_t rows = static_cast<int64_t>(ids.size());
  retainer_->expect_act(position_, left > 0 ? position_ + left : kNoEnd);
  if (reader_) reader_->begin_token();
  last_ = {};
  const View hidden =
      executor_->run(ids, position_, wanted, {*store_, *retainer_, reader_.get(), nullptr, left == 0}, context);
  position_ += rows;
  if (retainer_->reads_classes())
    for (int32_t id : ids) retainer_->read(class_of(id, model_->tokenizer()));
  peak_bytes_ = std::max(peak_bytes_, bytes());
  retain(rows == left, context);
  return hidden;
}

void Session::give(const View& hidden, int64_t from, const LogitsSink& sink, Context& context) {
  const int64_t wanted = hidden.shape[0], vocabulary = model_->graph().vocabulary, width = hidden.shape[1];
  const int64_t batch = std::min(wanted, kOutputRows);
  if (const int64_t bytes = batch * vocabulary * static_cast<int64_t>(sizeof(float)); logits_.bytes() < bytes)
    logits_ = Buffer(bytes);
  for (int64_t r = 0; r < wanted; r += batch) {
    context.throw_if_stopped();
    const int64_t n = std::min(batch, wanted - r);
    product(model_->matrix(model_->graph().output_matrix), hidden.as<float>() + r * width, width, logits_.as<float>(),
            vocabulary, n, context);
    last_ = {logits_.as<float>() + (n - 1) * vocabulary, static_cast<size_t>(vocabulary)};
    if (sink) sink(from + r, dense_view(logits_.data(), DType::kF32, {n, vocabulary}));
  }
}

void Session::prefill(std::span<const int32_t> ids, int64_t chunk, Outputs outputs, const LogitsSink& sink,
                      Context& context) {
  check(ids, chunk);
  const int64_t total = static_cast<int64_t>(ids.size());
  for (int64_t done = 0; done < total;) {
    const int64_t left = total - done, n = step(chunk, left);
    const int64_t wanted = outputs == Outputs::kAll ? n : outputs == Outputs::kLast && n == left ? 1 : 0;
    const View hidden = feed(ids.subspan(static_cast<size_t>(done), static_cast<size_t>(n)), left, wanted, context);
    done += n;
    if (wanted > 0) give(hidden, done - wanted, sink, context);
    if (context.progress) context.progress->update("reading", done, total);
  }
}

std::span<const float> Session::decode(int32_t id, Context& context) {
  check({&id, 1}, 1);
  give(feed({&id, 1}, 0, 1, context), 0, nullptr, context);
  return last_;
}

void Session::retain(bool prompt_end, Context& context) {
  if (!retainer_->act(*store_, position_, prompt_end, active_isa(context)) || !reader_) return;
  std::vector<KeyView> keys;
  for (int layer = 0; layer < static_cast<int>(layers_.size()); ++layer) {
    keys.clear();
    for (int h = 0; h < model_->graph().layers[static_cast<size_t>(layer)].kv_heads; ++h)
      keys.push_back(store_->keys(layer, h));
    reader_->moved(layer, keys, context.threads);
  }
}

int64_t Session::bytes() const {
  return store_->bytes() + (reader_ ? reader_->bytes() : 0);
}

void Session::clear() {
  store_->clear();
  trial_->close();
  last_ = {};
  position_ = peak_bytes_ = 0;
  retainer_->clear();
  if (reader_) reader_->clear();
}

std::vector<int32_t> Session::kept_positions(int layer, int head) const {
  const int layers = static_cast<int>(layers_.size()), heads = model_->graph().layers.front().kv_heads;
  for (const auto& [name, got, count] : {std::tuple{"layer", layer, layers}, std::tuple{"head", head, heads}})
    if (got < 0 || got >= count)
      throw Error(ErrorKind::kArgument, "session", name, std::to_string(got), fmt::format("the model has {}", count));
  const KeyView keys = store_->keys(layer, head);
  std::vector<int32_t> positions(keys.position.begin(), keys.position.end());
  if (positions.empty()) {
    positions.resize(static_cast<size_t>(keys.count()));
    std::iota(positions.begin(), positions.end(), 0);
  }
  return positions;
}

int64_t Session::bytes_read_next() const {
  if (reader_ && reader_->bytes_read() > 0) return reader_->bytes_read();
  const AttentionLayer& first = model_->graph().layers.front();
  int64_t bytes = 0;
  for (int layer = 0; layer < static_cast<int>(layers_.size()); ++layer) {
    const std::vector<KeyRange> needed = layers_[static_cast<size_t>(layer)]->needed_from(position_);
    for (int h = 0; h < model_->graph().layers[static_cast<size_t>(layer)].kv_heads; ++h) {
      const KeyView keys = store_->keys(layer, h);
      for (const KeyRange& range : needed) {
        const KeyRange seen = slots_in(keys, range);
        bytes += bytes_of(keys, seen, first.d, first.dv);
      }
      bytes += key_bytes_;  // its own
    }
  }
  return bytes;
}

}  // namespace attend
