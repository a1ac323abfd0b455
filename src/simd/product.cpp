#include "attend/simd/product.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <numeric>
#include <vector>

#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "simd/product_kernels.h"

namespace attend {
namespace {

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

int64_t width_of(Activation activation, const ProductKernels& kernels) {
  return activation == Activation::kF32 ? kernels.f32_width : kernels.integer_width;
}

constexpr int64_t round_to_line(int64_t bytes) {
  return (bytes + kLine - 1) / kLine * kLine;
}

// Memory for converted activations, kept between calls of one thread.
std::byte* activation_memory(int64_t bytes) {
  thread_local Scratch scratch;
  return scratch.reserve(bytes);
}

// The activations of one step, in every form that its weights read.
class Activations {
 public:
  Activations(std::span<const PackedWeight* const> w, const float* x, int64_t x_stride, int64_t t,
              const ProductKernels& kernels)
      : kernels_(kernels), x_(x), x_stride_(x_stride), k_(w[0]->k), t_(t) {
    std::array<int64_t, kActivationCount> bytes{};
    for (const PackedWeight* weight : w) {
      const Activation form = activation_of(weight->type);
      bytes[static_cast<size_t>(form)] = round_to_line(t * row_bytes(form, k_));
    }
    std::byte* free = activation_memory(std::accumulate(bytes.begin(), bytes.end(), int64_t{0}));
    for (size_t form = 0; form < bytes.size(); ++form) {
      if (bytes[form]) tiles_[form] = free;
      free += bytes[form];
    }
  }

  const std::byte* tiles(Activation form) const { return tiles_[static_cast<size_t>(form)]; }

  void convert(int64_t row) const {
    const float* from = x_ + row * x_stride_;
    for (const Activation form : {Activation::kInt8, Activation::kInt16, Activation::kF32}) {
      std::byte* tile = tiles_[static_cast<size_t>(form)];
      if (!tile) continue;
      const int64_t full = width_of(form, kernels_), first = row / full * full, width = std::min(full, t_ - first);
      tile += first * row_bytes(form, k_);
      switch (form) {
        case Activation::kInt8:
          kernels_.quantise_int8(from, k_, tile, width, row - first);
          break;
        case Activation::kInt16:
          kernels_.quantise_int16(from, k_, tile, width, row - first);
          break;
        case Activation::kF32:
          for (int64_t i = 0; i < k_; ++i) reinterpret_cast<float*>(tile)[i * width + row - first] = from[i];
          break;
      }
    }
  }

 private:
  const ProductKernels& kernels_;
  const float* x_;
  int64_t x_stride_, k_, t_;
  std::array<std::byte*, kActivationCount> tiles_{};
};

// One weight's share of a step, in units of two panels by a block of rows: few enough that their activations stay in
// the second cache, many enough to pay for widening the panels.
struct Part {
  ProductJob job;
  void (*run)(const ProductJob& job, int64_t panel_begin, int64_t panel_end, int64_t row_begin, int64_t row_end);
  int64_t rows_a_unit, column_units, units;

  static constexpr int64_t kPanels = 2, kMostRows = 320;

  Part(const PackedWeight& w, const Activations& x, int64_t t, float* y, int64_t y_stride,
       const ProductKernels& kernels) {
    const Activation form = activation_of(w.type);
    job = {w.type, w.data.data(), w.n, w.k, x.tiles(form), t, y, y_stride};
    run = form == Activation::kF32 ? kernels.f32 : kernels.integer;
    const int64_t width = width_of(form, kernels);
    const int64_t blocks = (t - 1) / kMostRows + 1;
    rows_a_unit = ((t - 1) / blocks + width) / width * width;
    column_units = (w.n - 1) / (kPanels * kPanelRows) + 1;
    units = column_units * ((t - 1) / rows_a_unit + 1);
  }

  void run_unit(int64_t unit) const {
    const int64_t panel = unit % column_units * kPanels, row = unit / column_units * rows_a_unit;
    run(job, panel, std::min((job.n - 1) / kPanelRows + 1, panel + kPanels), row, std::min(job.t, row + rows_a_unit));
  }
};

// Units in one range for each thread, which takes them in order, so that what it prefetches is what it reads next, and
// then what is left of the others.
class Ranges {
 public:
  Ranges(int64_t units, int threads) : ranges_(static_cast<size_t>(threads)) {
    for (int i = 0; i < threads; ++i) {
      Range& range = ranges_[static_cast<size_t>(i)];
      range.next = units * i / threads;
      range.end = units * (i + 1) / threads;
    }
  }

  // The next unit, of range `first` while it has any, or -1.
  int64_t take(int64_t first) {
    for (size_t i = 0; i < ranges_.size(); ++i) {
      Range& range = ranges_[(static_cast<size_t>(first) + i) % ranges_.size()];
      if (range.next.load(std::memory_order_relaxed) >= range.end) continue;
      if (const int64_t unit = range.next.fetch_add(1, std::memory_order_relaxed); unit < range.end) return unit;
    }
    return -1;
  }

 private:
  struct alignas(64) Range {
    std::atomic<int64_t> next;
    int64_t end;
  };
  std::vector<Range> ranges_;
};

}  // namespace

void products(std::span<const PackedWeight* const> w, const float* x, int64_t x_stride, std::span<float* const> y,
              std::span<const int64_t> y_stride, int64_t t, Context& context) {
  check(w, x, x_stride, y, y_stride, t);
  if (w.empty() || t == 0) return;
  const ProductKernels& kernels = product_kernels(active_isa(context), t);
  const Activations activations(w, x, x_stride, t, kernels);
  std::vector<Part> parts;
  parts.reserve(w.size());
  int64_t units = 0, work = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    parts.emplace_back(*w[i], activations, t, y[i], y_stride[i], kernels);
    units += parts[i].units;
    work += w[i]->n * w[i]->k * t;
  }
  auto run = [&](int64_t unit) {
    const Part* part = parts.data();
    while (unit >= part->units) unit -= part++->units;
    part->run_unit(unit);
  };

  constexpr int64_t kSerialWork = 1 << 15;  // multiply-adds that take less than a fork and join
  constexpr int64_t kSerialRows = 4;        // whose conversion takes less than a barrier
  if (context.threads == 1 || units == 1 || work < kSerialWork) {
    for (int64_t row = 0; row < t; ++row) activations.convert(row);
    for (int64_t unit = 0; unit < units; ++unit) run(unit);
    return;
  }
  if (t <= kSerialRows) {
    for (int64_t row = 0; row < t; ++row) activations.convert(row);
  } else {
    constexpr int64_t kRows = 16;  // a time
    parallel_for(context.threads, (t - 1) / kRows + 1, [&](int64_t part, int) {
      for (int64_t row = part * kRows; row < std::min(t, (part + 1) * kRows); ++row) activations.convert(row);
    });
  }
  Ranges ranges(units, context.threads);
  parallel_for(context.threads, context.threads, [&](int64_t range, int) {
    for (int64_t unit = ranges.take(range); unit >= 0; unit = ranges.take(range)) run(unit);
  });
}

void product(const PackedWeight& w, const float* x, int64_t x_stride, float* y, int64_t y_stride, int64_t t,
             Context& context) {
  const PackedWeight* const weights[] = {&w};
  float* const outputs[] = {y};
  products(weights, x, x_stride, outputs, {&y_stride, 1}, t, context);
}

}  // namespace attend
