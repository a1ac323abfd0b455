#include "attend/exact/cope.h"

#include <algorithm>
#include <vector>

#include "attend/simd/hook_math.h"
#include "attend/simd/product.h"
#include "attend/simd/split.h"
#include "attend/tensor/error.h"
#include "exact/cope_check.h"
#include "exact/parameter.h"
#include "exact/tile_hook.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "cope";
constexpr int64_t kBlockQueries = 256;  // whose gate sums and products with the embeddings are kept at once
constexpr int kTogether = 8;            // rows whose sums run side by side: one add would wait for the other

// Sums of gates of a block of queries: [heads, rows, splits], first of each split, then of all later ones.
struct Gates {
  int64_t rows, splits, last_position;  // of the last query of the block
  std::vector<float> sum;

  int64_t row_of(int32_t position) const { return rows - 1 - (last_position - position); }
  float* at(int64_t head, int32_t position, int64_t split) {
    return sum.data() + (head * rows + row_of(position)) * splits + split;
  }
};

// counts[r][c] = sum of the gates of row r from column c on, to the row's own position. Returns the sums of all
// columns.
struct Counts {
  float count[kTogether][kSplitPositions];
  float total[kTogether];

  [[gnu::always_inline]] inline void compute(const Tile& t, int first, int n, const float* later) {
    for (int r = 0; r < kTogether; ++r) {
      if (r >= n) {
        std::fill_n(count[r], t.cols, 0.0f);
        total[r] = 0;
        continue;
      }
      const float* s = t.s + (first + r) * t.stride;
      const int32_t i = t.q_position[first + r];
      float* gate = count[r];
#pragma omp simd
      for (int c = 0; c < t.cols; ++c) {
        const float g = hook_sigmoid(s[c]);
        gate[c] = t.k_position[c] <= i ? g : 0;
      }
      total[r] = later ? later[r] : 0;
    }
    for (int c = t.cols - 1; c >= 0; --c)
      for (int r = 0; r < kTogether; ++r) count[r][c] = total[r] += count[r][c];
  }
};

// First pass: what the gates of each split sum up to.
struct SumGates {
  Gates& gates;

  [[gnu::always_inline]] inline void tile(Tile& t) const {
    Counts counts;
    for (int first = 0; first < t.rows; first += kTogether) {
      const int n = std::min(kTogether, t.rows - first);
      counts.compute(t, first, n, nullptr);
      for (int r = 0; r < n; ++r)
        *gates.at(t.head, t.q_position[first + r], t.k_position[0] / kSplitPositions) = counts.total[r];
    }
  }
};

// Second pass: adds the interpolated products with the embeddings.
struct AddPositions {
  Gates& gates;
  const float* products;  // [heads, rows, positions]: scale * dot(q, e)
  int64_t positions;

  [[gnu::always_inline]] inline void tile(Tile& t) const {
    Counts counts;
    const float last = static_cast<float>(positions - 1);
    for (int first = 0; first < t.rows; first += kTogether) {
      const int n = std::min(kTogether, t.rows - first);
      float later[kTogether];
      for (int r = 0; r < n; ++r)
        later[r] = *gates.at(t.head, t.q_position[first + r], t.k_position[0] / kSplitPositions);
      counts.compute(t, first, n, later);
      for (int r = 0; r < n; ++r) {
        float* s = t.s + (first + r) * t.stride;
        const float* count = counts.count[r];
        const float* z = products + (t.head * gates.rows + gates.row_of(t.q_position[first + r])) * positions;
#pragma omp simd
        for (int c = 0; c < t.cols; ++c) {
          const float p = count[c] < last ? count[c] : last;
          const int32_t below = static_cast<int32_t>(p), above = below + (p > static_cast<float>(below));
          const float part = p - static_cast<float>(below);
          s[c] += (1 - part) * z[below] + part * z[above];
        }
      }
    }
  }
};

// Queries [first, first + rows) of one batch entry and the keys up to the last of them.
Qkv block_of(const Qkv& in, int64_t batch, int64_t first, int64_t rows, int64_t keys) {
  auto slice = [&](const View& x, int64_t begin, int64_t count) {
    View part = x;
    part.data = x.as<char>() + (batch * x.stride[0] + begin * x.stride[2]) * size_of(x.type);
    part.shape[0] = 1;
    part.shape[2] = count;
    return part;
  };
  return {.q = slice(in.q, first, rows), .k = slice(in.k, 0, keys), .v = slice(in.v, 0, keys)};
}

}  // namespace

exact::Problem exact::check_cope(const Qkv& in, const View& embeddings, const CopeOptions& options,
                                 const AttnOut& out) {
  require_arrays_alone(kOp, in);
  Problem p = check(in, {.causal = true, .scale = options.scale}, kOp);
  const int64_t positions = embeddings.rank == 2 ? embeddings.shape[0] : 0;
  check_parameter(kOp, {"embeddings", embeddings, {positions, p.d}, "[P, D]", true}, out);
  if (positions < 2 || positions > 65536)
    throw Error(ErrorKind::kArgument, kOp, "embeddings", to_string(embeddings), "must have 2 to 65536 rows");
  return p;
}

void cope_attention(const Qkv& in, const View& embeddings, const CopeOptions& options, const AttnOut& out,
                    Context& context) {
  const exact::Problem p = exact::check_cope(in, embeddings, options, out);
  exact::check_outputs(p, in, out, kOp);
  const int64_t positions = embeddings.shape[0];
  std::vector<float> rows_of_e(static_cast<size_t>(positions * p.d));
  for (int64_t e = 0; e < positions; ++e) std::copy_n(embeddings.at<float>({e}), p.d, rows_of_e.data() + e * p.d);
  const PackedWeight packed =
      pack_weight(WeightType::kF32, rows_of_e.data(), positions, p.d, ComputeMode::kF32, context);
  const int64_t keys = in.k.shape[2], most = std::min(kBlockQueries, p.queries);
  std::vector<float> queries(static_cast<size_t>(p.heads * most * p.d)), unused(static_cast<size_t>(p.heads * most)),
      products(static_cast<size_t>(p.heads * most * positions));
  const SoftmaxOptions softmax{.causal = true, .scale = p.scale};
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t first = 0; first < p.queries; first += kBlockQueries) {
      const int64_t rows = std::min(kBlockQueries, p.queries - first), last = first + rows - 1 + keys - p.queries,
                    seen = std::clamp<int64_t>(last + 1, 0, keys);
      Qkv block = block_of(in, b, first, rows, seen);
      // With the keys after the block cut off, its last query sits on the last key, unless it stands before all keys.
      std::vector<int32_t> at(static_cast<size_t>(rows));
      for (int64_t r = 0; r < rows; ++r) at[static_cast<size_t>(r)] = static_cast<int32_t>(last - (rows - 1) + r);
      block.q_positions = dense_view(at.data(), DType::kI32, {1, rows});
      Gates gates{rows, seen / kSplitPositions + 1, last, {}};
      gates.sum.assign(static_cast<size_t>(p.heads * rows * gates.splits), 0.0f);

      const SumGates sum_gates{gates};
      const Hook sum = exact::tile_hook(sum_gates);
      softmax_attention(block, softmax, {.lse = dense_view(unused.data(), DType::kF32, {1, p.heads, rows})}, context,
                        {.score = &sum});
      for (int64_t row = 0; row < p.heads * rows; ++row) {
        float later = 0;
        for (int64_t split = gates.splits - 1; split >= 0; --split) {
          float& cell = gates.sum[static_cast<size_t>(row * gates.splits + split)];
          const float own = cell;
          cell = later;
          later += own;
        }
      }
      for (int64_t h = 0; h < p.heads; ++h)
        for (int64_t r = 0; r < rows; ++r) {
          const float* from = in.q.at<float>({b, h, first + r});
          float* to = queries.data() + (h * rows + r) * p.d;
          for (int64_t c = 0; c < p.d; ++c) to[c] = p.scale * from[c];
        }
      product(packed, queries.data(), p.d, products.data(), positions, p.heads * rows, context);
      const AddPositions add_positions{gates, products.data(), positions};
      const Hook add = exact::tile_hook(add_positions);
      auto part = [&](const View& x) {
        View slice = x;
        if (!x.data) return slice;
        slice.data = x.as<float>() + b * x.stride[0] + first * x.stride[2];
        slice.shape[0] = 1;
        slice.shape[2] = rows;
        return slice;
      };
      softmax_attention(block, softmax, {part(out.out), part(out.lse)}, context, {.score = &add});
    }
}

}  // namespace attend
