#include "attend/exact/probabilistic.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attend/tensor/error.h"
#include "exact/lane_sum.h"
#include "exact/plain.h"
#include "exact/row_backward.h"
#include "exact/score_gradients.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "probabilistic";
constexpr double kLeast = 1e-20;

exact::Problem check(const Qkv& in, const View& exist, const ProbabilisticOptions& options) {
  exact::Problem p = exact::check(in, {.scale = options.scale}, kOp);
  exact::require_plain(in, kOp);
  const int64_t tokens = p.queries;
  if (tokens != in.k.shape[2])
    throw Error(ErrorKind::kArgument, kOp, "q", to_string(in.q),
                fmt::format("must have as many tokens as k, {}", in.k.shape[2]));
  if (!exist.data && exist.count() != 0) throw Error(ErrorKind::kArgument, kOp, "exist", "null", "must be given");
  if (exist.type != DType::kF32)
    throw Error(ErrorKind::kArgument, kOp, "exist type", name_of(exist.type), "must be f32");
  if (exist.rank != 2 || exist.shape[0] != p.batch || exist.shape[1] != tokens)
    throw Error(ErrorKind::kArgument, kOp, "exist", to_string(exist), "must be [B, T]");
  for (int64_t i = 0; i < exist.count(); ++i)
    if (const double x = value_at(exist, i); !(x >= 0 && x <= 1))
      throw Error(ErrorKind::kArgument, kOp, fmt::format("exist[{}]", i), fmt::format("{}", x), "must be in [0, 1]");
  return p;
}

// Of each token: its logarithm, and what hides it.
struct Existence {
  std::vector<float> log, hide;

  explicit Existence(const View& exist) {
    for (int64_t i = 0; i < exist.count(); ++i) {
      const double x = value_at(exist, i);
      log.push_back(static_cast<float>(std::log(std::max(x, kLeast))));
      hide.push_back(x == 0 ? -std::numeric_limits<float>::infinity() : 0.0f);
    }
  }
};

// What existence adds to the scores of query i, of which s holds n.
struct Soften {
  float* s;
  const float *log, *hide;  // of the batch entry
  int64_t i, n;

  [[gnu::always_inline]] inline void run() const {
    float* const score = s;
    const float *const x = log, *const away = hide, own = x[i], gone = hide[i];
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) score[j] += away[j] + gone;
#pragma omp simd
    for (int64_t j = i + 1; j < n; ++j) score[j] += x[j] - own;
  }
};

// The gradients g of query i's scores join those of the logarithms.
struct GatherLogs {
  const float* g;
  float* to;
  int64_t i, n;

  [[gnu::always_inline]] inline void run() const {
    const float* const from = g + i + 1;
    float* const later = to + i + 1;
    to[i] -= exact::lane_sum(
        n - i - 1, [=](int64_t j) __attribute__((always_inline)) {
          later[j] += from[j];
          return from[j];
        });
  }
};

}  // namespace

void probabilistic_attention(const Qkv& in, const View& exist, const ProbabilisticOptions& options, const View& out,
                             Context& context) {
  const exact::Problem p = check(in, exist, options);
  exact::check_outputs(p, in, {out}, kOp);
  exact::check_outputs(p, {.q = in.q, .bias = exist}, {out}, kOp);
  const Existence existence(exist);
  const float *log = existence.log.data(), *hide = existence.hide.data();
  const int64_t tokens = p.queries;
  auto soften = [log, hide, tokens](float s, int batch, int, int32_t i, int32_t j) {
    const int64_t row = batch * tokens;
    const float later = log[row + j] - log[row + i];
    return s + hide[row + j] + hide[row + i] + (j > i ? later : 0.0f);
  };
  const Hook hook = make_hook(soften);
  softmax_attention(in, {.scale = options.scale}, {out}, context, {.score = &hook});
}

void probabilistic_attention_backward(const Qkv& in, const View& exist, const ProbabilisticOptions& options,
                                      const View& grad_out, const ProbabilisticGrad& grad_in, Context& context) {
  const exact::Problem p = check(in, exist, options);
  exact::check_row_gradients(kOp, p, in, {grad_out}, {grad_in.q, grad_in.k, grad_in.v},
                             {{"exist", grad_in.exist, exist}});
  const Existence existence(exist);
  const Isa isa = active_isa(context);
  const DenseKernels& kernels = dense_kernels(isa);
  const int64_t tokens = p.queries;
  std::vector<float> of_logs(static_cast<size_t>(grad_in.exist.data ? p.batch * p.heads * tokens : 0), 0.0f);
  exact::backward_rows(
      p, {grad_out, {}, grad_in.q, grad_in.k, grad_in.v}, tokens, false, context, [&](const exact::RowBlock& x) {
        const float *log = existence.log.data() + x.b * tokens, *hide = existence.hide.data() + x.b * tokens;
        for (int64_t r = 0; r < x.count; ++r) {
          float *s = x.s + r * x.stride, *g = x.g + r * x.stride;
          const int64_t i = x.first + r;
          exact::run_under(isa, Soften{s, log, hide, i, tokens});
          exact::run_under(isa, exact::SoftmaxSlopes{kernels, s, g, tokens, 0.0f});
          if (grad_in.exist.data)
            exact::run_under(isa, GatherLogs{g, of_logs.data() + (x.b * p.heads + x.h) * tokens, i, tokens});
        }
      });
  for (int64_t b = 0; grad_in.exist.data && b < p.batch; ++b)
    for (int64_t t = 0; t < tokens; ++t) {
      const float x = *exist.at<float>({b, t});
      float sum = 0;
      for (int64_t h = 0; h < p.heads; ++h) sum += of_logs[static_cast<size_t>((b * p.heads + h) * tokens + t)];
      *grad_in.exist.at<float>({b, t}) = static_cast<double>(x) > kLeast ? sum / x : 0.0f;
    }
}

}  // namespace attend
