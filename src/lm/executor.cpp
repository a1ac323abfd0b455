#include "executor.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "attend/simd/isa.h"
#include "attend/tensor/parallel.h"
#include "by_position.h"

namespace attend {
namespace {

// f(r) for every row, shared by threads where the work pays for it. f must not throw.
template <class F>
void each_row(Context& context, int64_t rows, int64_t elements, const F& f) {
  constexpr int64_t kPart = 1 << 13;  // elements that are worth handing over
  const int64_t rows_a_part = std::max<int64_t>(1, kPart / elements);
  parallel_for(context.threads, (rows + rows_a_part - 1) / rows_a_part, [&](int64_t part, int) {
    for (int64_t r = part * rows_a_part; r < std::min(rows, (part + 1) * rows_a_part); ++r) f(r);
  });
}

}  // namespace

struct Executor::Step {
  std::span<const int32_t> ids;
  int64_t rows, wanted;
  const Policies& policies;
  const RowOps& ops;
  Context& context;
};

Executor::Executor(const LanguageModel& model, int64_t context, std::span<const Operator* const> mechanisms)
    : model_(model),
      context_(context),
      mechanisms_(mechanisms),
      slots_(model.graph().slots.size()),
      cosine_(model.graph().rotaries.size()),
      sine_(model.graph().rotaries.size()) {
  for (const Operator* mechanism : mechanisms) by_position_.push_back(goes_by_positions(*mechanism));
}

void Executor::reserve(int64_t rows) {
  if (rows <= capacity_) return;
  auto grow = [](Buffer& buffer, int64_t floats) {
    buffer = Buffer();
    buffer = Buffer(floats * static_cast<int64_t>(sizeof(float)));
  };
  capacity_ = 0;
  for (size_t s = 0; s < slots_.size(); ++s) grow(slots_[s], rows * model_.graph().slots[s].width);
  for (size_t r = 0; r < cosine_.size(); ++r) {
    grow(cosine_[r], rows * model_.rotary(static_cast<int>(r), context_).pairs());
    grow(sine_[r], rows * model_.rotary(static_cast<int>(r), context_).pairs());
  }
  capacity_ = rows;
}

View Executor::run(std::span<const int32_t> ids, int64_t first, int64_t wanted, const Policies& policies,
                   Context& context) {
  const int64_t rows = static_cast<int64_t>(ids.size());
  reserve(rows);
  positions_.resize(ids.size());
  std::iota(positions_.begin(), positions_.end(), static_cast<int32_t>(first));
  Step step{ids, rows, wanted, policies, row_ops(active_isa(context)), context};
  for (size_t r = 0; r < cosine_.size(); ++r)
    model_.rotary(static_cast<int>(r), context_)
        .fill(first, rows, step.ops, cosine_[r].as<float>(), sine_[r].as<float>());
  for (const Operation& operation : model_.graph().operations) {
    std::visit([&](const auto& o) { run(o, step); }, operation);
    if (step.rows == 0) break;
  }
  const int slot = model_.graph().output_slot;
  return dense_view(row(slot, 0), DType::kF32, {step.rows, width(slot)});
}

void Executor::run(const op::Embed& o, Step& step) {
  const PackedWeight& matrix = model_.matrix(o.matrix);
  each_row(step.context, step.rows, width(o.x),
           [&](int64_t r) { unpack_row(matrix, step.ids[static_cast<size_t>(r)], row(o.x, r)); });
}

void Executor::run(const op::Scale& o, Step& step) {
  each_row(step.context, step.rows, width(o.x), [&](int64_t r) { step.ops.scale(row(o.x, r), o.factor, width(o.x)); });
}

void Executor::run(const op::RmsNorm& o, Step& step) {
  const float* weight = model_.vector(o.vector);
  const int64_t part = width(o.x) / o.groups;
  each_row(step.context, step.rows, width(o.x), [&](int64_t r) {
    for (int64_t g = 0; g < o.groups; ++g)
      step.ops.rms_norm(row(o.x, r) + g * part, weight, part, o.epsilon, row(o.y, r) + g * part);
  });
}

void Executor::run(const op::Product& o, Step& step) {
  step.context.throw_if_stopped();
  weights_.clear(), outputs_.clear(), widths_.clear();
  for (const op::Product::Output& output : o.outputs) {
    weights_.push_back(&model_.matrix(output.matrix));
    outputs_.push_back(row(output.y, 0));
    widths_.push_back(width(output.y));
  }
  products(weights_, row(o.x, 0), width(o.x), outputs_, widths_, step.rows, step.context);
}

void Executor::run(const op::Rotate& o, Step& step) {
  if (mechanisms_[static_cast<size_t>(o.layer)]->turns()) return;
  const size_t index = static_cast<size_t>(model_.graph().layers[static_cast<size_t>(o.layer)].rotary);
  const RopeOptions& rope = model_.graph().rotaries[index].options;
  const auto rotate = rope.interleaved ? step.ops.rotate_pairs : step.ops.rotate_halves;
  const int64_t pairs = rope.dims / 2, head = width(o.x) / o.heads;
  const float *cosine = cosine_[index].as<float>(), *sine = sine_[index].as<float>();
  each_row(step.context, step.rows, width(o.x), [&](int64_t r) {
    for (int64_t h = 0; h < o.heads; ++h) rotate(row(o.x, r) + h * head, cosine + r * pairs, sine + r * pairs, pairs);
  });
}

void Executor::run(const op::Attend& o, Step& step) {
  step.context.throw_if_stopped();
  const AttentionLayer& layer = model_.graph().layers[static_cast<size_t>(o.layer)];
  // Memory is [rows, heads * size]; mechanisms and stores see [heads, rows, size].
  auto by_head = [&](int slot, int heads, int64_t size) {
    View view = dense_view(row(slot, 0), DType::kF32, {heads, step.rows, size});
    view.stride = {size, heads * size, 1};
    return view;
  };
  auto batch_of_one = [](const View& heads) {
    View view = dense_view(heads.data, heads.type, {1, heads.shape[0], heads.shape[1], heads.shape[2]});
    view.stride = {heads.shape[0] * heads.shape[1] * heads.shape[2], heads.stride[0], heads.stride[1], 1};
    return view;
  };
  const Operator& mechanism = *mechanisms_[static_cast<size_t>(o.layer)];
  if (mechanism.turns())
    mechanism.turn_keys(batch_of_one(by_head(o.k, layer.kv_heads, layer.d)), positions_, step.context);
  step.policies.store.append(o.layer, by_head(o.k, layer.kv_heads, layer.d), by_head(o.v, layer.kv_heads, layer.dv),
                             positions_);
  keys_.clear();
  for (int h = 0; h < layer.kv_heads; ++h) keys_.push_back(step.policies.store.keys(o.layer, h));
  Tensors in = {{"q", batch_of_one(by_head(o.q, layer.heads, layer.d))},
                {"k", close_up(o.layer, keys_)},
                {"q_positions", dense_view(positions_.data(), DType::kI32, {1, step.rows})}};
  bool weighing = false;
  if (SelectiveReader* reader = step.policies.reader) {
    reader->appended(o.layer, keys_, step.rows, step.context.threads);
    if (step.policies.decoding) {
      if (const Tensors* chosen = reader->read(o.layer, keys_, row(o.q, 0), step.context.threads))
        for (const auto& [name, argument] : *chosen) in.insert_or_assign(name, argument);
      weighing = reader->wants_weights(o.layer);
    }
  }
  Tensors out = {{"out", batch_of_one(by_head(o.out, layer.heads, layer.dv))}};
  Retainer& retainer = step.policies.retainer;
  const int64_t observed_from = retainer.observed_from(o.layer);
  const bool observed = observed_from <= positions_.back();
  const bool asking = step.policies.reader && step.policies.reader->wants_queries(o.layer);
  if (observed || weighing || asking) {
    lse_.resize(static_cast<size_t>(layer.heads * step.rows));
    // A mechanism whose queries alone are wanted may have none.
    if (weighing || asking || !retainer.wants_queries(o.layer))
      out.emplace("lse", dense_view(lse_.data(), DType::kF32, {1, layer.heads, step.rows}));
  }
  if (weighing) {  // a token that may read a part of the keys: no retention observes it
    SelectiveReader& reader = *step.policies.reader;
    mechanism.forward_and_add_weights(in, out, reader.places(std::get<std::span<const KeyView>>(in.at("k"))),
                                      step.context);
    reader.weighed(o.layer, row(o.q, 0));
  } else if (observed_from <= positions_.front() && !step.policies.trial && !retainer.wants_queries(o.layer)) {
    retainer.observing({positions_.front(), int64_t{positions_.back()} + 1});
    mechanism.forward_and_add_weights(in, out, retainer.places(o.layer, keys_), step.context);
  } else {
    mechanism.forward(in, out, Form::kAny, step.context);
    if (observed) observe(o, in, step);
  }
  if (asking) step.policies.reader->queried(o.layer, keys_, row(o.q, 0), lse_.data(), step.rows, step.context.threads);
}

// Where positions make no difference, keys that were left of a text are as if they stood right before the newest: splits
// of positions are then full of keys. What was dropped is the same number until keys are dropped again, so that splits
// have the same keys however a text is cut into steps between.
std::span<const KeyView> Executor::close_up(int layer, std::span<const KeyView> keys) {
  if (by_position_[static_cast<size_t>(layer)]) return keys;
  const int64_t end = int64_t{positions_.back()} + 1;
  if (const auto known = static_cast<int64_t>(every_position_.size()); known < end) {
    every_position_.resize(static_cast<size_t>(std::max(end, known + known / 2)));
    std::iota(every_position_.begin(), every_position_.end(), 0);
  }
  closed_up_.assign(keys.begin(), keys.end());
  for (KeyView& view : closed_up_)
    if (!view.position.empty())
      view.position = std::span<const int32_t>(every_position_)
                          .subspan(static_cast<size_t>(end - view.count()), static_cast<size_t>(view.count()));
  return closed_up_;
}

void Executor::observe(const op::Attend& o, const Tensors& in, Step& step) {
  const AttentionLayer& layer = model_.graph().layers[static_cast<size_t>(o.layer)];
  if (step.policies.trial) {
    const size_t size = static_cast<size_t>(step.rows * width(o.q));
    return step.policies.trial->observe(o.layer, {row(o.q, 0), size}, lse_, step.rows);
  }
  const View lse = dense_view(lse_.data(), DType::kF32, {1, layer.heads, step.rows});
  observe(o.layer, positions_.front(), in, lse, step.policies, step.context);
}

// Gathers the weights of those of the queries, of positions from `first_query` on, that are wanted.
void Executor::observe(int layer, int64_t first_query, const Tensors& in, const View& lse, const Policies& policies,
                       Context& context) {
  const int64_t first = std::max<int64_t>(0, policies.retainer.observed_from(layer) - first_query);
  auto from_first = [&](View view, int axis) {
    view.data = view.as<float>() + first * view.stride[axis];
    view.shape[axis] -= first;
    return view;
  };
  if (first >= lse.shape[2]) return;
  Tensors observed = in;
  observed["q"] = from_first(std::get<View>(in.at("q")), 2);
  observed["q_positions"] = from_first(std::get<View>(in.at("q_positions")), 1);
  policies.retainer.observing({first_query + first, first_query + lse.shape[2]});
  if (policies.retainer.wants_queries(layer))
    return add_queries(layer, first_query + first, std::get<View>(observed.at("q")), policies.retainer, context);
  mechanisms_[static_cast<size_t>(layer)]->add_weights(
      observed, from_first(lse, 2), policies.retainer.places(layer, std::get<std::span<const KeyView>>(in.at("k"))),
      context);
}

void Executor::add_queries(int layer, int64_t first, const View& q, Retainer& retainer, Context& context) {
  const int index = model_.graph().layers[static_cast<size_t>(layer)].rotary;
  const RopeAngles& angles = model_.rotary(index, context_);
  const RowOps& ops = row_ops(active_isa(context));
  const bool interleaved = model_.graph().rotaries[static_cast<size_t>(index)].options.interleaved;
  const auto rotate = interleaved ? ops.rotate_pairs : ops.rotate_halves;
  const int64_t heads = q.shape[1], rows = q.shape[2], d = q.shape[3], pairs = angles.pairs();
  std::vector<float> cosine(static_cast<size_t>(rows * pairs)), sine(cosine.size()),
      own(static_cast<size_t>(heads * d));
  angles.fill(first, rows, ops, cosine.data(), sine.data());
  // Turned back, and divided by the square of the factor that both ways multiply by.
  const float inverse = static_cast<float>(1 / (angles.table().magnitude * angles.table().magnitude));
  for (float& c : cosine) c *= inverse;
  for (float& s : sine) s *= -inverse;
  parallel_for(context.threads, heads, [&](int64_t h, int) {
    const std::span<float> x = std::span(own).subspan(static_cast<size_t>(h * d), static_cast<size_t>(d));
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(q.at<float>({0, h, r}), d, x.data());
      rotate(x.data(), cosine.data() + r * pairs, sine.data() + r * pairs, pairs);
      retainer.add_query(layer, h, x);
    }
  });
}

void Executor::observe(const Trial& trial, int64_t count, const Policies& policies, Context& context) {
  positions_.resize(static_cast<size_t>(count));
  std::iota(positions_.begin(), positions_.end(), static_cast<int32_t>(trial.first()));
  for (int l = 0; l < static_cast<int>(model_.graph().layers.size()); ++l) {
    const Trial::Queries& queries = trial.queries(l);
    if (queries.q.empty() || count == 0) continue;
    const AttentionLayer& layer = model_.graph().layers[static_cast<size_t>(l)];
    // Tokens are observed from some one on: those before it are not among the queries.
    const int64_t width = layer.heads * layer.d, tried = static_cast<int64_t>(trial.ids().size());
    const int64_t before = tried - static_cast<int64_t>(queries.q.size()) / width;
    if (count <= before) continue;
    View q = dense_view(const_cast<float*>(queries.q.data()), DType::kF32, {1, layer.heads, count - before, layer.d});
    q.stride = {(count - before) * width, layer.d, width, 1};
    View lse = dense_view(const_cast<float*>(queries.lse.data()), DType::kF32, {1, layer.heads, count - before});
    lse.stride = {(count - before) * layer.heads, 1, layer.heads};
    keys_.clear();
    for (int h = 0; h < layer.kv_heads; ++h) keys_.push_back(policies.store.keys(l, h));
    const Tensors in = {{"q", q},
                        {"k", close_up(l, keys_)},
                        {"q_positions", dense_view(positions_.data() + before, DType::kI32, {1, count - before})}};
    observe(l, trial.first() + before, in, lse, policies, context);
  }
}

void Executor::run(const op::Gate& o, Step& step) {
  const auto gate = o.activation == Activation::kSilu ? step.ops.silu_multiply : step.ops.gelu_multiply;
  each_row(step.context, step.rows, width(o.x), [&](int64_t r) { gate(row(o.x, r), row(o.y, r), width(o.x)); });
}

void Executor::run(const op::Add& o, Step& step) {
  each_row(step.context, step.rows, width(o.x), [&](int64_t r) { step.ops.add(row(o.x, r), row(o.y, r), width(o.x)); });
}

void Executor::run(const op::SelectRows& o, Step& step) {
  const int64_t dropped = step.rows - step.wanted;
  if (dropped > 0)
    for (int slot : o.slots)
      std::memmove(row(slot, 0), row(slot, dropped), static_cast<size_t>(step.wanted * width(slot)) * sizeof(float));
  step.rows = step.wanted;
}

}  // namespace attend
