#include "exact/problem.h"

#include <fmt/format.h>

#include <cmath>

#include "attend/tensor/error.h"
#include "exact/parameter.h"

namespace attend::exact {
namespace {

[[noreturn]] void refuse(std::string_view op, std::string_view argument, std::string_view got, std::string_view rule) {
  throw Error(ErrorKind::kArgument, op, argument, got, rule);
}

void require_shape(std::string_view op, std::string_view name, const View& v, std::initializer_list<int64_t> shape,
                   std::string_view axes) {
  bool fits = v.rank == static_cast<int>(shape.size());
  int axis = 0;
  for (int64_t n : shape) fits = fits && v.shape[axis++] == n;
  if (!fits) refuse(op, name, to_string(v), fmt::format("must be {} = [{}]", axes, fmt::join(shape, ", ")));
}

void require_type(std::string_view op, std::string_view name, const View& v, std::initializer_list<DType> types) {
  std::string names;
  for (DType type : types) {
    if (v.type == type) return;
    names.append(names.empty() ? "" : " or ").append(name_of(type));
  }
  refuse(op, fmt::format("{} type", name), name_of(v.type), "must be " + names);
}

void require_dense_rows(std::string_view op, std::string_view name, const View& v) {
  const int last = v.rank - 1;
  if (v.shape[last] > 1 && v.stride[last] != 1)
    refuse(op, fmt::format("{} innermost stride", name), fmt::format("{}", v.stride[last]), "must be 1");
}

void require_rank4(std::string_view op, std::string_view name, const View& v) {
  if (!v.data && v.count() != 0) refuse(op, name, "null", "must be given");
  if (v.rank != 4) refuse(op, name, to_string(v), "must have 4 axes");
  for (int a = 0; a < 4; ++a)
    if (v.shape[a] < 0) refuse(op, name, to_string(v), "must have no negative axis");
}

void check_options(std::string_view op, const SoftmaxOptions& o) {
  auto not_negative = [&](std::string_view name, int64_t value) {
    if (value < 0) refuse(op, name, fmt::format("{}", value), "must be at least 0");
  };
  not_negative("window", o.window);
  not_negative("sinks", o.sinks);
  not_negative("prefix", o.prefix);
  if (!std::isfinite(o.scale)) refuse(op, "scale", fmt::format("{}", o.scale), "must be finite");
  if (!(o.softcap >= 0) || !std::isfinite(o.softcap))
    refuse(op, "softcap", fmt::format("{}", o.softcap), "must be finite and at least 0");
}

void check_key_view(std::string_view op, const KeyView& view, int64_t d, int64_t dv, size_t index) {
  const std::string name = fmt::format("keys[{}]", index);
  int64_t next = 0;
  for (const KeyRun& run : view.runs) {
    const bool by_channel = is_by_channel(run.k_type);
    if (run.k_type == DType::kQ4_1 || run.k_type == DType::kQ2_1 || is_by_channel(run.v_type))
      refuse(op, name + " types", fmt::format("{} and {}", name_of(run.k_type), name_of(run.v_type)),
             "q4_1 and q2_1 are of values, q4_c and q2_c of keys");
    if (by_channel != (run.k_scale && run.k_offset) || (!by_channel && (run.k_scale || run.k_offset)))
      refuse(op, name + " scales", by_channel ? "null" : "given",
             fmt::format("must {}be there where keys are {}", by_channel ? "" : "not ", name_of(run.k_type)));
    for (const auto& [type, width] : {std::pair{run.k_type, d}, {run.v_type, dv}}) {
      if (type != DType::kF32 && type != DType::kF16 && type != DType::kBF16 && !is_quantised(type))
        refuse(op, name + " type", name_of(type), "must be f32, f16, bf16 or quantised");
      if (is_quantised(type) && width % kQuantisedBlock != 0)
        refuse(op, name + " width", fmt::format("{}", width),
               fmt::format("must be a multiple of {} where rows are {}", kQuantisedBlock, name_of(type)));
    }
    if (run.count < 0 || run.first_slot != next)
      refuse(op, name, fmt::format("run from slot {} of {} keys", run.first_slot, run.count),
             "runs must follow one another");
    if (run.count > 0 && (!run.k || !run.v)) refuse(op, name, "null", "must be given");
    if (run.count > 1 && (std::abs(run.k_stride) * size_of(run.k_type) < row_bytes(run.k_type, d) ||
                          std::abs(run.v_stride) * size_of(run.v_type) < row_bytes(run.v_type, dv)))
      refuse(op, name, fmt::format("strides {} and {}", run.k_stride, run.v_stride), "must be at least a row long");
    next += run.count;
  }
  if (view.position.empty()) return;
  if (static_cast<int64_t>(view.position.size()) != next)
    refuse(op, name + " positions", fmt::format("{}", view.position.size()),
           fmt::format("must be one for each of {} keys", next));
  bool ascend = view.position[0] >= 0;
  for (size_t i = 1; i < view.position.size(); ++i) ascend &= view.position[i - 1] < view.position[i];
  if (!ascend) refuse(op, name + " positions", "", "must be at least 0 and ascend strictly");
}

void check_plain_keys(std::string_view op, const Qkv& in, Problem& p) {
  require_rank4(op, "k", in.k);
  require_rank4(op, "v", in.v);
  for (const auto& [name, view] : {std::pair{"k", &in.k}, {"v", &in.v}}) {
    require_type(op, name, *view, {DType::kF32, DType::kF16, DType::kBF16});
    require_dense_rows(op, name, *view);
  }
  p.kv_heads = in.k.shape[1];
  p.dv = in.v.shape[3];
  const int64_t keys = in.k.shape[2];
  require_shape(op, "k", in.k, {p.batch, p.kv_heads, keys, p.d}, "[B, Hkv, Tk, D]");
  require_shape(op, "v", in.v, {p.batch, p.kv_heads, keys, p.dv}, "[B, Hkv, Tk, Dv]");
  for (int64_t b = 0; b < p.batch; ++b) {
    int64_t length = keys;
    if (in.kv_lens.data) {
      length = static_cast<int64_t>(value_at(in.kv_lens, b));
      if (length < 0 || length > keys)
        refuse(op, fmt::format("kv_lens[{}]", b), fmt::format("{}", length), fmt::format("must be in 0..{}", keys));
    }
    p.lengths.push_back(length);
    for (int64_t h = 0; h < p.kv_heads; ++h) {
      const int64_t k_size = size_of(in.k.type), v_size = size_of(in.v.type);
      KeyRun run{in.k.as<char>() + (b * in.k.stride[0] + h * in.k.stride[1]) * k_size,
                 in.v.as<char>() + (b * in.v.stride[0] + h * in.v.stride[1]) * v_size,
                 in.k.stride[2],
                 in.v.stride[2],
                 0,
                 length,
                 in.k.type,
                 in.v.type};
      p.keys.emplace_back(run);
    }
  }
}

void check_key_views(std::string_view op, const Qkv& in, Problem& p) {
  if (in.k.data || in.v.data) refuse(op, "k", "array", "must be absent where keys come as views");
  if (in.kv_lens.data) refuse(op, "kv_lens", "array", "must be absent where keys come as views");
  const int64_t views = static_cast<int64_t>(in.keys.size());
  if (p.batch == 0 || views % p.batch != 0 || views == 0)
    refuse(op, "keys", fmt::format("{} views", views),
           fmt::format("must be Hkv for each of {} batch entries", p.batch));
  p.kv_heads = views / p.batch;
  p.dv = in.dv;
  for (size_t i = 0; i < in.keys.size(); ++i) {
    check_key_view(op, in.keys[i], p.d, p.dv, i);
    p.keys.emplace_back(in.keys[i]);
  }
  for (int64_t b = 0; b < p.batch; ++b) {
    int64_t end = 0;
    for (int64_t h = 0; h < p.kv_heads; ++h)
      end = std::max(end, p.keys[static_cast<size_t>(b * p.kv_heads + h)].end_position());
    p.lengths.push_back(end);
  }
}

void check_documents(std::string_view op, const Problem& p) {
  const View& d = p.documents;
  require_type(op, "documents", d, {DType::kI32});
  if (d.rank != 2 || d.shape[0] != p.batch) refuse(op, "documents", to_string(d), "must be [B, T]");
  for (int64_t b = 0; b < p.batch; ++b) {
    int64_t needed = p.lengths[static_cast<size_t>(b)];
    for (int64_t i = 0; i < p.queries; ++i) needed = std::max(needed, p.position(b, i) + 1);
    if (d.shape[1] < needed)
      refuse(op, "documents", to_string(d), fmt::format("must cover the {} positions of batch entry {}", needed, b));
    for (int64_t j = 1; j < d.shape[1]; ++j)
      if (*d.at<int32_t>({b, j}) < *d.at<int32_t>({b, j - 1}))
        refuse(op, fmt::format("documents[{}, {}]", b, j), fmt::format("{}", *d.at<int32_t>({b, j})),
               "must not be less than the one before");
  }
}

void check_variant(std::string_view op, const Problem& p) {
  const Variant& v = p.variant;
  const bool softmax = p.softmax();
  if (!softmax && !v.weight) refuse(op, "weight", "none", "must be given where the normaliser is not a softmax");
  if (!softmax && p.sink_logits.data) refuse(op, "sink_logits", "", "must not be given with this normaliser");
  const Compute compute = p.options.compute;
  if ((is_int8(compute) || is_fp8(compute)) && (v.normalizer != Normalizer::kSoftmax || v.weight || v.final_weight))
    refuse(op, "compute", name_of(compute), "must be f32 or bf16 where weights are not those of a plain softmax");
  if (!v.mask) return;
  const MaskSizes& m = v.mask->sizes();
  int64_t queries = 0, keys = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    keys = std::max(keys, p.lengths[static_cast<size_t>(b)]);
    for (int64_t i = 0; i < p.queries; ++i) queries = std::max(queries, p.position(b, i) + 1);
  }
  if ((m.batch != 1 && m.batch != p.batch) || (m.heads != 1 && m.heads != p.heads) || m.queries < queries ||
      m.keys < keys)
    refuse(op, "mask", fmt::format("[{}, {}, {}, {}]", m.batch, m.heads, m.queries, m.keys),
           fmt::format("must cover [{}, {}, {}, {}] (or 1 for batch and heads)", p.batch, p.heads, queries, keys));
}

}  // namespace

void require_apart(std::string_view op, std::string_view a_name, const View& a, std::string_view b_name,
                   const View& b) {
  if (overlap(a, b)) refuse(op, a_name, "memory", fmt::format("must not overlap {}", b_name));
}

void check_like(const View& view, const View& like, std::string_view name, std::string_view op) {
  require_type(op, name, view, {DType::kF32});
  bool fits = view.rank == like.rank;
  for (int a = 0; fits && a < like.rank; ++a) fits = view.shape[a] == like.shape[a];
  if (!fits) refuse(op, name, to_string(view), fmt::format("must have the shape {}", to_string(like)));
  if (view.rank > 0) require_dense_rows(op, name, view);
}

KeyRange Problem::document(int64_t b, int64_t at) const {
  if (!documents.data) return {0, kNoEnd};
  if (at < 0) return {};
  const int32_t id = *documents.at<int32_t>({b, at});
  // The first position whose document is at least `bound`.
  auto first = [&](int64_t bound) {
    int64_t low = 0, high = documents.shape[1];
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (*documents.at<int32_t>({b, middle}) < bound) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  return {first(id), first(int64_t{id} + 1)};
}

Problem check(const Qkv& in, const SoftmaxOptions& options, std::string_view op, const Variant& variant) {
  check_options(op, options);
  require_rank4(op, "q", in.q);
  require_type(op, "q", in.q, {DType::kF32});
  require_dense_rows(op, "q", in.q);
  Problem p{};
  p.batch = in.q.shape[0], p.heads = in.q.shape[1], p.queries = in.q.shape[2], p.d = in.q.shape[3];
  p.options = options;
  p.q = in.q;
  p.softcap = static_cast<float>(options.softcap);
  if (p.d < 1 || p.d > 512) refuse(op, "D", fmt::format("{}", p.d), "must be in 1..512");
  p.scale = static_cast<float>(options.scale == 0 ? 1 / std::sqrt(static_cast<double>(p.d)) : options.scale);
  if (in.kv_lens.data) {
    require_type(op, "kv_lens", in.kv_lens, {DType::kI32, DType::kI64});
    require_shape(op, "kv_lens", in.kv_lens, {p.batch}, "[B]");
  }
  if (in.keys.empty()) {
    check_plain_keys(op, in, p);
  } else {
    check_key_views(op, in, p);
  }
  if (p.dv < 1 || p.dv > 512) refuse(op, "Dv", fmt::format("{}", p.dv), "must be in 1..512");
  if (p.kv_heads < 1 || p.heads % p.kv_heads != 0)
    refuse(op, "Hq", fmt::format("{}", p.heads), fmt::format("must be a multiple of Hkv = {}", p.kv_heads));
  p.group = p.heads / p.kv_heads;
  if (in.q_positions.data) {
    require_type(op, "q_positions", in.q_positions, {DType::kI32});
    require_shape(op, "q_positions", in.q_positions, {p.batch, p.queries}, "[B, Tq]");
    p.q_positions = in.q_positions;
  }
  if (in.sink_logits.data) {
    require_type(op, "sink_logits", in.sink_logits, {DType::kF32});
    require_shape(op, "sink_logits", in.sink_logits, {p.heads}, "[Hq]");
    p.sink_logits = in.sink_logits;
  }
  if (in.bias.data) {
    require_type(op, "bias", in.bias, {DType::kF32});
    p.bias = in.bias;
    int64_t slots = 0;
    for (const Keys& keys : p.keys) slots = std::max(slots, keys.count());
    if (in.keys.empty()) slots = in.k.shape[2];
    const int64_t full[] = {p.batch, p.heads, p.queries, slots};
    for (int a = 0; a < 4; ++a) {
      if (in.bias.rank != 4 || (in.bias.shape[a] != 1 && in.bias.shape[a] != full[a]))
        refuse(op, "bias", to_string(in.bias), fmt::format("must broadcast to [{}]", fmt::join(full, ", ")));
      if (in.bias.shape[a] == 1) p.bias.stride[a] = 0;
    }
  }
  if (in.documents.data) {
    p.documents = in.documents;
    check_documents(op, p);
  }
  p.variant = variant;
  check_variant(op, p);
  return p;
}

void check_outputs(int64_t batch, int64_t heads, int64_t queries, int64_t dv, const AttnOut& out, std::string_view op) {
  if (!out.out.data && !out.lse.data && batch * heads * queries != 0) refuse(op, "out", "null", "must be given");
  if (out.out.data) {
    require_type(op, "out", out.out, {DType::kF32});
    require_shape(op, "out", out.out, {batch, heads, queries, dv}, "[B, Hq, Tq, Dv]");
    require_dense_rows(op, "out", out.out);
  }
  if (!out.lse.data) return;
  require_type(op, "lse", out.lse, {DType::kF32});
  require_shape(op, "lse", out.lse, {batch, heads, queries}, "[B, Hq, Tq]");
  require_apart(op, "lse", out.lse, "out", out.out);
}

void check_outputs(const Problem& p, const Qkv& in, const AttnOut& out, std::string_view op) {
  if (out.lse.data && !p.softmax()) refuse(op, "lse", "", "must not be given where the normaliser is not a softmax");
  check_outputs(p.batch, p.heads, p.queries, p.dv, out, op);
  const std::pair<std::string_view, const View*> inputs[] = {{"q", &in.q},
                                                             {"k", &in.k},
                                                             {"v", &in.v},
                                                             {"bias", &in.bias},
                                                             {"sink_logits", &in.sink_logits},
                                                             {"documents", &in.documents},
                                                             {"q_positions", &in.q_positions},
                                                             {"kv_lens", &in.kv_lens}};
  for (const auto& [name, view] : inputs) {
    require_apart(op, "out", out.out, name, *view);
    require_apart(op, "lse", out.lse, name, *view);
  }
}

}  // namespace attend::exact
