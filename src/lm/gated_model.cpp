#include "attend/lm/gated_model.h"

#include <algorithm>
#include <cstring>

#include "attend/exact/softmax.h"
#include "attend/simd/isa.h"
#include "attend/simd/row_ops.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "gated_attention.h"
#include "row_gradients.h"
#include "rows.h"
#include "segments.h"
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
        streaming_{sinks, recent},
        kv_heads_(graph_.layers.front().kv_heads),
        transposed_(graph_.matrices.size()),
        cosine_(graph_.rotaries.size()),
        sine_(graph_.rotaries.size()),
        slots_(graph_.slots.size()),
        gradients_(graph_.slots.size()),
        segments_(segments(graph_)),
        starts_(segments_.size()) {
    size_t most = 0;
    for (const Segment& segment : segments_) most = std::max(most, segment.end - segment.begin);
    saved_.resize(most);
    if (sinks < 0) refuse("sinks", sinks, "must be at least 0");
    if (recent < 1) refuse("recent", recent, "must be at least 1");
  }

  bool gated(int layer) const { return graph_.layers[static_cast<size_t>(layer)].window == 0; }

  View forward(std::span<const int32_t> ids, std::span<const float> gates, int64_t wanted, Context& context,
               const Observer* observer = nullptr) {
    check(ids, gates, wanted);
    if (!gates.empty()) transpose(context);
    gates_.assign(gates.begin(), gates.end());
    ids_.assign(ids.begin(), ids.end());
    rows_ = tokens_ = static_cast<int64_t>(ids.size());
    wanted_ = wanted;
    for (size_t s = 0; s < slots_.size(); ++s) reserve(slots_[s], rows_ * graph_.slots[s].width);
    const RowOps& ops = row_ops(active_isa(context));
    for (size_t r = 0; r < graph_.rotaries.size(); ++r) {
      const RopeAngles& angles = model_->rotary(static_cast<int>(r), graph_.context);
      angles.fill(int64_t{0}, rows_, ops, reserve(cosine_[r], rows_ * angles.pairs()),
                  reserve(sine_[r], rows_ * angles.pairs()));
    }
    Step step{.ops = ops, .context = context, .observer = observer};
    for (size_t s = 0; s < segments_.size(); ++s) {
      if (!gates_.empty()) keep_start(segments_[s], starts_[s]);
      run_segment(segments_[s], step);
    }
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
    d_gates_ = d_gates;
    Step step{.ops = row_ops(active_isa(context)), .context = context, .saving = true};
    // Nothing below the lowest gate has a gradient that anybody asks for.
    size_t first = 0;
    for (; first < graph_.operations.size(); ++first)
      if (const auto* o = std::get_if<op::Attend>(&graph_.operations[first]); o && gated(o->layer)) break;
    for (size_t s = segments_.size(); s-- > 0 && segments_[s].end > first;) {
      restore_start(segments_[s], starts_[s]);
      run_segment(segments_[s], step);
      for (size_t i = segments_[s].end; i-- > std::max(first, segments_[s].begin);) {
        step.lowest = i == first;
        std::visit([&](const auto& o) { undo(o, saved_[i - segments_[s].begin], step); }, graph_.operations[i]);
      }
    }
    gates_.clear();  // gradients are taken once
  }

 private:
  struct Step {
    const RowOps& ops;
    Context& context;
    const Observer* observer = nullptr;
    bool saving = false;
    bool lowest = false;
  };
  // What an operation's backward needs.
  struct Saved {
    Buffer x, y;
    GatedAttention attention;
  };
  // The activations that a segment begins with.
  struct Start {
    int64_t rows = 0;
    std::vector<Buffer> slots;
  };

  void run_segment(const Segment& segment, Step& step) {
    for (size_t i = segment.begin; i < segment.end; ++i)
      std::visit([&](const auto& o) { run(o, saved_[i - segment.begin], step); }, graph_.operations[i]);
  }
  void keep_start(const Segment& segment, Start& start) {
    start.rows = rows_;
    start.slots.resize(segment.live.size());
    for (size_t i = 0; i < segment.live.size(); ++i) save(start.slots[i], segment.live[i]);
  }
  void restore_start(const Segment& segment, const Start& start) {
    rows_ = start.rows;
    for (size_t i = 0; i < segment.live.size(); ++i)
      std::memcpy(row(segment.live[i], 0), start.slots[i].data(),
                  static_cast<size_t>(rows_ * width(segment.live[i])) * sizeof(float));
  }

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

  void save(Buffer& to, int slot) {
    const int64_t floats = rows_ * width(slot);
    std::memcpy(reserve(to, floats), row(slot, 0), static_cast<size_t>(floats) * sizeof(float));
  }

  void run(const op::Embed& o, Saved&, Step& step) {
    each_row(step, [&](int64_t r) { unpack_row(model_->matrix(o.matrix), ids_[static_cast<size_t>(r)], row(o.x, r)); });
  }
  void undo(const op::Embed&, Saved&, Step&) {}

  void run(const op::Scale& o, Saved&, Step& step) {
    each_row(step, [&](int64_t r) { step.ops.scale(row(o.x, r), o.factor, width(o.x)); });
  }
  void undo(const op::Scale& o, Saved&, Step& step) {
    each_row(step, [&](int64_t r) { step.ops.scale(gradient(o.x, r), o.factor, width(o.x)); });
  }

  void run(const op::RmsNorm& o, Saved& saved, Step& step) {
    if (step.saving) save(saved.x, o.x);
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
        rms_norm_backward(saved.x.as<float>() + r * n + g * part, model_->vector(o.vector), part, o.epsilon,
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

  // None where a layer has none, or the model runs as it is.
  std::span<const float> gates_of(int layer) const {
    if (gates_.empty() || !gated(layer)) return {};
    return std::span(gates_).subspan(static_cast<size_t>(layer * kv_heads_), static_cast<size_t>(kv_heads_));
  }

  void run(const op::Attend& o, Saved& saved, Step& step) {
    step.context.throw_if_stopped();
    const AttentionLayer& layer = graph_.layers[static_cast<size_t>(o.layer)];
    if (!gates_.empty()) {
      saved.attention.forward(layer, streaming_, gates_of(o.layer), rows_, row(o.q, 0), row(o.k, 0), row(o.v, 0),
                              row(o.out, 0), step.context);
      return;
    }
    const Qkv in{.q = by_head(row(o.q, 0), layer.heads, rows_, layer.d),
                 .k = by_head(row(o.k, 0), layer.kv_heads, rows_, layer.d),
                 .v = by_head(row(o.v, 0), layer.kv_heads, rows_, layer.dv)};
    const SoftmaxOptions options{.causal = true, .scale = layer.scale, .window = layer.window};
    softmax_attention(in, options, {.out = by_head(row(o.out, 0), layer.heads, rows_, layer.dv)}, step.context);
    if (step.observer) (*step.observer)(o.layer, in, options);
  }
  void undo(const op::Attend& o, Saved& saved, Step& step) {
    step.context.throw_if_stopped();
    if (gated(o.layer))
      saved.attention.gate_gradients(
          gradient(o.out, 0),
          d_gates_.subspan(static_cast<size_t>(o.layer * kv_heads_), static_cast<size_t>(kv_heads_)), step.context);
    if (step.lowest) return;
    saved.attention.backward(gradient(o.out, 0), gradient(o.q, 0), gradient(o.k, 0), gradient(o.v, 0), step.context);
    each_row(step, [&](int64_t r) { std::fill_n(gradient(o.out, r), width(o.out), 0.0f); });
  }

  void run(const op::Gate& o, Saved& saved, Step& step) {
    if (step.saving) save(saved.x, o.x), save(saved.y, o.y);
    const auto activate = o.activation == Activation::kSilu ? step.ops.silu_multiply : step.ops.gelu_multiply;
    each_row(step, [&](int64_t r) { activate(row(o.x, r), row(o.y, r), width(o.x)); });
  }
  void undo(const op::Gate& o, Saved& saved, Step& step) {
    const auto back = o.activation == Activation::kSilu ? silu_multiply_backward : gelu_multiply_backward;
    const int64_t n = width(o.x);
    each_row(step, [&](int64_t r) {
      back(saved.x.as<float>() + r * n, saved.y.as<float>() + r * n, n, gradient(o.x, r), gradient(o.y, r));
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
  Streaming streaming_;
  int kv_heads_;
  std::vector<PackedWeight> transposed_;  // of matrices in products
  std::vector<Buffer> cosine_, sine_, slots_, gradients_;
  std::vector<Segment> segments_;
  std::vector<Start> starts_;  // of segments
  std::vector<Saved> saved_;   // of each operation of the segment that runs
  Buffer scratch_;
  // Of the last forward().
  std::vector<float> gates_;
  std::vector<int32_t> ids_;
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
