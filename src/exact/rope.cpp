#include "attend/exact/rope.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "exact/parameter.h"
#include "exact/tasks.h"
#include "exact/widen.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "rope";

void require(bool holds, std::string_view argument, double got, std::string_view rule) {
  if (!holds) throw Error(ErrorKind::kArgument, kOp, argument, fmt::format("{}", got), rule);
}

int64_t checked_dims(const RopeOptions& o, int64_t d) {
  auto between = [](double x, double low, double high) { return x >= low && x <= high; };
  const int64_t dims = o.dims == 0 ? d : o.dims;
  require(dims >= 2 && dims <= d && dims % 2 == 0, "dims", static_cast<double>(dims),
          "must be even, at least 2 and at most the width of a head");
  require(o.base > 1 && o.base <= 1e15, "base", o.base, "must be above 1 and at most 1e15");
  require(between(o.factor, 1, 1e6), "factor", o.factor, "must be in 1..1e6");
  require(between(o.magnitude, 0, 1e6), "magnitude", o.magnitude, "must be in 0..1e6");
  const bool needs_original = o.scaling == RopeScaling::kDynamicNtk || o.scaling == RopeScaling::kYarn ||
                              o.scaling == RopeScaling::kLlama3 || o.scaling == RopeScaling::kLongRope;
  require(o.original >= (needs_original ? 2 : 0) && o.original <= int64_t{1} << 40, "original",
          static_cast<double>(o.original),
          needs_original ? "must be at least 2 with this scaling" : "must be at least 0");
  if (o.scaling == RopeScaling::kNtk || o.scaling == RopeScaling::kDynamicNtk)
    require(dims >= 4, "dims", static_cast<double>(dims), "must be at least 4 with this scaling");
  if (o.scaling == RopeScaling::kYarn) {
    require(between(o.extrapolation, 0, 1), "extrapolation", o.extrapolation, "must be in 0..1");
    require(between(o.beta_slow, 1e-6, 1e6), "beta_slow", o.beta_slow, "must be in 1e-6..1e6");
    require(between(o.beta_fast, o.beta_slow, 1e6), "beta_fast", o.beta_fast, "must be in beta_slow..1e6");
  }
  if (o.scaling == RopeScaling::kLlama3) {
    require(between(o.low_factor, 1e-6, 1e6), "low_factor", o.low_factor, "must be in 1e-6..1e6");
    require(o.high_factor > o.low_factor && o.high_factor <= 1e6, "high_factor", o.high_factor,
            "must be above low_factor and at most 1e6");
  }
  return dims;
}

// The rotary dimension whose pair turns `turns` times within the trained context.
double dimension_of(double turns, double dims, const RopeOptions& o) {
  return dims * std::log(static_cast<double>(o.original) / (turns * 2 * std::numbers::pi)) / (2 * std::log(o.base));
}

void yarn(const RopeOptions& o, RopeTable& table) {
  const double dims = static_cast<double>(table.dims);
  const double low = std::max(0.0, std::floor(dimension_of(o.beta_fast, dims, o)));
  const double high = std::min(dims - 1, std::ceil(dimension_of(o.beta_slow, dims, o)));
  for (size_t i = 0; i < table.frequency.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / std::max(0.001, high - low), 0.0, 1.0);
    const double interpolated = o.extrapolation * ramp + (1 - o.extrapolation);
    table.frequency[i] *= (1 - interpolated) + interpolated / o.factor;
  }
  if (o.extrapolation != 0) table.magnitude = 1 + 0.1 * std::log(o.factor);
}

void llama3(const RopeOptions& o, RopeTable& table) {
  for (double& f : table.frequency) {
    const double turns = static_cast<double>(o.original) * f / (2 * std::numbers::pi);
    const double keep = std::clamp((turns - o.low_factor) / (o.high_factor - o.low_factor), 0.0, 1.0);
    f *= keep + (1 - keep) / o.factor;
  }
}

}  // namespace

RopeTable rope_table(const RopeOptions& o, int64_t d, int64_t length, const RopeFactors& factors) {
  RopeTable table{.dims = checked_dims(o, d), .frequency = {}, .magnitude = 1};
  const double dims = static_cast<double>(table.dims), text = static_cast<double>(length),
               original = static_cast<double>(o.original);
  double base = o.base, grown = 1;
  if (o.scaling == RopeScaling::kNtk) grown = o.factor;
  if (o.scaling == RopeScaling::kDynamicNtk && length > o.original) grown = o.factor * text / original - (o.factor - 1);
  if (grown != 1) base *= std::pow(grown, dims / (dims - 2));
  for (int64_t i = 0; i < table.dims / 2; ++i)
    table.frequency.push_back(std::pow(base, -2 * static_cast<double>(i) / dims));
  const bool long_text = o.scaling == RopeScaling::kLongRope && length > o.original;
  const View& divisors = long_text ? factors.long_factors : factors.short_factors;
  exact::check_parameter(kOp, {long_text ? "long_factors" : "short_factors", divisors, {table.dims / 2}, "[dims / 2]"},
                         {});
  for (int64_t i = 0; divisors.data && i < table.dims / 2; ++i) {
    const float divisor = *divisors.at<float>({i});
    require(divisor > 0 && std::isfinite(divisor), "factors", divisor, "must be positive and finite");
    table.frequency[static_cast<size_t>(i)] /= divisor;
  }
  if (o.scaling == RopeScaling::kLinear)
    for (double& f : table.frequency) f /= o.factor;
  if (o.scaling == RopeScaling::kYarn) yarn(o, table);
  if (o.scaling == RopeScaling::kLlama3) llama3(o, table);
  if (o.scaling == RopeScaling::kLongRope && o.factor > 1)
    table.magnitude = std::sqrt(1 + std::log(o.factor) / std::log(original));
  if (o.magnitude != 0) table.magnitude = o.magnitude;
  return table;
}

RopeAngles::RopeAngles(RopeTable table) : table_(std::move(table)) {
  for (int64_t b = 0; b < kStep; ++b)
    for (double f : table_.frequency) {
      cosine_.push_back(std::cos(static_cast<double>(b) * f));
      sine_.push_back(std::sin(static_cast<double>(b) * f));
    }
}

// One row after another; the angles of the last multiple of 64 are kept.
class RopeAngles::Filler {
 public:
  Filler(const RopeAngles& angles, const RowOps& ops)
      : angles_(angles), ops_(ops), cosine_(static_cast<size_t>(angles.pairs())), sine_(cosine_.size()) {}

  void row(int64_t position, float* cosine, float* sine) {
    const int64_t b = ((position % kStep) + kStep) % kStep, base = position - b, n = angles_.pairs();
    if (!any_ || base != base_) {
      for (size_t i = 0; i < cosine_.size(); ++i) {
        const double angle = static_cast<double>(base) * angles_.table_.frequency[i];
        cosine_[i] = angles_.table_.magnitude * std::cos(angle);
        sine_[i] = angles_.table_.magnitude * std::sin(angle);
      }
      base_ = base;
      any_ = true;
    }
    ops_.add_angles(cosine_.data(), sine_.data(), angles_.cosine_.data() + b * n, angles_.sine_.data() + b * n, n,
                    cosine, sine);
  }

 private:
  const RopeAngles& angles_;
  const RowOps& ops_;
  std::vector<double> cosine_, sine_;
  int64_t base_ = 0;
  bool any_ = false;
};

void RopeAngles::fill(const int32_t* positions, int64_t rows, const RowOps& ops, float* cosine, float* sine) const {
  Filler filler(*this, ops);
  for (int64_t r = 0; r < rows; ++r) filler.row(positions[r], cosine + r * pairs(), sine + r * pairs());
}

void RopeAngles::fill(int64_t first, int64_t rows, const RowOps& ops, float* cosine, float* sine) const {
  Filler filler(*this, ops);
  for (int64_t r = 0; r < rows; ++r) filler.row(first + r, cosine + r * pairs(), sine + r * pairs());
}

void rope_rotate(const View& x, const View& positions, const RopeAngles& angles, bool interleaved, const View& out,
                 Context& context) {
  if (x.rank != 4 || (x.type != DType::kF32 && x.type != DType::kF16 && x.type != DType::kBF16) ||
      (x.shape[3] > 1 && x.stride[3] != 1) || angles.table().dims > x.shape[3])
    throw Error(ErrorKind::kArgument, kOp, "x", to_string(x),
                "must be [B, H, T, D] of f32, f16 or bf16 with dense rows");
  if (positions.data && (positions.type != DType::kI32 || positions.rank != 2 || positions.shape[0] != x.shape[0] ||
                         positions.shape[1] != x.shape[2]))
    throw Error(ErrorKind::kArgument, kOp, "positions", to_string(positions), "must be [B, T] of i32");
  const AttnOut none{};
  exact::check_parameter(
      kOp, {"out", out, {x.shape[0], x.shape[1], x.shape[2], x.shape[3]}, "[B, H, T, D]", x.count() > 0}, none);
  constexpr int64_t kPart = 64;
  const Isa isa = active_isa(context);
  const RowOps& ops = row_ops(isa);
  const auto rotate = interleaved ? ops.rotate_pairs : ops.rotate_halves;
  const int64_t parts = (x.shape[2] + kPart - 1) / kPart, pairs = angles.pairs();
  exact::run_tasks(context, x.shape[0] * parts, [&](int64_t task, Context&) {
    const int64_t b = task / parts, first = task % parts * kPart, rows = std::min(kPart, x.shape[2] - first);
    std::vector<float> cosine(static_cast<size_t>(rows * pairs)), sine(cosine.size());
    std::vector<int32_t> at(static_cast<size_t>(rows));
    for (int64_t r = 0; r < rows; ++r)
      at[static_cast<size_t>(r)] =
          positions.data ? *positions.at<int32_t>({b, first + r}) : static_cast<int32_t>(first + r);
    angles.fill(at.data(), rows, ops, cosine.data(), sine.data());
    for (int64_t h = 0; h < x.shape[1]; ++h)
      for (int64_t r = 0; r < rows; ++r) {
        float* to = out.at<float>({b, h, first + r});
        const int64_t from = b * x.stride[0] + h * x.stride[1] + (first + r) * x.stride[2];
        exact::widen(x, from, x.shape[3], isa, to);
        rotate(to, cosine.data() + r * pairs, sine.data() + r * pairs, pairs);
      }
  });
}

}  // namespace attend
