#include "attend/exact/dca.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "attend/exact/weight_statistics.h"
#include "attend/tensor/error.h"
#include "exact/dense_rows.h"
#include "exact/keys_alone.h"
#include "exact/parameter.h"
#include "exact/problem.h"
#include "exact/tasks.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "dca";

// Queries of one batch entry whose positions lie in one chunk; before all keys it is -1.
struct Group {
  int64_t batch, first, rows, chunk;
};

class Dca {
 public:
  Dca(const Qkv& in, const DcaOptions& options, const exact::Problem& problem, const RopeAngles& angles,
      Context& context)
      : in_(in), o_(options), p_(problem), context_(context), chunk_(options.chunk_tokens()), angles_(angles) {}

  void attend(const AttnOut& out) {
    each_group([&](const Group& g) { attend(g, out); });
  }

  void add_weights(const View& lse, const WeightPlaces& to) {
    each_group([&](const Group& g) {
      const WeightPlaces own{to.heads.subspan(static_cast<size_t>(g.batch * p_.heads), static_cast<size_t>(p_.heads)),
                             to.attended};
      each_part(g, [&](const Qkv& part, KeyRange range, std::span<int32_t>) {
        attend::add_weights(part, softmax(), slice(lse, g.batch, g.first, g.rows), own, context_, {}, range);
      });
    });
  }

  void backward(const AttnOut& forward, const AttnOutGrad& grad_out, const AttnGrad& grad_in) {
    for (const View* grad : {&grad_in.q, &grad_in.k, &grad_in.v}) exact::clear_rows(*grad);
    each_group([&](const Group& g) {
      each_part(g, [&](const Qkv& part, KeyRange range, std::span<int32_t> rotary) {
        backward(g, part, range, rotary, forward, grad_out, grad_in);
      });
    });
    if (grad_in.k.data) turn_keys(grad_in.k, grad_in.k, -1);
  }

 private:
  // To or from where keys stand in their chunks.
  void turn_keys(const View& k, const View& to, int32_t sign) const {
    const int64_t keys = k.shape[2];
    std::vector<int32_t> at(static_cast<size_t>(p_.batch * keys));
    for (size_t t = 0; t < at.size(); ++t) at[t] = sign * static_cast<int32_t>(static_cast<int64_t>(t) % keys % chunk_);
    rope_rotate(k, dense_view(at.data(), DType::kI32, {p_.batch, keys}), angles_, o_.rope.interleaved, to, context_);
  }

  template <class F>
  void each_group(F f) {
    if (in_.keys.empty()) {
      const int64_t keys = in_.k.shape[2];
      keys_ = dense_view(exact::kept_floats(context_, 0, p_.batch * p_.kv_heads * keys * p_.d), DType::kF32,
                         {p_.batch, p_.kv_heads, keys, p_.d});
      turn_keys(in_.k, keys_, 1);
    }
    for (int64_t b = 0; b < p_.batch; ++b)
      for (int64_t first = 0; first < p_.queries;) {
        const int64_t chunk = chunk_of(b, first);
        int64_t rows = 1;
        while (first + rows < p_.queries && chunk_of(b, first + rows) == chunk) ++rows;
        f(Group{b, first, rows, chunk});
        first += rows;
      }
  }

  SoftmaxOptions softmax() const { return {.causal = true, .scale = o_.scale}; }

  int64_t chunk_of(int64_t b, int64_t i) const {
    const int64_t position = p_.position(b, i);
    return position < 0 ? -1 : position / chunk_;
  }

  void attend(const Group& g, const AttnOut& out) {
    Partial sum(1, p_.heads, g.rows, p_.dv);
    each_part(g, [&](const Qkv& part, KeyRange range, std::span<int32_t>) {
      merge(sum, softmax_partial(part, softmax(), range, context_), context_);
    });
    finish(sum, {}, {slice(out.out, g.batch, g.first, g.rows), slice(out.lse, g.batch, g.first, g.rows)}, context_);
  }

  // What the keys of a range add to the gradients; those of keys as they are turned.
  void backward(const Group& g, const Qkv& part, KeyRange range, std::span<int32_t> rotary, const AttnOut& forward,
                const AttnOutGrad& grad_out, const AttnGrad& grad_in) {
    const int64_t keys = std::min(range.end, in_.k.shape[2]) - range.begin;
    if (keys <= 0) return;
    std::vector<int32_t> position(rotary.size());
    for (size_t r = 0; r < position.size(); ++r)
      position[r] = static_cast<int32_t>(p_.position(g.batch, g.first + static_cast<int64_t>(r)) - range.begin);
    Qkv own = part;
    own.k = slice(part.k, 0, range.begin, keys);
    own.v = slice(part.v, 0, range.begin, keys);
    own.q_positions = dense_view(position.data(), DType::kI32, {1, g.rows});
    Buffer memory[3];
    auto room = [](const View& wanted, const View& like, Buffer& buffer) {
      if (!wanted.data) return View{};
      buffer = Buffer(like.count() * 4);
      return dense_view(buffer.data(), DType::kF32, 4, like.shape);
    };
    const AttnGrad added{.q = room(grad_in.q, own.q, memory[0]),
                         .k = room(grad_in.k, own.k, memory[1]),
                         .v = room(grad_in.v, own.v, memory[2])};
    auto of_group = [&](const View& x) { return slice(x, g.batch, g.first, g.rows); };
    softmax_attention_backward(own, softmax(), {of_group(forward.out), of_group(forward.lse)},
                               {of_group(grad_out.out), of_group(grad_out.lse)}, added, context_);
    if (added.q.data) {
      for (int32_t& at : rotary) at = -at;
      rope_rotate(added.q, dense_view(rotary.data(), DType::kI32, {1, g.rows}), angles_, o_.rope.interleaved, added.q,
                  context_);
      exact::add_rows(added.q, of_group(grad_in.q));
    }
    exact::add_rows(added.k, slice(grad_in.k, g.batch, range.begin, keys));
    exact::add_rows(added.v, slice(grad_in.v, g.batch, range.begin, keys));
  }

  // f(arguments with rotated queries, positions of the keys that they are for, what the queries were rotated by), of each
  // range of keys that the queries see from places of their own.
  template <class F>
  void each_part(const Group& g, F f) {
    const int64_t begin = g.chunk * chunk_, last = o_.context - 1;
    if (g.chunk >= 2)
      part(
          g, {0, begin - chunk_}, [&](int64_t) { return last; }, f);
    if (g.chunk >= 1)
      part(
          g, {begin - chunk_, begin}, [&](int64_t i) { return std::min(i % chunk_ + chunk_, last); }, f);
    if (g.chunk >= 0)
      part(
          g, {begin, begin + chunk_}, [&](int64_t i) { return i % chunk_; }, f);
  }

  // The keys of a range, seen from position x(i) by the query at position i.
  template <class X, class F>
  void part(const Group& g, KeyRange range, X x, F f) {
    std::vector<int32_t> position(static_cast<size_t>(g.rows)), rotary(position.size());
    for (int64_t r = 0; r < g.rows; ++r) {
      const int64_t i = p_.position(g.batch, g.first + r);
      position[static_cast<size_t>(r)] = static_cast<int32_t>(i);
      rotary[static_cast<size_t>(r)] = static_cast<int32_t>(x(i));
    }
    std::vector<float> q(static_cast<size_t>(p_.heads * g.rows * p_.d));
    Qkv own{.q = dense_view(q.data(), DType::kF32, {1, p_.heads, g.rows, p_.d}),
            .q_positions = dense_view(position.data(), DType::kI32, {1, g.rows})};
    if (in_.keys.empty()) {
      own.k = slice(keys_, g.batch, 0, in_.k.shape[2]);
      own.v = slice(in_.v, g.batch, 0, in_.k.shape[2]);
    } else {
      own.keys = in_.keys.subspan(static_cast<size_t>(g.batch * p_.kv_heads), static_cast<size_t>(p_.kv_heads));
      own.dv = in_.dv;
    }
    rope_rotate(slice(in_.q, g.batch, g.first, g.rows), dense_view(rotary.data(), DType::kI32, {1, g.rows}), angles_,
                o_.rope.interleaved, own.q, context_);
    f(own, range, std::span(rotary));
  }

  // Rows [first, first + count) of a batch entry.
  static View slice(const View& x, int64_t batch, int64_t first, int64_t count) {
    View part = x;
    if (!x.data) return part;
    part.data = x.as<char>() + (batch * x.stride[0] + first * x.stride[2]) * size_of(x.type);
    part.shape[0] = 1;
    part.shape[2] = count;
    return part;
  }

  const Qkv& in_;
  const DcaOptions& o_;
  const exact::Problem& p_;
  Context& context_;
  int64_t chunk_;
  const RopeAngles& angles_;
  View keys_;
};

}  // namespace

namespace {

exact::Problem check(const Qkv& in, const DcaOptions& options, const RopeAngles* angles) {
  for (const auto& [name, view] : {std::pair{"kv_lens", &in.kv_lens},
                                   {"bias", &in.bias},
                                   {"sink_logits", &in.sink_logits},
                                   {"documents", &in.documents}})
    exact::require_absent(kOp, name, *view);
  exact::Problem problem = exact::check(in, {.causal = true, .scale = options.scale}, kOp);
  if (options.context < 2 || options.context > int64_t{1} << 30)
    throw Error(ErrorKind::kArgument, kOp, "context", fmt::format("{}", options.context), "must be in 2..2^30");
  if (options.chunk_tokens() < 1 || options.chunk_tokens() >= options.context)
    throw Error(ErrorKind::kArgument, kOp, "chunk", fmt::format("{}", options.chunk_tokens()),
                fmt::format("must be at least 1 and below the context of {}", options.context));
  if (options.rope.scaling == RopeScaling::kDynamicNtk || options.rope.scaling == RopeScaling::kLongRope)
    throw Error(ErrorKind::kArgument, kOp, "scaling", kRopeScalings[static_cast<int>(options.rope.scaling)],
                "must not depend on the text's length");
  if (angles && angles->table().dims > problem.d)
    throw Error(ErrorKind::kArgument, kOp, "angles", fmt::format("{}", angles->table().dims),
                fmt::format("must be at most the head's {} elements", problem.d));
  return problem;
}

}  // namespace

void dca_attention(const Qkv& in, const DcaOptions& options, const AttnOut& out, Context& context,
                   const RopeAngles* angles) {
  const exact::Problem problem = check(in, options, angles);
  exact::check_outputs(problem, in, out, kOp);
  std::optional<RopeAngles> own;
  if (!angles) angles = &own.emplace(rope_table(options.rope, problem.d, 1));
  Dca(in, options, problem, *angles, context).attend(out);
}

void dca_attention_backward(const Qkv& in, const DcaOptions& options, const AttnOut& forward,
                            const AttnOutGrad& grad_out, const AttnGrad& grad_in, Context& context,
                            const RopeAngles* angles) {
  exact::require_arrays(kOp, in);
  const exact::Problem problem = check(in, options, angles);
  exact::check_gradients(problem, in, forward, grad_out, grad_in, kOp);
  std::optional<RopeAngles> own;
  if (!angles) angles = &own.emplace(rope_table(options.rope, problem.d, 1));
  Dca(in, options, problem, *angles, context).backward(forward, grad_out, grad_in);
}

void dca_add_weights(const Qkv& qkv, const DcaOptions& options, const View& lse, const WeightPlaces& to,
                     Context& context, const RopeAngles* angles) {
  const Qkv in = exact::keys_alone(qkv);
  const exact::Problem problem = check(in, options, angles);
  std::optional<RopeAngles> own;
  if (!angles) angles = &own.emplace(rope_table(options.rope, problem.d, 1));
  if (lse.type != DType::kF32 || lse.rank != 3 || lse.shape[0] != problem.batch || lse.shape[1] != problem.heads ||
      lse.shape[2] != problem.queries)
    throw Error(ErrorKind::kArgument, kOp, "lse", to_string(lse), "must be f32 [B, Hq, Tq]");
  if (static_cast<int64_t>(to.heads.size()) != problem.batch * problem.heads)
    throw Error(ErrorKind::kArgument, kOp, "places", std::to_string(to.heads.size()), "must be one a query head");
  Dca(in, options, problem, *angles, context).add_weights(lse, to);
}

void dca_turn_keys(const View& keys, std::span<const int32_t> positions, const DcaOptions& options,
                   const RopeAngles& angles, Context& context) {
  std::vector<int32_t> at;
  for (int64_t b = 0; b < keys.shape[0]; ++b)
    for (int32_t position : positions) at.push_back(static_cast<int32_t>(position % options.chunk_tokens()));
  rope_rotate(keys, dense_view(at.data(), DType::kI32, {keys.shape[0], static_cast<int64_t>(positions.size())}), angles,
              options.rope.interleaved, keys, context);
}

}  // namespace attend
