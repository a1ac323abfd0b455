#include "attend/exact/urpe.h"

#include <algorithm>
#include <vector>

#include "attend/tensor/error.h"
#include "exact/distance_sums.h"
#include "exact/distance_table.h"
#include "exact/parameter.h"
#include "exact/row_backward.h"
#include "exact/score_gradients.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "urpe";

// Of one thread: numbers by key, and by distance.
struct Numbers {
  std::vector<float> factor, products, row;
};

std::vector<float> by_head(const View& table, int64_t heads) {
  std::vector<float> value;
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t r = 0; r < table.shape[1]; ++r) value.push_back(*table.at<float>({table.shape[0] == 1 ? 0 : h, r}));
  return value;
}

SoftmaxOptions check(const Qkv& in, const View& multiplier, const View& bias, const UrpeOptions& options,
                     const AttnOut& out) {
  const int64_t heads = in.q.rank == 4 ? std::max<int64_t>(0, in.q.shape[1]) : 0;
  const int64_t width = multiplier.rank == 2 ? multiplier.shape[1] : 0;
  exact::check_parameter(kOp, {"multiplier", multiplier, {heads, width}, "[Hq, P]", true, 0}, out);
  exact::check_parameter(kOp, {"distance_bias", bias, {heads, width}, "[Hq, P]", false, 0}, out);
  if (width % 2 == 0 || width > 1 << 24)
    throw Error(ErrorKind::kArgument, kOp, "multiplier", to_string(multiplier),
                "must have an odd number of columns, at most 2^24");
  return {.causal = options.causal, .scale = options.scale};
}

}  // namespace

void urpe_attention(const Qkv& in, const View& multiplier, const View& bias, const UrpeOptions& options,
                    const AttnOut& out, Context& context) {
  const SoftmaxOptions softmax = check(in, multiplier, bias, options, out);
  const int64_t heads = in.q.rank == 4 ? std::max<int64_t>(0, in.q.shape[1]) : 0, width = multiplier.shape[1];
  const int32_t clip = static_cast<int32_t>(width / 2);
  const std::vector<float> factors = by_head(multiplier, heads);
  const exact::DistanceHook<exact::MultiplyNumber> multiply{factors, clip, {}};
  const Hook weight = exact::tile_hook(multiply);
  if (!bias.data) return softmax_attention(in, softmax, out, context, {.weight = &weight});
  const std::vector<float> biases = by_head(bias, heads);
  const exact::DistanceHook<exact::AddNumber> add{biases, clip, {}};
  const Hook score = exact::tile_hook(add);
  softmax_attention(in, softmax, out, context, {.score = &score, .weight = &weight});
}

void urpe_attention_backward(const Qkv& in, const View& multiplier, const View& bias, const UrpeOptions& options,
                             const AttnOutGrad& grad_out, const UrpeGrad& grad_in, Context& context) {
  const SoftmaxOptions softmax = check(in, multiplier, bias, options, {});
  exact::require_arrays(kOp, in);
  const exact::Problem p = exact::check(in, softmax, kOp);
  exact::check_row_gradients(kOp, p, in, grad_out, {grad_in.q, grad_in.k, grad_in.v},
                             {{"multiplier", grad_in.multiplier, multiplier}, {"distance_bias", grad_in.bias, bias}});
  const int64_t heads = p.heads, keys = in.k.shape[2], width = multiplier.shape[1];
  const exact::DistanceRows table{width, width / 2};
  const std::vector<float> factors = by_head(multiplier, heads),
                           biases = bias.data ? by_head(bias, heads) : std::vector<float>{};
  std::vector<double> d_factor(static_cast<size_t>(heads * width), 0), d_bias = d_factor;
  const bool sums = grad_in.multiplier.data || grad_in.bias.data;
  std::vector<Numbers> scratch(static_cast<size_t>(context.threads));
  for (Numbers& w : scratch) {
    w.factor.resize(static_cast<size_t>(keys)), w.products.resize(static_cast<size_t>(keys));
    w.row.resize(static_cast<size_t>(width));
  }
  const Isa isa = active_isa(context);
  const DenseKernels& kernels = dense_kernels(isa);
  exact::backward_rows(
      p, {grad_out.out, grad_out.lse, grad_in.q, grad_in.k, grad_in.v}, keys, sums, context,
      [&](const exact::RowBlock& x) {
        Numbers& w = scratch[static_cast<size_t>(x.worker)];
        const int64_t from = x.h * width;
        for (int64_t r = 0; r < x.count; ++r) {
          const int64_t n = x.ends[r], position = p.position(x.b, x.first + r);
          if (n == 0) continue;
          float *s = x.s + r * x.stride, *g = x.g + r * x.stride, *factor = w.factor.data(), *row = w.row.data();
          if (bias.data)
            exact::run_under(isa, exact::SpreadDistances<true>{table, position, n, 0, biases.data() + from, s});
          exact::run_under(isa, exact::SpreadDistances<false>{table, position, n, 0, factors.data() + from, factor});
          if (grad_in.multiplier.data) std::copy_n(g, n, w.products.data());
          const float d_lse = grad_out.lse.data ? *grad_out.lse.at<float>({x.b, x.h, x.first + r}) : 0;
          exact::run_under(isa, exact::SoftmaxSlopes{kernels, s, g, n, d_lse, factor});
          auto sum = [&](const float* numbers, std::vector<double>& to) {
            const exact::TableReach reach = exact::reach_of(table, position, n);
            std::fill_n(row, reach.count(), 0.0f);
            exact::run_under(isa, exact::SumDistances{table, position, n, reach.first, numbers, row});
            for (int64_t c = 0; c < reach.count(); ++c)
              to[static_cast<size_t>(from + reach.first + c)] += static_cast<double>(row[c]);
          };
          if (grad_in.bias.data) sum(g, d_bias);
          for (int64_t j = 0; grad_in.multiplier.data && j < n; ++j)
            w.products[static_cast<size_t>(j)] = s[j] == 0 ? 0 : s[j] * w.products[static_cast<size_t>(j)];
          if (grad_in.multiplier.data) sum(w.products.data(), d_factor);
          for (int64_t j = 0; j < n; ++j) s[j] *= factor[j];
        }
      });
  exact::store_by_head(grad_in.multiplier, d_factor, heads);
  exact::store_by_head(grad_in.bias, d_bias, heads);
}

}  // namespace attend
