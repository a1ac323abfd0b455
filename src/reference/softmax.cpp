#include "attend/reference/softmax.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attend/tensor/error.h"

namespace attend {
namespace {

double scalar(DType type, const char* p) {
  switch (type) {
    case DType::kF32:
      return *reinterpret_cast<const float*>(p);
    case DType::kF64:
      return *reinterpret_cast<const double*>(p);
    case DType::kF16:
      return to_f32(*reinterpret_cast<const F16*>(p));
    case DType::kBF16:
      return to_f32(*reinterpret_cast<const BF16*>(p));
    case DType::kI32:
      return *reinterpret_cast<const int32_t*>(p);
    case DType::kI64:
      return static_cast<double>(*reinterpret_cast<const int64_t*>(p));
    case DType::kBool:
      return *p != 0;
  }
  return 0;
}

// Axes of 1 are repeated.
double element(const View& v, std::initializer_list<int64_t> index) {
  int axis = 0;
  int64_t offset = 0;
  for (int64_t i : index) {
    offset += v.shape[axis] == 1 ? 0 : i * v.stride[axis];
    ++axis;
  }
  return scalar(v.type, v.as<char>() + offset * size_of(v.type));
}

// One batch entry's and kv head's keys, as an array or as runs.
struct KeySource {
  View k, v;
  const KeyView* runs = nullptr;
  int64_t batch = 0, head = 0, count = 0;

  double get(bool value, int64_t slot, int64_t c) const {
    if (!runs) return element(value ? v : k, {batch, head, slot, c});
    for (const KeyRun& run : runs->runs)
      if (slot >= run.first_slot && slot < run.first_slot + run.count) {
        const int64_t offset = (slot - run.first_slot) * (value ? run.v_stride : run.k_stride) + c;
        const DType type = value ? runs->v_type : runs->k_type;
        return scalar(type, static_cast<const char*>(value ? run.v : run.k) + offset * size_of(type));
      }
    return 0;
  }
  int64_t position(int64_t slot) const {
    return runs && !runs->position.empty() ? runs->position[static_cast<size_t>(slot)] : slot;
  }
};

class SoftmaxReference : public Operator {
 public:
  explicit SoftmaxReference(const SoftmaxOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    const View &q = view(in, "q"), v = optional(in, "v");
    const int64_t dv = v.data ? v.shape[3] : optional(in, "dv").shape[0];
    return {{"out", {DType::kF64, 4, {q.shape[0], q.shape[1], q.shape[2], dv}}},
            {"lse", {DType::kF64, 3, {q.shape[0], q.shape[1], q.shape[2]}}}};
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View &q = view(in, "q"), &result = view(out, "out"), lse = optional(out, "lse");
    for (int64_t b = 0; b < q.shape[0]; ++b)
      for (int64_t h = 0; h < q.shape[1]; ++h)
        for (int64_t i = 0; i < q.shape[2]; ++i) row(in, result, lse, b, h, i);
  }

 private:
  static const View& view(const Tensors& t, std::string_view name) {
    const auto found = t.find(name);
    if (found == t.end()) throw Error(ErrorKind::kArgument, "softmax reference", name, "", "must be given");
    return std::get<View>(found->second);
  }
  static View optional(const Tensors& t, std::string_view name) {
    const auto found = t.find(name);
    return found != t.end() && std::holds_alternative<View>(found->second) ? std::get<View>(found->second) : View{};
  }

  static KeySource source(const Tensors& in, int64_t b, int64_t h, int64_t heads, int64_t batches) {
    KeySource s;
    s.batch = b;
    const Arg& k = in.find("k")->second;
    if (const auto* views = std::get_if<std::span<const KeyView>>(&k)) {
      const int64_t kv_heads = static_cast<int64_t>(views->size()) / batches;
      s.head = h / (heads / kv_heads);
      s.runs = &(*views)[static_cast<size_t>(b * kv_heads + s.head)];
      s.count = s.runs->count();
      return s;
    }
    s.k = std::get<View>(k);
    s.v = view(in, "v");
    s.head = h / (heads / s.k.shape[1]);
    s.count = s.k.shape[2];
    if (const View lens = optional(in, "kv_lens"); lens.data) s.count = static_cast<int64_t>(element(lens, {b}));
    return s;
  }

  // One past the last position of any kv head of batch entry b.
  static int64_t text_length(const Tensors& in, int64_t b, int64_t heads, int64_t batches) {
    int64_t length = 0;
    for (int64_t h = 0; h < heads; ++h) {
      const KeySource s = source(in, b, h, heads, batches);
      if (s.count > 0) length = std::max(length, s.position(s.count - 1) + 1);
    }
    return length;
  }

  bool visible(int64_t p, int64_t j, const View& documents, int64_t b) const {
    if (documents.data && p < 0) return false;
    if (documents.data && element(documents, {b, p}) != element(documents, {b, j})) return false;
    if (j < o_.prefix) return true;
    if (o_.causal && j > p) return false;
    return o_.window == 0 || p - j < o_.window || j < o_.sinks;
  }

  void row(const Tensors& in, const View& result, const View& lse, int64_t b, int64_t h, int64_t i) const {
    const View &q = view(in, "q"), bias = optional(in, "bias"), sinks = optional(in, "sink_logits"),
               documents = optional(in, "documents"), positions = optional(in, "q_positions");
    const int64_t batches = q.shape[0], heads = q.shape[1], queries = q.shape[2], d = q.shape[3], dv = result.shape[3];
    const KeySource keys = source(in, b, h, heads, batches);
    const int64_t p = positions.data ? static_cast<int64_t>(element(positions, {b, i}))
                                     : i + text_length(in, b, heads, batches) - queries;
    const double scale = o_.scale == 0 ? 1 / std::sqrt(static_cast<double>(d)) : o_.scale;
    constexpr double kHidden = -std::numeric_limits<double>::infinity();
    std::vector<double> scores(static_cast<size_t>(keys.count), kHidden), sum_of(static_cast<size_t>(dv), 0);
    double top = kHidden;
    for (int64_t j = 0; j < keys.count; ++j) {
      if (!visible(p, keys.position(j), documents, b)) continue;
      double s = 0;
      for (int64_t c = 0; c < d; ++c) s += element(q, {b, h, i, c}) * keys.get(false, j, c);
      s *= scale;
      if (o_.softcap != 0) s = o_.softcap * std::tanh(s / o_.softcap);
      if (bias.data) s += element(bias, {b, h, i, j});
      scores[static_cast<size_t>(j)] = s;
      if (s > top) top = s;
    }
    const double offset = top == kHidden ? 0 : top;
    double total = 0;
    for (int64_t j = 0; j < keys.count; ++j) {
      const double s = scores[static_cast<size_t>(j)];
      if (s == kHidden) continue;  // takes part in nothing
      const double weight = std::exp(s - offset);
      total += weight;
      for (int64_t c = 0; c < dv; ++c) sum_of[static_cast<size_t>(c)] += weight * keys.get(true, j, c);
    }
    const bool empty = top == kHidden && total == 0;
    if (sinks.data && !empty) total += std::exp(element(sinks, {h}) - offset);
    for (int64_t c = 0; c < dv; ++c) store(result, {b, h, i, c}, empty ? 0 : sum_of[static_cast<size_t>(c)] / total);
    if (lse.data) store(lse, {b, h, i}, empty ? kHidden : offset + std::log(total));
  }

  static void store(const View& v, std::initializer_list<int64_t> index, double x) {
    if (v.type == DType::kF64) {
      *v.at<double>(index) = x;
    } else {
      *v.at<float>(index) = static_cast<float>(x);
    }
  }

  SoftmaxOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_softmax_reference(const SoftmaxOptions& options) {
  return std::make_unique<SoftmaxReference>(options);
}

}  // namespace attend
