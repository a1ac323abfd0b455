#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <random>

#include "attend/simd/product.h"
#include "attend/tensor/bound.h"
#include "attend/tensor/dtype.h"
#include "bench.h"

namespace attend::app {
namespace {

struct Product {
  WeightType type;
  int64_t n, k, t;
};

// The largest matrices of the two example models, one row (decode) and 512 rows (prefill), and f32 for comparison.
std::vector<Product> all_products() {
  std::vector<Product> rows;
  for (const int64_t t : {int64_t{1}, int64_t{512}}) {
    rows.push_back({WeightType::kQ4_1, 1536, 576, t});
    rows.push_back({WeightType::kQ4_1, 576, 1536, t});
    rows.push_back({WeightType::kQ5_0, 2048, 640, t});
    rows.push_back({WeightType::kQ4_K, 640, 2048, t});
    rows.push_back({WeightType::kQ6_K, 640, 2048, t});
    rows.push_back({WeightType::kF32, 1536, 576, t});
    rows.push_back({WeightType::kF16, 1536, 576, t});
  }
  rows.push_back({WeightType::kQ8_0, 49152, 576, 1});
  rows.push_back({WeightType::kQ8_0, 262144, 640, 1});
  rows.push_back({WeightType::kQ8_0, 2048, 640, 512});
  return rows;
}

// Blocks of random bits, with scales that make values of about 1.
std::vector<uint8_t> random_blocks(const Product& row, std::mt19937& random) {
  const WeightFormat& format = format_of(row.type);
  std::vector<uint8_t> bytes(static_cast<size_t>(row.n * row.k / format.block_elements * format.block_bytes));
  for (size_t i = 0; i + 4 <= bytes.size(); i += 4) {
    const uint32_t bits = static_cast<uint32_t>(random());
    std::memcpy(bytes.data() + i, &bits, 4);
  }
  std::normal_distribution<float> normal;
  auto put = [&](uint8_t* p, float value) {
    const F16 half = to_f16(value);
    std::memcpy(p, &half, 2);
  };
  for (size_t at = 0; at < bytes.size(); at += static_cast<size_t>(format.block_bytes)) {
    uint8_t* p = bytes.data() + at;
    const float value = normal(random);
    switch (row.type) {
      case WeightType::kF32:
        std::memcpy(p, &value, 4);
        break;
      case WeightType::kQ4_K:
        put(p, value / 512);
        put(p + 2, value / 64);
        break;
      case WeightType::kQ6_K:
        put(p + 208, value / 2048);
        break;
      case WeightType::kQ4_1:
        put(p, value / 8);
        put(p + 2, -value);
        break;
      case WeightType::kQ5_0:
        put(p, value / 16);
        break;
      case WeightType::kQ8_0:
        put(p, value / 128);
        break;
      default:
        put(p, value);
    }
  }
  return bytes;
}

// Largest difference from a plain loop in double over a sample of outputs; `failure` says where it is above the bound.
double sampled_error(const Product& row, const std::vector<uint8_t>& blocks, const std::vector<float>& x,
                     const std::vector<float>& y, std::string& failure) {
  const WeightFormat& format = format_of(row.type);
  const int64_t row_bytes = row.k / format.block_elements * format.block_bytes, levels = activation_levels(row.type);
  std::vector<float> w(static_cast<size_t>(row.k)), terms(w);
  double worst = 0;
  for (int64_t i = 0; i < row.n; i += std::max<int64_t>(1, row.n / 61)) {
    const uint8_t* block = blocks.data() + i * row_bytes;
    dequantize(row.type, block, row.k, w.data());
    dequantised_terms(row.type, block, row.k, terms.data());
    for (int64_t r = 0; r < row.t; r += std::max<int64_t>(1, row.t / 5)) {
      const std::span<const float> from(x.data() + r * row.k, w.size());
      double exact = 0, magnitude = 0;
      for (size_t c = 0; c < w.size(); ++c) {
        exact += static_cast<double>(from[c]) * w[c];
        magnitude += std::fabs(static_cast<double>(from[c]) * w[c]);
      }
      const double limit = levels ? bound::quantised_product(from, w, terms, static_cast<double>(levels))
                                  : bound::product(row.k, magnitude);
      const double error = std::fabs(y[static_cast<size_t>(r * row.n + i)] - exact);
      if (!(error <= worst)) worst = error;
      if (!(error <= limit)) failure = fmt::format("error {:.3g} is above the bound {:.3g}", error, limit);
    }
  }
  return worst;
}

BenchResult run(const Product& row, Limits& limits, Context& context) {
  std::mt19937 random(1);
  const std::vector<uint8_t> blocks = random_blocks(row, random);
  std::vector<float> x(static_cast<size_t>(row.t * row.k)), y(static_cast<size_t>(row.t * row.n));
  std::normal_distribution<float> normal;
  for (float& value : x) value = normal(random);
  std::vector<PackedWeight> weights;
  const bool cold = row.t == 1;
  const int copies = cold ? copies_beyond_caches(static_cast<double>(blocks.size())) : 1;
  for (int i = 0; i < copies; ++i)
    weights.push_back(pack_weight(row.type, blocks.data(), row.n, row.k, ComputeMode::kDefault, context));
  size_t turn = 0;
  auto call = [&] { product(weights[turn++ % weights.size()], x.data(), row.k, y.data(), row.n, row.t, context); };
  call();
  BenchResult result{};
  result.flops = 2.0 * static_cast<double>(row.n * row.k * row.t);
  result.bytes = static_cast<double>(weights[0].bytes());
  result.error = sampled_error(row, blocks, x, y, result.failure);
  if (!result.failure.empty()) return result;
  measure(
      result, call,
      [&] {
        const double seconds = result.flops / std::max(limits.products(row.type), limits.products(row.type));
        return cold ? std::max(seconds, result.bytes / std::max(limits.reads(), limits.reads())) : seconds;
      },
      context);
  return result;
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

}  // namespace

std::vector<BenchRow> product_rows() {
  std::vector<BenchRow> rows;
  for (const Product& p : all_products()) {
    const std::string type = lower(format_of(p.type).name);
    rows.push_back({fmt::format("product/{}-{}-{}x{}", p.t == 1 ? "decode" : "prefill", type, p.n, p.k),
                    "",
                    type,
                    {{"T", p.t}, {"N", p.n}, {"K", p.k}},
                    p.t == 1,
                    [p](Limits& limits, Context& context) { return run(p, limits, context); }});
  }
  return rows;
}

}  // namespace attend::app
