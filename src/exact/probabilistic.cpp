#include "attend/exact/probabilistic.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attend/tensor/error.h"
#include "exact/plain.h"
#include "exact/problem.h"

namespace attend {

void probabilistic_attention(const Qkv& in, const View& exist, const ProbabilisticOptions& options, const View& out,
                             Context& context) {
  constexpr std::string_view kOp = "probabilistic";
  const exact::Problem p = exact::check(in, {.scale = options.scale}, kOp);
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
  exact::check_outputs(p, in, {out}, kOp);
  exact::check_outputs(p, {.q = in.q, .bias = exist}, {out}, kOp);

  // Of each token: the logarithm, and what hides it as a key.
  std::vector<float> logs(static_cast<size_t>(exist.count())), hidden(logs.size(), 0.0f);
  for (size_t i = 0; i < logs.size(); ++i) {
    const double x = value_at(exist, static_cast<int64_t>(i));
    logs[i] = static_cast<float>(std::log(std::max(x, 1e-20)));
    if (x == 0) hidden[i] = -std::numeric_limits<float>::infinity();
  }
  const float *log = logs.data(), *hide = hidden.data();
  auto soften = [log, hide, tokens](float s, int batch, int, int32_t i, int32_t j) {
    const int64_t row = batch * tokens;
    const float later = log[row + j] - log[row + i];
    return s + hide[row + j] + (j > i ? later : 0.0f);
  };
  const Hook hook = make_hook(soften);
  softmax_attention(in, {.scale = options.scale}, {out}, context, {.score = &hook});
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t i = 0; i < tokens; ++i) {
      if (hide[b * tokens + i] == 0) continue;
      for (int64_t h = 0; h < p.heads; ++h) std::fill_n(out.at<float>({b, h, i}), p.dv, 0.0f);
    }
}

}  // namespace attend
