#include "attend/lm/gated_model.h"

#include <algorithm>
#include <cstring>

#include "attend/exact/softmax.h"
#include "attend/simd/isa.h"
#include "attend/simd/row_ops.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "row_gradients.h"
#include "rows.h"
#include "transposed.h"

namespace attend {
namespace {

[[noreturn]] void refuse(std::string_view argument, int64_t got, std::string_view rule) {
  throw Error(ErrorKind::kArgument, "gated model", argument, std::to_string(got), rule);
}

}  // namespace

class GatedModel::Run {
 public:
  Run(std::shared_ptr<const LanguageModel> model, int64_t sinks, int64_t recent)
      : model_(std::move(model)),
        graph_(model_->graph()),
        sinks_(sinks),
        recent_(recent),
        kv_heads_(graph_.layers.front().kv_heads),
        transposed_(graph_.matrices.size()),
        cosine_(graph_.rotaries.size()),
        sine_(graph_.rotaries.size()),
        slots_(graph_.slots.size()),
        gradients_(graph_.slots.size()),
        saved_(graph_.operations.size()) {
    if (sinks < 0) refuse("sinks", sinks, "must be at least 0");
    if (recent < 1) refuse("recent", recent, "must be at least 1");
  }

  bool gated(int layer) const { return graph_.layers[static_cast<size_t>(layer)].window == 0; }

  View forward(std::span<const int32_t> ids, std::span<const float> gates, int64_t wanted, Context& context,
               const Observer* observer = nullptr) {
    check(ids, gates, wanted);
    if (!gates.empty()) transpose(context);
    gates_.assign(gates.begin(), gates.end());
    rows_ = tokens_ = static_cast<int64_t>(ids.size());
    wanted_ = wanted;
    for (size_t s = 0; s < slots_.size(); ++s) reserve(slots_[s], rows_ * graph_.slots[s].width);
    const RowOps& ops = row_ops(active_isa(context));
    for (size_t r = 0; r < graph_.rotaries.size(); ++r) {
      const RopeAngles& angles = model_->rotary(static_cast<int>(r), graph_.context);
      angles.fill(int64_t{0}, rows_, ops, reserve(cosine_[r], rows_ * angles.pairs()),
                  reserve(sine_[r], rows_ * angles.pairs()));
    }
    Step step{ops, context, ids, observer};
    for (size_t i = 0; i < graph_.operations.size(); ++i)
      std::visit([&](const auto& o) { run(o, saved_[i], step); }, graph_.operations[i]);
    return dense_view(row(graph_.output_slot, 0), DType::kF32, {rows_, width(graph_.output_slot)});
  }

  void backward(const View& d_result, std::span<double> d_gates, Context& context) {
    const int64_t result_width = width(graph_.output_slot);
    if (gates_.empty()) refuse("gates", 0, "forward() must run with gates first");
    if (d_gates.size() != gates_.size())
      refuse("gradients of gates", static_cast<int64_t>(d_gates.size()), "must be as many as gates");
    if (d_result.rank != 2 || d_result.type != DType::kF32 || d_result.shape[0] != wanted_ ||
        d_result.shape[1] != result_width || d_result.stride[1] != 1 || d_result.stride[0] != result_width)
      refuse("gradient of the result", d_result.count(), "must be dense f32 [wanted, width]");
    std::fill(d_gates.begin(), d_gates.end(), 0.0);
    for (size_t s = 0; s < gradients_.size(); ++s)
      std::memset(reserve(gradients_[s], tokens_ * graph_.slots[s].width), 0,
                  static_cast<size_t>(tokens_ * graph_.slots[s].width) * sizeof(float));
    std::memcpy(gradients_[static_cast<size_t>(graph_.output_slot)].data(), d_result.data,
                static_cast<size_t>(wanted_ * result_width) * sizeof(float));
    rows_ = wanted_;
    d_gates_ = d_gates;
    Step step{row_ops(active_isa(context)), context};
    // Nothing below the lowest gate has a gradient that anybody asks for.
    size_t first = 0;
    for (; first < graph_.operations.size(); ++first)
      if (const auto* o = std::get_if<op::Attend>(&graph_.operations[first]); o && gated(o->layer)) break;
    for (size_t i = graph_.operations.size(); i-- > first;) {
      step.lowest = i == first;
      std::visit([&](const auto& o) { undo(o, saved_[i], step); }, graph_.operations[i]);
    }
    gates_.clear();  // gradients are taken once
  }

 private:
  struct Step {
    const RowOps& ops;
    Context& context;
    std::span<const int32_t> ids = {};
    const Observer* observer = nullptr;
    bool lowest = false;
  };
  // What an operation's backward needs, in the order in which it was saved.
  using Saved = std::vector<Buffer>;

  int64_t width(int slot) const { return graph_.slots[static_cast<size_t>(slot)].width; }
  float* row(int slot, int64_t r) { return slots_[static_cast<size_t>(slot)].as<float>() + r * width(slot); }
  float* gradient(int slot, int64_t r) { return gradients_[static_cast<size_t>(slot)].as<float>() + r * width(slot); }

  void check(std::span<const int32_t> ids, std::span<const float> gates, int64_t wanted) const {
    const int64_t n = static_cast<int64_t>(ids.size());
    if (n < 1 || n > graph_.context) refuse("tokens", n, "must be at least 1 and fit the model's context");
    for (int32_t id : ids)
      if (id < 0 || id >= graph_.vocabulary) refuse("token id", id, "must be of the vocabulary");
    if (wanted < 1 || wanted > n) refuse("wanted", wanted, "must be 1 to the number of tokens");
    if (!gates.empty() && gates.size() != graph_.layers.size() * static_cast<size_t>(kv_heads_))
      refuse("gates", static_cast<int64_t>(gates.size()), "must be one a layer and kv head, or none");
  }

  // Once, for the backward passes of products.
  void transpose(Context& context) {
    const int64_t total = static_cast<int64_t>(graph_.operations.size());
    for (int64_t i = 0; i < total; ++i) {
      context.throw_if_stopped();
      if (context.progress) context.progress->update("transposing", i, total);
      if (const auto* o = std::get_if<op::Product>(&graph_.operations[static_cast<size_t>(i)]))
        for (const auto& output : o->outputs)
          if (PackedWeight& matrix = transposed_[static_cast<size_t>(output.matrix)]; matrix.n == 0)
            matrix = transposed(model_->matrix(output.matrix), context);
    }
  }

  template <class F>
  void each_row(const Step& step, const F& f) const {
    parallel_for(step.context.threads, rows_, [&](int64_t r, int) { f(r); });
  }

  float* place(Saved& saved, size_t index, int64_t floats) const {
    if (saved.size() <= index) saved.resize(index + 1);
    return reserve(saved[index], floats);
  }
  void save(Saved& saved, size_t index, int slot) {
    if (gates_.empty()) return;
    const int64_t floats = rows_ * width(slot);
    std::memcpy(place(saved, index, floats), row(slot, 0), static_cast<size_t>(floats) * sizeof(float));
  }

  void run(const op::Embed& o, Saved&, Step& step) {
    each_row(step,
             [&](int64_t r) { unpack_row(model_->matrix(o.matrix), step.ids[static_cast<size_t>(r)], row(o.x, r)); });
  }
  void undo(const op::Embed&, Saved&, Step&) {}

  void run(const op::Scale& o, Saved&, Step& step) {
    each_row(step, [&](int64_t r) { step.ops.scale(row(o.x, r), o.factor, width(o.x)); });
  }
  void undo(const op::Scale& o, Saved&, Step& step) {
    each_row(step, [&](int64_t r) { step.ops.scale(gradient(o.x, r), o.factor, width(o.x)); });
  }

  void run(const op::RmsNorm& o, Saved& saved, Step& step) {
    save(saved, 0, o.x);
    const int64_t part = width(o.x) / o.groups;
    each_row(step, [&](int64_t r) {
      for (int64_t g = 0; g < o.groups; ++g)
        step.ops.rms_norm(row(o.x, r) + g * part, model_->vector(o.vector), part, o.epsilon, row(o.y, r) + g * part);
    });
  }
  void undo(const op::RmsNorm& o, Saved& saved, Step& step) {
    const int64_t n = width(o.x), part = n / o.groups;
    const bool in_place = o.x == o.y;
    each_row(step, [&](int64_t r) {
      for (int64_t g = 0; g < o.groups; ++g)
        rms_norm_backward(saved[0].as<float>() + r * n + g * part, model_->vector(o.vector), part, o.epsilon,
                          gradient(o.y, r) + g * part, gradient(o.x, r) + g * part, in_place);
      if (!in_place) std::fill_n(gradient(o.y, r), n, 0.0f);
    });
  }

  void run(const op::Product& o, Saved&, Step& step) {
    step.context.throw_if_stopped();
    std::vector<const PackedWeight*> matrices;
    std::vector<float*> outputs;
    std::vector<int64_t> widths;
    for (const op::Product::Output& output : o.outputs) {
      matrices.push_back(&model_->matrix(output.matrix));
      outputs.push_back(row(output.y, 0));
      widths.push_back(width(output.y));
    }
    products(matrices, row(o.x, 0), width(o.x), outputs, widths, rows_, step.context);
  }
  void undo(const op::Product& o, Saved&, Step& step) {
    step.context.throw_if_stopped();
    const int64_t n = width(o.x);
    float* part = reserve(scratch_, rows_ * n);
    for (const op::Product::Output& output : o.outputs) {
      product(transposed_[static_cast<size_t>(output.matrix)], gradient(output.y, 0), width(output.y), part, n, rows_,
              step.context);
      each_row(step, [&](int64_t r) {
        step.ops.add(gradient(o.x, r), part + r * n, n);
        std::fill_n(gradient(output.y, r), width(output.y), 0.0f);
      });
    }
  }

  void rotate(const op::Rotate& o, Step& step, bool back) {
    const size_t index = static_cast<size_t>(graph_.layers[static_cast<size_t>(o.layer)].rotary);
    const RopeOptions& rope = graph_.rotaries[index].options;
    const auto turn = rope.interleaved ? step.ops.rotate_pairs : step.ops.rotate_halves;
    const int64_t pairs = rope.dims / 2, head = width(o.x) / o.heads;
    each_row(step, [&](int64_t r) {
      float* sine = sine_[index].as<float>() + r * pairs;
      if (back) step.ops.scale(sine, -1, pairs);
      for (int64_t h = 0; h < o.heads; ++h)
        turn((back ? gradient(o.x, r) : row(o.x, r)) + h * head, cosine_[index].as<float>() + r * pairs, sine, pairs);
      if (back) step.ops.scale(sine, -1, pairs);
    });
  }
  void run(const op::Rotate& o, Saved&, Step& step) { rotate(o, step, false); }
  void undo(const op::Rotate& o, Saved&, Step& step) { rotate(o, step, true); }

  // Queries, keys and values that an Attend saved, and what came of them.
  enum Part : size_t { kQ, kK, kV, kFull, kFullLse, kStreaming, kStreamingLse };

  Qkv inputs(const AttentionLayer& layer, Saved& saved) const {
    return {.q = by_head(saved[kQ].as<float>(), layer.heads, rows_, layer.d),
            .k = by_head(saved[kK].as<float>(), layer.kv_heads, rows_, layer.d),
            .v = by_head(saved[kV].as<float>(), layer.kv_heads, rows_, layer.dv)};
  }
  SoftmaxOptions options(const AttentionLayer& layer, bool streaming) const {
    return {.causal = true,
            .scale = layer.scale,
            .window = streaming ? recent_ : layer.window,
            .sinks = streaming ? sinks_ : 0};
  }
  AttnOut outputs(const AttentionLayer& layer, Saved& saved, bool streaming) const {
    return {
        .out = by_head(saved[streaming ? kStreaming : kFull].as<float>(), layer.heads, rows_, layer.dv),
        .lse = dense_view(saved[streaming ? kStreamingLse : kFullLse].data(), DType::kF32, {1, layer.heads, rows_})};
  }
  float gate(int layer, int head) const {
    if (!gated(layer) || gates_.empty()) return 1;
    const int group = graph_.layers[static_cast<size_t>(layer)].heads / kv_heads_;
    return gates_[static_cast<size_t>(layer * kv_heads_ + head / group)];
  }

  void run(const op::Attend& o, Saved& saved, Step& step) {
    step.context.throw_if_stopped();
    const AttentionLayer& layer = graph_.layers[static_cast<size_t>(o.layer)];
    if (gates_.empty()) {
      const Qkv in{.q = by_head(row(o.q, 0), layer.heads, rows_, layer.d),
                   .k = by_head(row(o.k, 0), layer.kv_heads, rows_, layer.d),
                   .v = by_head(row(o.v, 0), layer.kv_heads, rows_, layer.dv)};
      softmax_attention(in, options(layer, false), {.out = by_head(row(o.out, 0), layer.heads, rows_, layer.dv)},
                        step.context);
      if (step.observer) (*step.observer)(o.layer, in, options(layer, false));
      return;
    }
    save(saved, kQ, o.q), save(saved, kK, o.k), save(saved, kV, o.v);
    for (bool streaming : {false, true}) {
      place(saved, streaming ? kStreaming : kFull, rows_ * layer.heads * layer.dv);
      place(saved, streaming ? kStreamingLse : kFullLse, rows_ * layer.heads);
      if (streaming && !gated(o.layer)) continue;
      softmax_attention(inputs(layer, saved), options(layer, streaming), outputs(layer, saved, streaming),
                        step.context);
    }
    each_row(step, [&](int64_t r) {
      for (int h = 0; h < layer.heads; ++h) {
        const float g = gate(o.layer, h);
        const int64_t at = (r * layer.heads + h) * layer.dv;
        const float *full = saved[kFull].as<float>() + at, *streaming = saved[kStreaming].as<float>() + at;
        float* out = row(o.out, r) + h * layer.dv;
        for (int64_t c = 0; c < layer.dv; ++c) out[c] = g == 1 ? full[c] : g * full[c] + (1 - g) * streaming[c];
      }
    });
  }

  // d loss / d gate = sum over rows and query heads of d_out . (full - streaming), in ascending order.
  void add_gate_gradients(const op::Attend& o, Saved& saved, Step& step) {
    const AttentionLayer& layer = graph_.layers[static_cast<size_t>(o.layer)];
    const int group = layer.heads / kv_heads_;
    parallel_for(step.context.threads, kv_heads_, [&](int64_t kv, int) {
      double sum = 0;
      for (int64_t r = 0; r < rows_; ++r)
        for (int64_t at = kv * group * layer.dv; at < (kv + 1) * group * layer.dv; ++at) {
          const int64_t place_of = r * layer.heads * layer.dv + at;
          sum += static_cast<double>(gradient(o.out, r)[at]) *
                 (saved[kFull].as<float>()[place_of] - saved[kStreaming].as<float>()[place_of]);
        }
      d_gates_[static_cast<size_t>(o.layer * kv_heads_ + kv)] = sum;
    });
  }

  void undo(const op::Attend& o, Saved& saved, Step& step) {
    step.context.throw_if_stopped();
    const AttentionLayer& layer = graph_.layers[static_cast<size_t>(o.layer)];
    if (gated(o.layer)) add_gate_gradients(o, saved, step);
    if (step.lowest) return;
    const int64_t n = layer.heads * layer.dv, q = layer.heads * layer.d, k = layer.kv_heads * layer.d,
                  v = layer.kv_heads * layer.dv;
    float* d_out = reserve(scratch_, rows_ * (n + q + k + v));
    float *d_q = d_out + rows_ * n, *d_k = d_q + rows_ * q, *d_v = d_k + rows_ * k;
    for (bool streaming : {false, true}) {
      auto share = [&](int h) { return streaming ? 1 - gate(o.layer, h) : gate(o.layer, h); };
      bool any = false;
      for (int h = 0; h < layer.heads; ++h) any |= share(h) != 0;
      if (!any) continue;
      each_row(step, [&](int64_t r) {
        for (int64_t c = 0; c < n; ++c)
          d_out[r * n + c] = share(static_cast<int>(c / layer.dv)) * gradient(o.out, r)[c];
      });
      softmax_attention_backward(inputs(layer, saved), options(layer, streaming), outputs(layer, saved, streaming),
                                 {.out = by_head(d_out, layer.heads, rows_, layer.dv)},
                                 {.q = by_head(d_q, layer.heads, rows_, layer.d),
                                  .k = by_head(d_k, layer.kv_heads, rows_, layer.d),
                                  .v = by_head(d_v, layer.kv_heads, rows_, layer.dv)},
                                 step.context);
      each_row(step, [&](int64_t r) {
        step.ops.add(gradient(o.q, r), d_q + r * q, q);
        step.ops.add(gradient(o.k, r), d_k + r * k, k);
        step.ops.add(gradient(o.v, r), d_v + r * v, v);
      });
    }
    each_row(step, [&](int64_t r) { std::fill_n(gradient(o.out, r), n, 0.0f); });
  }

  void run(const op::Gate& o, Saved& saved, Step& step) {
    save(saved, 0, o.x), save(saved, 1, o.y);
    const auto activate = o.activation == Activation::kSilu ? step.ops.silu_multiply : step.ops.gelu_multiply;
    each_row(step, [&](int64_t r) { activate(row(o.x, r), row(o.y, r), width(o.x)); });
  }
  void undo(const op::Gate& o, Saved& saved, Step& step) {
    const auto back = o.activation == Activation::kSilu ? silu_multiply_backward : gelu_multiply_backward;
    const int64_t n = width(o.x);
    each_row(step, [&](int64_t r) {
      back(saved[0].as<float>() + r * n, saved[1].as<float>() + r * n, n, gradient(o.x, r), gradient(o.y, r));
    });
  }

  void run(const op::Add& o, Saved&, Step& step) {
    each_row(step, [&](int64_t r) { step.ops.add(row(o.x, r), row(o.y, r), width(o.x)); });
  }
  void undo(const op::Add& o, Saved&, Step& step) {
    each_row(step, [&](int64_t r) { step.ops.add(gradient(o.y, r), gradient(o.x, r), width(o.x)); });
  }

  void run(const op::SelectRows& o, Saved&, Step&) {
    for (int slot : o.slots)
      std::memmove(row(slot, 0), row(slot, rows_ - wanted_),
                   static_cast<size_t>(wanted_ * width(slot)) * sizeof(float));
    rows_ = wanted_;
  }
  void undo(const op::SelectRows& o, Saved&, Step&) {
    rows_ = tokens_;
    const int64_t dropped = rows_ - wanted_;
    for (int slot : o.slots) {
      std::memmove(gradient(slot, dropped), gradient(slot, 0),
                   static_cast<size_t>(wanted_ * width(slot)) * sizeof(float));
      std::memset(gradient(slot, 0), 0, static_cast<size_t>(dropped * width(slot)) * sizeof(float));
    }
  }

  std::shared_ptr<const LanguageModel> model_;
  const Graph& graph_;
  int64_t sinks_, recent_;
  int kv_heads_;
  std::vector<PackedWeight> transposed_;  // of matrices in products
  std::vector<Buffer> cosine_, sine_, slots_, gradients_;
  std::vector<Saved> saved_;  // of each operation
  Buffer scratch_;
  // Of the last forward().
  std::vector<float> gates_;
  int64_t tokens_ = 0, wanted_ = 0;
  int64_t rows_ = 0;  // of the operation that runs
  std::span<double> d_gates_;
};

GatedModel::GatedModel(std::shared_ptr<const LanguageModel> model, int64_t sinks, int64_t recent)
    : run_(std::make_unique<Run>(std::move(model), sinks, recent)) {}

GatedModel::~GatedModel() = default;

bool GatedModel::gated(int layer) const {
  return run_->gated(layer);
}

void GatedModel::observe(std::span<const int32_t> ids, const Observer& observer, Context& context) {
  run_->forward(ids, {}, 1, context, &observer);
}

View GatedModel::forward(std::span<const int32_t> ids, std::span<const float> gates, int64_t wanted, Context& context) {
  return run_->forward(ids, gates, wanted, context);
}

void GatedModel::backward(const View& d_result, std::span<double> d_gates, Context& context) {
  run_->backward(d_result, d_gates, context);
}

}  // namespace attend
