#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "attend/exact/rope.h"
#include "attend/exact/weight_statistics.h"
#include "attend/simd/isa.h"
#include "attend/simd/key_rows.h"
#include "attend/tensor/error.h"
#include "exact/keys.h"
#include "exact/keys_alone.h"
#include "exact/parameter.h"
#include "exact/problem.h"
#include "exact/tasks.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "rope";

// Entries [first, first + count) of an axis.
View part_of(const View& x, int axis, int64_t first, int64_t count) {
  View part = x;
  part.data = x.as<char>() + first * x.stride[axis] * size_of(x.type);
  part.shape[axis] = count;
  return part;
}

View batch_of(const View& x, int64_t b) {
  return part_of(x, 0, b, 1);
}

// A checked call: angles of every batch entry, and queries and keys rotated by them.
class Rotation {
 public:
  const SoftmaxOptions softmax;
  const exact::Problem p;

  Rotation(const Qkv& in, const View& bases, const RopeFactors& factors, const RopeAttentionOptions& options,
           const AttnOut& out, const Variant& variant, const RopeAngles* angles)
      : softmax{.causal = options.causal, .scale = options.scale, .window = options.window, .sinks = options.sinks},
        p(exact::check(in, softmax, kOp, variant)),
        in_(in),
        options_(options),
        angles_(angles) {
    exact::check_parameter(kOp, {"bases", bases, {p.batch}, "[B]"}, out);
    exact::check_parameter(
        kOp, {"short_factors", factors.short_factors, {factors.short_factors.shape[0]}, "[dims / 2]"}, out);
    exact::check_parameter(kOp, {"long_factors", factors.long_factors, {factors.long_factors.shape[0]}, "[dims / 2]"},
                           out);
    views_ = !in.keys.empty();
    if (views_ && (bases.data || options.rope.scaling == RopeScaling::kDynamicNtk ||
                   options.rope.scaling == RopeScaling::kLongRope))
      throw Error(ErrorKind::kArgument, kOp, "k", "key views", "were rotated before: no bases, no scaling by length");
    if (angles && angles->table().dims > p.d)
      throw Error(ErrorKind::kArgument, kOp, "angles", fmt::format("{}", angles->table().dims),
                  fmt::format("must be at most the head's {} elements", p.d));
    keys_ = views_ ? 0 : in.k.shape[2];
    for (int64_t b = 0; b < p.batch; ++b) {
      RopeOptions rope = options.rope;
      if (bases.data) rope.base = *bases.at<float>({b});
      tables_.push_back(rope_table(rope, p.d, keys_, factors));
    }
    by_slot_ = views_ && rope_keeps_unturned(options);
    // Where queries stand for the sinks, if that is not always where they stand in the text.
    in_cache_ = options.positions == RopePositions::kCache && options.window > 0 && options.sinks > 0;
    for (int64_t b = 0; b < p.batch; ++b)
      for (int64_t i = 0; i < p.queries; ++i) {
        const int64_t position = p.position(b, i);
        const bool dropped = position - options.window >= options.sinks;
        q_position_.push_back(static_cast<int32_t>(position));
        if (in_cache_)
          q_cached_.push_back(static_cast<int32_t>(dropped ? options.window + options.sinks - 1 : position));
      }
  }

  bool in_cache() const { return in_cache_; }
  int64_t keys() const { return keys_; }

  // The arguments with rotated queries and, where they are arrays, keys, in memory of the context.
  Qkv rotated(Context& context) {
    Qkv turned = in_;
    turned.q = query_memory(context, 0);
    if (by_slot_) {
      turn_to_slots(turned.q, context);
      turned.keys = by_slot_views_;
      return turned;
    }
    if (!views_)
      turned.k = dense_view(exact::kept_floats(context, 1, std::max<int64_t>(1, p.batch * p.kv_heads * keys_ * p.d)),
                            DType::kF32, {p.batch, p.kv_heads, keys_, p.d});
    turn(in_.q, in_.k, turned.q, views_ ? View{} : turned.k, 1, q_position_, context);
    return turned;
  }

  // The queries as sinks see them.
  View rotated_for_sinks(Context& context) const {
    const View q = query_memory(context, 2);
    turn(in_.q, {}, q, {}, 1, q_cached_, context);
    return q;
  }

  // Gradients of rotated queries and keys, in place: turned by the same angles the other way.
  void turn_back(const View& q, const View& k, Context& context) const { turn(q, k, q, k, -1, q_position_, context); }
  void turn_back_for_sinks(const View& q, Context& context) const { turn(q, {}, q, {}, -1, q_cached_, context); }

  View query_memory(Context& context, int index) const {
    return dense_view(exact::kept_floats(context, index, std::max<int64_t>(1, p.batch * p.heads * p.queries * p.d)),
                      DType::kF32, {p.batch, p.heads, p.queries, p.d});
  }

 private:
  // Keys of views, and queries, to where they stand among what the views hold: the queries of a head at the slots of
  // their own keys.
  void turn_to_slots(const View& to_q, Context& context) {
    std::optional<RopeAngles> own;
    const RopeAngles& angles = angles_ ? *angles_ : own.emplace(tables_[0]);
    const bool pairs = options_.rope.interleaved;
    const Isa isa = active_isa(context);
    int64_t slots = 0;
    size_t runs = 0;
    for (const KeyView& keys : in_.keys) slots += keys.count(), runs += keys.runs.size();
    float* k = exact::kept_floats(context, 1, std::max<int64_t>(1, slots * p.d));
    runs_.reserve(runs);
    std::vector<int32_t> at(static_cast<size_t>(p.queries));
    const int64_t group = p.heads / p.kv_heads;
    for (int64_t v = 0; v < static_cast<int64_t>(in_.keys.size()); ++v) {
      const KeyView& keys = in_.keys[static_cast<size_t>(v)];
      const int64_t count = keys.count(), b = v / p.kv_heads, head = v % p.kv_heads * group;
      read_keys(keys, 0, count, p.d, isa, k);
      const View rows = dense_view(k, DType::kF32, {1, 1, count, p.d});
      if (count > 0) rope_rotate(rows, {}, angles, pairs, rows, context);
      const size_t first = runs_.size();
      for (KeyRun run : keys.runs) {
        run.k = k + run.first_slot * p.d;
        run.k_stride = p.d;
        run.k_type = DType::kF32;
        run.k_scale = run.k_offset = nullptr;
        runs_.push_back(run);
      }
      by_slot_views_.push_back({std::span(runs_).subspan(first), keys.position});
      const exact::Keys held(keys);
      for (int64_t i = 0; i < p.queries; ++i)
        at[static_cast<size_t>(i)] =
            static_cast<int32_t>(std::max<int64_t>(0, held.lower_slot(p.position(b, i) + 1) - 1));
      rope_rotate(part_of(batch_of(in_.q, b), 1, head, group), dense_view(at.data(), DType::kI32, {1, p.queries}),
                  angles, pairs, part_of(batch_of(to_q, b), 1, head, group), context);
      k += count * p.d;
    }
  }

  void turn(const View& q, const View& k, const View& to_q, const View& to_k, int32_t sign,
            const std::vector<int32_t>& q_position, Context& context) const {
    std::vector<int32_t> at_q = q_position, at_k(static_cast<size_t>(keys_));
    for (int32_t& position : at_q) position *= sign;
    for (size_t j = 0; j < at_k.size(); ++j) at_k[j] = sign * static_cast<int32_t>(j);
    const View queries = dense_view(at_q.data(), DType::kI32, {p.batch, p.queries}),
               keys = dense_view(at_k.data(), DType::kI32, {1, keys_});
    for (int64_t b = 0; b < p.batch; ++b) {
      std::optional<RopeAngles> own;
      if (!angles_) own.emplace(tables_[static_cast<size_t>(b)]);
      const RopeAngles& by = angles_ ? *angles_ : *own;
      const bool pairs = options_.rope.interleaved;
      if (to_q.data) rope_rotate(batch_of(q, b), batch_of(queries, b), by, pairs, batch_of(to_q, b), context);
      if (to_k.data) rope_rotate(batch_of(k, b), keys, by, pairs, batch_of(to_k, b), context);
    }
  }

  const Qkv& in_;
  const RopeAttentionOptions& options_;
  const RopeAngles* angles_;
  bool views_ = false, by_slot_ = false;
  std::vector<KeyRun> runs_;
  std::vector<KeyView> by_slot_views_;
  int64_t keys_ = 0;
  std::vector<RopeTable> tables_;
  std::vector<int32_t> q_position_, q_cached_;  // [B, Tq]
  bool in_cache_ = false;
};

}  // namespace

void rope_attention(const Qkv& in, const View& bases, const RopeFactors& factors, const RopeAttentionOptions& options,
                    const AttnOut& out, Context& context, const RopeAngles* angles, const Variant& variant) {
  Rotation rotation(in, bases, factors, options, out, variant, angles);
  exact::check_outputs(rotation.p, in, out, kOp);
  if (!rotation.in_cache())
    return softmax_attention(rotation.rotated(context), rotation.softmax, out, context, variant);
  if (variant.final_weight || !rotation.p.softmax())
    throw Error(ErrorKind::kArgument, kOp, "variant", "", "must be a softmax of one pass with cache positions");
  const Qkv rest = rotation.rotated(context);
  Qkv sinks = rest;
  sinks.q = rotation.rotated_for_sinks(context);
  const int64_t cut = options.sinks;
  Partial sum = softmax_partial(sinks, rotation.softmax, {0, cut}, context, variant);
  merge(sum, softmax_partial(rest, rotation.softmax, {cut, kNoEnd}, context, variant), context);
  finish(sum, in.sink_logits, out, context);
}

void rope_add_weights(const Qkv& in, const View& bases, const RopeFactors& factors, const RopeAttentionOptions& options,
                      const View& lse, const WeightPlaces& to, Context& context, const RopeAngles* angles) {
  const Qkv keys = exact::keys_alone(in);
  Rotation rotation(keys, bases, factors, options, {}, {}, angles);
  const Qkv rest = rotation.rotated(context);
  if (!rotation.in_cache()) return add_weights(rest, rotation.softmax, lse, to, context);
  Qkv sinks = rest;
  sinks.q = rotation.rotated_for_sinks(context);
  add_weights(sinks, rotation.softmax, lse, to, context, {}, {0, options.sinks});
  add_weights(rest, rotation.softmax, lse, to, context, {}, {options.sinks, kNoEnd});
}

namespace {

// The gradients of the sinks and of the other keys each need the outputs of the whole row, nothing else of each other.
void cached_backward(Rotation& rotation, const RopeAttentionOptions& options, const AttnOut& forward,
                     const AttnOutGrad& grad_out, const AttnGrad& grad_in, Context& context) {
  const exact::Problem& p = rotation.p;
  const int64_t cut = std::min(options.sinks, rotation.keys()), rest = rotation.keys() - cut;
  std::vector<int32_t> near(static_cast<size_t>(p.batch * p.queries)), far = near, lengths[2];
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t length = p.lengths[static_cast<size_t>(b)];
    lengths[0].push_back(static_cast<int32_t>(std::min(length, cut)));
    lengths[1].push_back(static_cast<int32_t>(std::max<int64_t>(0, length - cut)));
    for (int64_t i = 0; i < p.queries; ++i) {
      far[static_cast<size_t>(b * p.queries + i)] = static_cast<int32_t>(p.position(b, i));
      near[static_cast<size_t>(b * p.queries + i)] = static_cast<int32_t>(p.position(b, i) - cut);
    }
  }
  const Qkv turned = rotation.rotated(context);
  const View sink_q = rotation.rotated_for_sinks(context), sink_dq = rotation.query_memory(context, 3);
  auto part = [&](const View& q, std::vector<int32_t>& at, std::vector<int32_t>& length, int64_t first, int64_t count,
                  const SoftmaxOptions& visible, const View& dq) {
    const Qkv keys{.q = q,
                   .k = part_of(turned.k, 2, first, count),
                   .v = part_of(turned.v, 2, first, count),
                   .kv_lens = dense_view(length.data(), DType::kI32, {p.batch}),
                   .q_positions = dense_view(at.data(), DType::kI32, {p.batch, p.queries})};
    auto tokens_of = [&](const View& x) { return x.data ? part_of(x, 2, first, count) : x; };
    const AttnGrad gradients{.q = dq, .k = tokens_of(grad_in.k), .v = tokens_of(grad_in.v)};
    softmax_attention_backward(keys, visible, forward, grad_out, gradients, context);
  };
  const SoftmaxOptions all{.causal = options.causal, .scale = options.scale};
  SoftmaxOptions windowed = all;
  windowed.window = options.window;
  part(sink_q, far, lengths[0], 0, cut, all, sink_dq);
  part(turned.q, near, lengths[1], cut, rest, windowed, grad_in.q);
  rotation.turn_back(grad_in.q, grad_in.k, context);
  if (!grad_in.q.data) return;
  rotation.turn_back_for_sinks(sink_dq, context);
  const View& dq = grad_in.q;
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t h = 0; h < p.heads; ++h)
      for (int64_t i = 0; i < p.queries; ++i)
        for (int64_t c = 0; c < p.d; ++c) *dq.at<float>({b, h, i, c}) += *sink_dq.at<float>({b, h, i, c});
}

}  // namespace

void rope_attention_backward(const Qkv& in, const View& bases, const RopeFactors& factors,
                             const RopeAttentionOptions& options, const AttnOut& forward, const AttnOutGrad& grad_out,
                             const AttnGrad& grad_in, Context& context, const RopeAngles* angles,
                             const Variant& variant) {
  Rotation rotation(in, bases, factors, options, {}, variant, angles);
  // Against the arguments as they came; the call below checks the rotated ones.
  exact::check_gradients(rotation.p, in, forward, grad_out, grad_in, kOp);
  if (rotation.in_cache()) {
    for (const auto& [name, view] :
         {std::pair{"bias", &in.bias}, {"sink_logits", &in.sink_logits}, {"documents", &in.documents}})
      exact::require_absent(kOp, name, *view);
    if (variant.score || variant.weight || variant.final_weight || variant.mask || !rotation.p.softmax())
      throw Error(ErrorKind::kArgument, kOp, "variant", "", "must be plain with cache positions");
    return cached_backward(rotation, options, forward, grad_out, grad_in, context);
  }
  const Qkv rotated = rotation.rotated(context);
  softmax_attention_backward(rotated, rotation.softmax, forward, grad_out, grad_in, context, variant);
  rotation.turn_back(grad_in.q, grad_in.k, context);
}

namespace {

// f(v, ln out[v]) of every v.
template <class F>
void merge_each(std::string_view op, const View& logits, const View& out, F f) {
  if (logits.rank != 2 || logits.type != DType::kF32 || logits.shape[0] < 1 || logits.shape[1] < 1 ||
      (logits.shape[1] > 1 && logits.stride[1] != 1))
    throw Error(ErrorKind::kArgument, op, "logits", to_string(logits), "must be [N, V] of f32, dense rows");
  exact::check_parameter(op, {"out", out, {logits.shape[1]}, "[V]", true}, {});
  exact::check_parameter(op, {"logits", logits, {logits.shape[0], logits.shape[1]}, "[N, V]", true}, {out});
  const int64_t count = logits.shape[0], size = logits.shape[1];
  // ln (a[n] p[n,v]) = x[n,v] - fall[n], with ln a[n] = top - lse and ln p[n,v] = x[n,v] - lse.
  std::vector<double> fall;
  double confidence = 0;
  for (int64_t n = 0; n < count; ++n) {
    const float* x = logits.at<float>({n});
    const double top = *std::max_element(x, x + size);
    double sum = 0;
    for (int64_t v = 0; v < size; ++v) sum += std::exp(x[v] - top);
    fall.push_back(top + 2 * std::log(sum));
    confidence += 1 / sum;
  }
  const double all = std::log(confidence);
  for (int64_t v = 0; v < size; ++v) {
    double most = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int64_t n = 0; n < count; ++n) most = std::max(most, *logits.at<float>({n, v}) - fall[static_cast<size_t>(n)]);
    if (most == -std::numeric_limits<double>::infinity()) {
      f(v, most);
      continue;
    }
    for (int64_t n = 0; n < count; ++n)
      sum += std::exp(*logits.at<float>({n, v}) - fall[static_cast<size_t>(n)] - most);
    f(v, most + std::log(sum) - all);
  }
}

}  // namespace

void merge_buckets(const View& logits, const View& out) {
  merge_each("merge_buckets", logits, out,
             [&](int64_t v, double ln) { *out.at<float>({v}) = static_cast<float>(std::exp(ln)); });
}

void merge_bucket_logits(const View& logits, const View& out) {
  merge_each("merge_bucket_logits", logits, out,
             [&](int64_t v, double ln) { *out.at<float>({v}) = static_cast<float>(ln); });
}

}  // namespace attend
