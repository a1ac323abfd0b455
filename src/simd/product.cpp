#include "attend/simd/product.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <vector>

#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "simd/product_kernels.h"

namespace attend {
namespace {

const ProductKernels& kernels_of(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kAvx2:
      return avx2::kProductKernels;
    case Isa::kAvx512:
      return avx512::kProductKernels;
    case Isa::kAvx512Vnni:
      return avx512vnni::kProductKernels;
    default:
      break;
  }
#endif
  throw Error(ErrorKind::kUnsupported, "product", "isa", name_of(isa), "has no product kernels");
}

[[noreturn]] void refuse(std::string_view argument, int64_t got, std::string_view rule) {
  throw Error(ErrorKind::kArgument, "product", argument, fmt::format("{}", got), rule);
}

void check(std::span<const PackedWeight* const> w, const float* x, int64_t x_stride, std::span<float* const> y,
           std::span<const int64_t> y_stride, int64_t t) {
  if (y.size() != w.size()) refuse("y.size", static_cast<int64_t>(y.size()), "must be that of w");
  if (y_stride.size() != w.size()) refuse("y_stride.size", static_cast<int64_t>(y_stride.size()), "must be that of w");
  if (t < 0) refuse("t", t, "must be at least 0");
  for (size_t i = 0; i < w.size(); ++i) {
    if (!w[i] || !w[i]->data.data())
      throw Error(ErrorKind::kArgument, "product", "w", "empty", "must be the result of pack_weight");
    if (w[i]->k != w[0]->k) refuse("w.k", w[i]->k, fmt::format("must be {} as of the first weight", w[0]->k));
    if (!y[i] && t) throw Error(ErrorKind::kArgument, "product", "y", "null", "must be given");
    if (y_stride[i] < w[i]->n && t > 1)
      refuse("y_stride", y_stride[i], fmt::format("must be at least n = {}", w[i]->n));
  }
  if (w.empty() || !t) return;
  if (!x) throw Error(ErrorKind::kArgument, "product", "x", "null", "must be given");
  if (x_stride < w[0]->k && t > 1) refuse("x_stride", x_stride, fmt::format("must be at least k = {}", w[0]->k));
}

// Rows of one weight's panels that a thread takes at a time.
struct Part {
  ProductJob job;
  Activation activation;
  int64_t panels, panels_a_unit, rows_a_unit, units;
};

int64_t width_of(Activation activation, const ProductKernels& kernels) {
  return activation == Activation::kF32 ? kernels.f32_width : kernels.integer_width;
}

constexpr int64_t round_to_line(int64_t bytes) {
  return (bytes + kLine - 1) / kLine * kLine;
}

// Memory for converted activations, kept between calls of one thread.
std::byte* activations(int64_t bytes) {
  thread_local Scratch scratch;
  return scratch.reserve(bytes);
}

// Copies one row into place `row` of an f32 tile.
void place_row(const float* x, int64_t k, float* tile, int64_t width, int64_t row) {
  for (int64_t i = 0; i < k; ++i) tile[i * width + row] = x[i];
}

}  // namespace

void products(std::span<const PackedWeight* const> w, const float* x, int64_t x_stride, std::span<float* const> y,
              std::span<const int64_t> y_stride, int64_t t, Context& context) {
  check(w, x, x_stride, y, y_stride, t);
  if (w.empty() || t == 0) return;
  const ProductKernels& kernels = kernels_of(active_isa(context));
  const int64_t k = w[0]->k;
  std::array<bool, kActivationCount> wanted{};
  for (const PackedWeight* weight : w) wanted[static_cast<size_t>(activation_of(weight->type))] = true;
  std::array<std::byte*, kActivationCount> tiles{};
  int64_t bytes = 0;
  for (size_t a = 0; a < tiles.size(); ++a)
    if (wanted[a]) bytes += round_to_line(t * row_bytes(static_cast<Activation>(a), k));
  std::byte* free = activations(bytes);
  for (size_t a = 0; a < tiles.size(); ++a) {
    if (!wanted[a]) continue;
    tiles[a] = free;
    free += round_to_line(t * row_bytes(static_cast<Activation>(a), k));
  }

  // Few rows: units of 64 KB of weights or more, a dozen for each thread. Many: two panels by a block of rows whose
  // activations stay in the second cache.
  constexpr int64_t kUnitBytes = 64 << 10, kRowBlock = 192;
  std::vector<Part> parts(w.size());
  int64_t units = 0, work = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    Part& part = parts[i];
    part.activation = activation_of(w[i]->type);
    part.job = {w[i]->type, w[i]->data.data(), w[i]->n, k, tiles[static_cast<size_t>(part.activation)], t,
                y[i],       y_stride[i]};
    part.panels = (w[i]->n - 1) / kPanelRows + 1;
    const int64_t width = width_of(part.activation, kernels);
    part.rows_a_unit = kRowBlock / width * width;
    const int64_t unit_bytes = std::max(kUnitBytes, w[i]->bytes() / (12 * context.threads));
    part.panels_a_unit = t > width ? 2 : std::max<int64_t>(2, unit_bytes / panel_bytes(w[i]->type, k) / 2 * 2);
    part.units = ((part.panels - 1) / part.panels_a_unit + 1) * ((t - 1) / part.rows_a_unit + 1);
    units += part.units;
    work += w[i]->n * k;
  }

  auto convert = [&](int64_t row) {
    const float* from = x + row * x_stride;
    for (size_t a = 0; a < tiles.size(); ++a) {
      if (!wanted[a]) continue;
      const auto activation = static_cast<Activation>(a);
      const int64_t full = width_of(activation, kernels), first = row / full * full, width = std::min(full, t - first);
      std::byte* tile = tiles[a] + first * row_bytes(activation, k);
      switch (activation) {
        case Activation::kInt8:
          kernels.quantise_int8(from, k, tile, width, row - first);
          break;
        case Activation::kInt16:
          kernels.quantise_int16(from, k, tile, width, row - first);
          break;
        case Activation::kF32:
          place_row(from, k, reinterpret_cast<float*>(tile), width, row - first);
          break;
      }
    }
  };
  auto run = [&](int64_t unit) {
    const Part* part = parts.data();
    while (unit >= part->units) unit -= part++->units;
    const int64_t column_units = (part->panels - 1) / part->panels_a_unit + 1;
    const int64_t panel = unit % column_units * part->panels_a_unit, row = unit / column_units * part->rows_a_unit;
    (part->activation == Activation::kF32 ? kernels.f32 : kernels.integer)(
        part->job, panel, std::min(part->panels, panel + part->panels_a_unit), row,
        std::min(t, row + part->rows_a_unit));
  };

  constexpr int64_t kSerialWork = 1 << 15;  // multiply-adds that take less than a fork and join
  if (context.threads == 1 || units == 1 || work * t < kSerialWork) {
    for (int64_t row = 0; row < t; ++row) convert(row);
    for (int64_t unit = 0; unit < units; ++unit) run(unit);
    return;
  }
  if (t > 4) {
    constexpr int64_t kRows = 16;  // a time
    parallel_for(context.threads, (t + kRows - 1) / kRows, [&](int64_t part, int) {
      for (int64_t row = part * kRows; row < std::min(t, (part + 1) * kRows); ++row) convert(row);
    });
  } else {
    for (int64_t row = 0; row < t; ++row) convert(row);
  }
  parallel_for(context.threads, units, [&](int64_t unit, int) { run(unit); });
}

void product(const PackedWeight& w, const float* x, int64_t x_stride, float* y, int64_t y_stride, int64_t t,
             Context& context) {
  const PackedWeight* const weights[] = {&w};
  float* const outputs[] = {y};
  products(weights, x, x_stride, outputs, {&y_stride, 1}, t, context);
}

}  // namespace attend
