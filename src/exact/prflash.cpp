#include "attend/exact/prflash.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "attend/exact/dropout.h"
#include "attend/tensor/error.h"
#include "exact/parameter.h"
#include "exact/problem.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "prflash";
constexpr double kDraws = 0x1p32;

void check_options(const View& probability, const PrFlashOptions& o, const AttnOut& out) {
  auto refuse = [](std::string_view name, const auto& got, std::string_view rule) {
    throw Error(ErrorKind::kArgument, kOp, name, fmt::format("{}", got), rule);
  };
  if (o.block < 1) refuse("block", o.block, "must be at least 1");
  if (!(o.power >= 0 && o.power <= 1e6)) refuse("power", o.power, "must be in 0..1e6");
  if (o.seed < 0) refuse("seed", o.seed, "must be at least 0");
  if (!probability.data) return;
  if (probability.rank != 1 || probability.shape[0] < 1)
    refuse("probability", to_string(probability), "must be [N], N at least 1");
  exact::check_parameter(kOp, {"probability", probability, {probability.shape[0]}, "[N]"}, out);
  for (int64_t n = 0; n < probability.shape[0]; ++n)
    if (const float p = *probability.at<float>({n}); !(p >= 0 && p <= 1))
      refuse(fmt::format("probability[{}]", n), p, "must be in 0..1");
}

// Which blocks take part, for distances below `blocks`.
class Draws {
 public:
  Draws(int64_t blocks, const View& probability, const PrFlashOptions& o)
      : draw_{.seed = static_cast<uint64_t>(o.seed)} {
    try {
      below_.resize(static_cast<size_t>(std::max<int64_t>(1, blocks)));
    } catch (const std::exception&) {
      throw Error(ErrorKind::kMemory, kOp, "blocks", fmt::format("{}", blocks), "don't fit memory");
    }
    for (size_t n = 0; n < below_.size(); ++n) {
      const int64_t at = static_cast<int64_t>(n);
      const double p = probability.data ? *probability.at<float>({std::min(at, probability.shape[0] - 1)})
                                        : std::pow(1 + static_cast<double>(n), -o.power);
      below_[n] = n == 0 ? uint64_t{1} << 32 : static_cast<uint64_t>(std::ceil(kDraws * p));
    }
  }

  bool takes_part(int64_t query_block, int64_t key_block) const {
    if (key_block > query_block) return false;
    const uint32_t drawn = draw_.draw(0, 0, static_cast<int32_t>(query_block), static_cast<int32_t>(key_block));
    return drawn < below_[static_cast<size_t>(query_block - key_block)];
  }

 private:
  Dropout draw_;
  std::vector<uint64_t> below_;  // of the draws that take part, by distance
};

SoftmaxOptions softmax_of(const PrFlashOptions& options) {
  return {.causal = true, .scale = options.scale};
}

BlockMask mask_of(const exact::Problem& p, const View& probability, const PrFlashOptions& options, Context& context) {
  MaskSizes sizes;
  int64_t first = kNoEnd;
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t i = 0; i < p.queries; ++i) {
      sizes.queries = std::max(sizes.queries, p.position(b, i) + 1);
      first = std::min(first, std::max<int64_t>(0, p.position(b, i)));
    }
  for (const exact::Keys& keys : p.keys) sizes.keys = std::max(sizes.keys, keys.end_position());
  const int64_t side = options.block;
  const Draws draws((sizes.queries + side - 1) / side, probability, options);
  if (side % BlockMask::kBlock == 0) {
    const int64_t ratio = side / BlockMask::kBlock;
    return BlockMask(
        sizes,
        [&](int64_t, int64_t, int64_t query_block, int64_t key_block) {
          return draws.takes_part(query_block / ratio, key_block / ratio);
        },
        first / BlockMask::kBlock);
  }
  auto seen = [&](int, int, int32_t i, int32_t j) {
    return i >= first && j <= i && draws.takes_part(i / side, j / side);
  };
  return block_mask(seen, sizes, context);
}

}  // namespace

void prflash_attention(const Qkv& in, const View& probability, const PrFlashOptions& options, const AttnOut& out,
                       Context& context) {
  check_options(probability, options, out);
  const exact::Problem p = exact::check(in, softmax_of(options), kOp);
  exact::check_outputs(p, in, out, kOp);
  const BlockMask mask = mask_of(p, probability, options, context);
  softmax_attention(in, p.options, out, context, {.mask = &mask});
}

void prflash_attention_backward(const Qkv& in, const View& probability, const PrFlashOptions& options,
                                const AttnOut& forward, const AttnOutGrad& grad_out, const AttnGrad& grad_in,
                                Context& context) {
  exact::require_arrays(kOp, in);
  for (const View& grad : {grad_in.q, grad_in.k, grad_in.v}) check_options(probability, options, {grad});
  const exact::Problem p = exact::check(in, softmax_of(options), kOp);
  exact::check_gradients(p, in, forward, grad_out, grad_in, kOp);
  const BlockMask mask = mask_of(p, probability, options, context);
  softmax_attention_backward(in, p.options, forward, grad_out, grad_in, context, {.mask = &mask});
}

std::vector<bool> prflash_blocks(int64_t blocks, const View& probability, const PrFlashOptions& options) {
  check_options(probability, options, {});
  if (blocks < 0) throw Error(ErrorKind::kArgument, kOp, "blocks", fmt::format("{}", blocks), "must be at least 0");
  const Draws draws(blocks, probability, options);
  std::vector<bool> all;
  for (int64_t i = 0; i < blocks; ++i)
    for (int64_t j = 0; j < blocks; ++j) all.push_back(draws.takes_part(i, j));
  return all;
}

}  // namespace attend
