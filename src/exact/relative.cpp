#include "attend/exact/relative.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attend/simd/dense.h"
#include "attend/simd/hook_math.h"
#include "attend/simd/isa.h"
#include "attend/simd/product.h"
#include "attend/tensor/error.h"
#include "exact/parameter.h"
#include "exact/problem.h"
#include "exact/relative_check.h"
#include "exact/run_under.h"
#include "exact/tasks.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "relative";
constexpr int64_t kGroupRows = 48;   // queries whose products with the table are kept at once
constexpr int64_t kTableRows = 256;  // of one packed part of the table

// Queries with consecutive positions.
struct Group {
  int64_t batch, kv_head, first, rows, position;
};

// Distances j - i that a group meets, and the memory of its products: one row a query, [low, high] after kTableRows
// floats of slack, because whole parts of the table are multiplied.
struct Distances {
  int64_t low, high;
  int64_t row_floats() const { return high - low + 1 + 2 * kTableRows; }
};

class Relative {
 public:
  Relative(const Qkv& in, const RelativeTables& tables, const RelativeOptions& options, const AttnOut& out,
           const exact::Problem& problem, Context& context)
      : in_(in), tables_(tables), options_(options), out_(out), p_(problem) {
    const int64_t rows = tables.keys.shape[1];
    clip_ = options.past ? rows - 1 : (rows - 1) / 2;
    for (int64_t b = 0; b < p_.batch; ++b)
      for (int64_t h = 0; h < p_.kv_heads; ++h) find_groups(b, h);
    // A table that every head reads once is packed on the way.
    if (p_.queries > kGroupRows || p_.batch > 1 || tables.keys.shape[0] == 1) pack(context);
  }

  void run(Context& context) const {
    // Later queries see more keys under a causal rule: the largest groups first.
    exact::run_tasks(context, static_cast<int64_t>(groups_.size()), [&](int64_t i, Context& own) {
      attend(groups_[groups_.size() - 1 - static_cast<size_t>(i)], own);
    });
  }

 private:
  void find_groups(int64_t b, int64_t kv_head) {
    for (int64_t first = 0; first < p_.queries;) {
      const int64_t position = p_.position(b, first);
      int64_t rows = 1;
      while (rows < kGroupRows && first + rows < p_.queries && p_.position(b, first + rows) == position + rows) ++rows;
      groups_.push_back({b, kv_head, first, rows, position});
      first += rows;
    }
  }

  // Keys that some query of the group sees, and the distances to them.
  int64_t keys_of(const Group& g) const {
    const int64_t length = p_.lengths[static_cast<size_t>(g.batch)];
    return options_.causal ? std::clamp<int64_t>(g.position + g.rows, 0, length) : length;
  }
  Distances reach_of(const Group& g) const { return {-(g.position + g.rows - 1), keys_of(g) - 1 - g.position}; }

  // Packs the parts of the table that some group meets.
  void pack(Context& context) {
    const View& table = tables_.keys;
    const int64_t rows = last_row() + 1, parts = (rows + kTableRows - 1) / kTableRows;
    std::vector<bool> met(static_cast<size_t>(parts), false);
    for (const Group& g : groups_) {
      if (keys_of(g) == 0) continue;
      const Distances reach = reach_of(g);
      for (int64_t part = table_row(reach.low) / kTableRows; part <= table_row(reach.high) / kTableRows; ++part)
        met[static_cast<size_t>(part)] = true;
    }
    parts_.resize(static_cast<size_t>(table.shape[0] * parts));
    exact::run_tasks(context, table.shape[0] * parts, [&](int64_t task, Context& own) {
      if (met[static_cast<size_t>(task % parts)])
        parts_[static_cast<size_t>(task)] = packed(task / parts, task % parts, own);
    });
  }

  PackedWeight packed(int64_t table_head, int64_t part, Context& context) const {
    const View& table = tables_.keys;
    const int64_t first = part * kTableRows, count = std::min(kTableRows, last_row() + 1 - first);
    std::vector<float> copy;
    const float* from = table.at<float>({table_head, first});
    if (table.stride[1] != p_.d) {
      copy.resize(static_cast<size_t>(count * p_.d));
      for (int64_t r = 0; r < count; ++r)
        std::copy_n(table.at<float>({table_head, first + r}), p_.d, copy.data() + r * p_.d);
      from = copy.data();
    }
    return pack_weight(WeightType::kF32, from, count, p_.d, ComputeMode::kF32, context);
  }

  int64_t last_row() const { return options_.past ? clip_ : 2 * clip_; }
  int64_t table_row(int64_t distance) const { return std::clamp(distance + clip_, int64_t{0}, last_row()); }

  void attend(const Group& g, Context& context) const {
    const int64_t keys = keys_of(g);
    const Distances reach = reach_of(g);
    const int64_t first_head = g.kv_head * p_.group;
    std::vector<float> queries = shifted(g, tables_.content, 1);
    std::vector<float> products;
    if (keys > 0) {
      products.resize(static_cast<size_t>(p_.group * g.rows * reach.row_floats()));
      const std::vector<float> scaled = shifted(g, tables_.position, p_.scale);
      for (int64_t h = 0; h < p_.group; ++h)
        multiply(g, first_head + h, scaled.data() + h * g.rows * p_.d, reach,
                 products.data() + h * g.rows * reach.row_floats(), context);
    }
    std::vector<int32_t> positions(static_cast<size_t>(g.rows));
    for (int64_t r = 0; r < g.rows; ++r) positions[static_cast<size_t>(r)] = static_cast<int32_t>(g.position + r);
    Qkv part{.q = dense_view(queries.data(), DType::kF32, {1, p_.group, g.rows, p_.d}),
             .k = slice(in_.k, g, keys),
             .v = slice(in_.v, g, keys),
             .q_positions = dense_view(positions.data(), DType::kI32, {1, g.rows})};
    if (keys > 0) {
      // Row r at key j holds the product for distance j - (position + r): one element less to the left each row.
      part.bias = dense_view(products.data() + kTableRows + g.rows - 1, DType::kF32, {1, p_.group, g.rows, keys});
      part.bias.stride = {0, g.rows * reach.row_floats(), reach.row_floats() - 1, 1};
    }
    std::vector<float> own_lse(static_cast<size_t>(p_.group * g.rows));
    AttnOut to{rows_of(out_.out, g), dense_view(own_lse.data(), DType::kF32, {1, p_.group, g.rows})};
    softmax_attention(part, {.causal = options_.causal, .scale = p_.scale}, to, context);
    if (out_.lse.data)
      for (int64_t h = 0; h < p_.group; ++h)
        for (int64_t r = 0; r < g.rows; ++r)
          *out_.lse.at<float>({g.batch, first_head + h, g.first + r}) = own_lse[static_cast<size_t>(h * g.rows + r)];
    if (tables_.values.data && keys > 0) add_values(g, part, to, context);
  }

  // factor * (q + shift[h]) of the group, [heads, rows, D].
  std::vector<float> shifted(const Group& g, const View& shift, float factor) const {
    std::vector<float> x(static_cast<size_t>(p_.group * g.rows * p_.d));
    for (int64_t h = 0; h < p_.group; ++h) {
      const int64_t head = g.kv_head * p_.group + h;
      for (int64_t r = 0; r < g.rows; ++r) {
        const float* from = in_.q.at<float>({g.batch, head, g.first + r});
        float* to = x.data() + (h * g.rows + r) * p_.d;
        for (int64_t c = 0; c < p_.d; ++c)
          to[c] = factor * (shift.data ? from[c] + *shift.at<float>({head, c}) : from[c]);
      }
    }
    return x;
  }

  // Products of the rows `x` with the table for all distances in reach; beyond the table those of its ends.
  void multiply(const Group& g, int64_t head, const float* x, const Distances& reach, float* products,
                Context& context) const {
    const int64_t rows = last_row() + 1, parts = (rows + kTableRows - 1) / kTableRows, stride = reach.row_floats();
    const int64_t first = table_row(reach.low), last = table_row(reach.high);
    const int64_t table_head = tables_.keys.shape[0] == 1 ? 0 : head;
    PackedWeight own;
    auto part_of = [&](int64_t part) -> const PackedWeight& {
      if (!parts_.empty()) return parts_[static_cast<size_t>(table_head * parts + part)];
      return own = packed(table_head, part, context);
    };
    auto bias = [&](int64_t row) {
      return tables_.bias.data ? p_.scale * *tables_.bias.at<float>({tables_.bias.shape[0] == 1 ? 0 : head, row}) : 0;
    };
    const int64_t begin = kTableRows, end = kTableRows + reach.high - reach.low + 1;
    if (reach.high < -clip_ || reach.low > last_row() - clip_) {  // one end of the table stands for all
      std::vector<float> some(static_cast<size_t>(g.rows * kTableRows));
      product(part_of(first / kTableRows), x, p_.d, some.data(), kTableRows, g.rows, context);
      for (int64_t r = 0; r < g.rows; ++r)
        std::fill(products + r * stride + begin, products + r * stride + end,
                  some[static_cast<size_t>(r * kTableRows + first % kTableRows)] + bias(first));
      return;
    }
    auto place = [&](int64_t row) { return kTableRows + row - clip_ - reach.low; };  // of a table row in the products
    for (int64_t part = first / kTableRows; part <= last / kTableRows; ++part)
      product(part_of(part), x, p_.d, products + place(part * kTableRows), stride, g.rows, context);
    for (int64_t r = 0; r < g.rows; ++r) {
      float* row = products + r * stride;
      for (int64_t t = first; tables_.bias.data && t <= last; ++t) row[place(t)] += bias(t);
      const float left = row[place(first)], right = row[place(last)];
      if (place(first) > begin) std::fill(row + begin, row + place(first), left);
      if (place(last) + 1 < end) std::fill(row + place(last) + 1, row + end, right);
    }
  }

  static View slice(const View& x, const Group& g, int64_t keys) {
    View part = x;
    part.data = x.as<char>() + (g.batch * x.stride[0] + g.kv_head * x.stride[1]) * size_of(x.type);
    part.shape[0] = part.shape[1] = 1;
    part.shape[2] = keys;
    return part;
  }

  View rows_of(const View& x, const Group& g) const {
    View part = x;
    part.data = x.as<float>() + g.batch * x.stride[0] + g.kv_head * p_.group * x.stride[1] + g.first * x.stride[2];
    part.shape[0] = 1;
    part.shape[1] = p_.group;
    part.shape[2] = g.rows;
    return part;
  }

  // out += sum over distances of their weight * values[h, r]: single keys within the table, and all keys at its ends.
  void add_values(const Group& g, const Qkv& part, const AttnOut& to, Context& context) const {
    const int64_t keys = part.k.shape[2];
    std::vector<float> left(static_cast<size_t>(p_.group * g.rows), -std::numeric_limits<float>::infinity());
    if (clip_ > 0) {
      // The share of keys at distance -K or less: causal attention as if the query stood K earlier, of which only lse
      // is wanted.
      std::vector<int32_t> positions(static_cast<size_t>(g.rows));
      for (int64_t r = 0; r < g.rows; ++r)
        positions[static_cast<size_t>(r)] = static_cast<int32_t>(g.position + r - clip_);
      Qkv far = part;
      far.q_positions = dense_view(positions.data(), DType::kI32, {1, g.rows});
      softmax_attention(far, {.causal = true, .scale = p_.scale},
                        {.lse = dense_view(left.data(), DType::kF32, {1, p_.group, g.rows})}, context);
    }
    const Near near = near_of(g, keys);
    std::vector<float> weights(static_cast<size_t>(g.rows * near.table_rows));
    const DenseKernels& kernels = dense_kernels(active_isa(context));
    for (int64_t h = 0; h < p_.group; ++h) {
      const int64_t head = g.kv_head * p_.group + h;
      const View& table = tables_.values;
      auto value = [&](int64_t row) { return table.at<float>({table.shape[0] == 1 ? 0 : head, row}); };
      weigh(g, near, part, to.lse, h, weights.data(), context);
      for (int64_t r = 0; r < g.rows; ++r) {
        const float lse = *to.lse.at<float>({0, h, r});
        if (lse == -std::numeric_limits<float>::infinity()) continue;
        float* out = to.out.at<float>({0, h, r});
        auto add = [&](const float* weight, int64_t row, int64_t rows) {
          kernels.add_rows(weight, 0, 1, rows, value(row), table.stride[1], p_.dv, out, 0);
        };
        const float beyond = clip_ == 0 ? 1 : std::exp(left[static_cast<size_t>(h * g.rows + r)] - lse);
        add(&beyond, 0, 1);
        if (clip_ == 0) continue;
        const float* own = weights.data() + r * near.table_rows;
        float rest = 1 - beyond;
        for (int64_t t = 0; t < near.table_rows; ++t) rest -= own[t];
        add(own, near.table_row, near.table_rows);
        // What is left of 1 lies at distance K or more, if a visible key does.
        const int64_t position = g.position + r, visible = options_.causal ? std::min(keys, position + 1) : keys;
        if (visible > position + clip_ && rest > 0) add(&rest, last_row(), 1);
      }
    }
  }

  // What queries of a group meet at distances below K: keys [begin, end) and rows of the table.
  struct Near {
    int64_t begin, end, table_row, table_rows;
  };
  int64_t near_begin(int64_t position) const { return std::max<int64_t>(0, position - clip_ + 1); }
  int64_t near_end(int64_t position, int64_t keys) const {
    return std::min(keys, options_.causal ? position + 1 : position + clip_);
  }
  Near near_of(const Group& g, int64_t keys) const {
    const int64_t last = g.position + g.rows - 1;
    const int64_t row = table_row(near_begin(last) - last),
                  end = table_row(near_end(g.position, keys) - 1 - g.position) + 1;
    return {near_begin(g.position), near_end(last, keys), row, clip_ == 0 ? 0 : std::max<int64_t>(0, end - row)};
  }

  // weights[j] = exp(scale * s + bias - lse) of a row, over n keys.
  struct Exponentials {
    const float *s, *bias;
    float scale, lse;
    int64_t n;
    float* weights;

    [[gnu::always_inline]] inline void run() const {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) weights[j] = hook_exp(scale * s[j] + bias[j] - lse);
    }
  };

  // Weights by query and row of the table; 0 where a query has no key.
  void weigh(const Group& g, const Near& near, const Qkv& part, const View& lse, int64_t h, float* weights,
             Context& context) const {
    const Isa isa = active_isa(context);
    const DenseKernels& kernels = dense_kernels(isa);
    std::fill_n(weights, g.rows * near.table_rows, 0.0f);
    std::vector<float> panel(static_cast<size_t>(kPanelKeys * p_.d)), s(static_cast<size_t>(kPanelKeys * g.rows));
    for (int64_t first = near.begin; first < near.end; first += kPanelKeys) {
      const int64_t count = std::min<int64_t>(kPanelKeys, near.end - first);
      kernels.pack(part.k.type, part.k.as<char>() + first * part.k.stride[2] * size_of(part.k.type), part.k.stride[2],
                   count, p_.d, panel.data());
      kernels.dots(part.q.at<float>({0, h}), p_.d, g.rows, p_.d, panel.data(), s.data(), kPanelKeys);
      for (int64_t r = 0; r < g.rows; ++r) {
        const int64_t position = g.position + r, begin = std::max(first, near_begin(position)),
                      end = std::min(first + count, near_end(position, part.k.shape[2]));
        const float of_row = *lse.at<float>({0, h, r});
        if (begin >= end || of_row == -std::numeric_limits<float>::infinity()) continue;
        exact::run_under(isa,
                         Exponentials{s.data() + r * kPanelKeys + begin - first, part.bias.at<float>({0, h, r, begin}),
                                      p_.scale, of_row, end - begin,
                                      weights + r * near.table_rows + table_row(begin - position) - near.table_row});
      }
    }
  }

  const Qkv& in_;
  const RelativeTables& tables_;
  const RelativeOptions& options_;
  const AttnOut& out_;
  const exact::Problem& p_;
  int64_t clip_ = 0;
  std::vector<Group> groups_;
  std::vector<PackedWeight> parts_;  // [heads or 1, parts of the table]
};

}  // namespace

exact::Problem exact::check_relative(const Qkv& in, const RelativeTables& tables, const RelativeOptions& options,
                                     const AttnOut& out) {
  require_arrays(kOp, in);
  for (const auto& [name, view] :
       {std::pair{"bias", &in.bias}, {"sink_logits", &in.sink_logits}, {"documents", &in.documents}})
    require_absent(kOp, name, *view);
  const Problem problem = check(in, {.causal = options.causal, .scale = options.scale}, kOp);
  if (options.past && !options.causal) throw Error(ErrorKind::kArgument, kOp, "past", "true", "needs causal");
  const int64_t rows = tables.keys.rank == 3 ? tables.keys.shape[1] : 0;
  check_parameter(kOp, {"relative_keys", tables.keys, {problem.heads, rows, problem.d}, "[Hq, P, D]", true, 0}, out);
  check_parameter(kOp, {"relative_values", tables.values, {problem.heads, rows, problem.dv}, "[Hq, P, Dv]", false, 0},
                  out);
  check_parameter(kOp, {"content_bias", tables.content, {problem.heads, problem.d}, "[Hq, D]"}, out);
  check_parameter(kOp, {"position_bias", tables.position, {problem.heads, problem.d}, "[Hq, D]"}, out);
  check_parameter(kOp, {"distance_bias", tables.bias, {problem.heads, rows}, "[Hq, P]", false, 0}, out);
  if (rows < 1 || (!options.past && rows % 2 == 0))
    throw Error(ErrorKind::kArgument, kOp, "relative_keys", to_string(tables.keys),
                options.past ? "must have a row or more" : "must have an odd number of rows");
  return problem;
}

void relative_attention(const Qkv& in, const RelativeTables& tables, const RelativeOptions& options, const AttnOut& out,
                        Context& context) {
  const exact::Problem problem = exact::check_relative(in, tables, options, out);
  exact::check_outputs(problem, in, out, kOp);
  Relative(in, tables, options, out, problem, context).run(context);
}

}  // namespace attend
