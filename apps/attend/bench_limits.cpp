#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "attend/simd/isa.h"
#include "attend/simd/limits.h"
#include "attend/tensor/parallel.h"
#include "bench.h"

namespace attend::app {
namespace {

// Work is handed out in this many parts a thread, by the same pool that kernels use.
constexpr int64_t kParts = 16;

// Seconds that f(part, worker) takes over all parts.
template <class F>
double timed(int threads, const F& f) {
  parallel_for(threads, threads * kParts, [](int64_t, int) {});  // helpers wake up before the clock starts
  const auto begin = std::chrono::steady_clock::now();
  parallel_for(threads, threads * kParts, f);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

volatile double g_sink;  // keeps the loops' results alive

}  // namespace

int64_t last_cache_bytes() {
  const long l3 = sysconf(_SC_LEVEL3_CACHE_SIZE), l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return std::max<int64_t>({l3, l2, 8 << 20});
}

Limits::Limits(Context& context) : context_(context), memory_((4 * last_cache_bytes() + 4095) / 4096 * 4096) {
  std::memset(memory_.data(), 1, static_cast<size_t>(memory_.bytes()));
}

double Limits::multiply_adds() {
  const LimitKernels& k = limit_kernels(active_isa(context_));
  constexpr int64_t kRounds = 25'000;
  const double seconds = timed(context_.threads, [&](int64_t, int) { g_sink = k.multiply_add(kRounds); });
  return static_cast<double>(k.flops_per_round * kRounds * kParts * context_.threads) / seconds;
}

double Limits::bf16_multiply_adds() {
  const LimitKernels& k = limit_kernels(active_isa(context_));
  if (!k.bf16_multiply_add) return multiply_adds();
  constexpr int64_t kRounds = 25'000;
  const double seconds = timed(context_.threads, [&](int64_t, int) { g_sink = k.bf16_multiply_add(kRounds); });
  return static_cast<double>(k.bf16_flops_per_round * kRounds * kParts * context_.threads) / seconds;
}

double Limits::exponentials() {
  const LimitKernels& k = limit_kernels(active_isa(context_));
  constexpr int kCount = 4096, kRepeats = 128;
  std::vector<Buffer> x;
  for (int t = 0; t < context_.threads; ++t) {
    x.emplace_back(kCount * 4);
    std::fill_n(x.back().as<float>(), kCount, -1.0f);
  }
  const double seconds = timed(context_.threads, [&](int64_t, int worker) {
    for (int i = 0; i < kRepeats; ++i) k.exponential(x[static_cast<size_t>(worker)].as<float>(), kCount);
  });
  return static_cast<double>(kCount * kRepeats * kParts * context_.threads) / seconds;
}

double Limits::reads() {
  const LimitKernels& k = limit_kernels(active_isa(context_));
  // A quarter of the memory a time: what was read before is out of the caches when its turn comes again.
  const int64_t part = memory_.bytes() / 4, share = part / (kParts * context_.threads) / 1024 * 1024;
  const std::byte* base = memory_.data() + next_ * part;
  next_ = (next_ + 1) % 4;
  const double seconds =
      timed(context_.threads, [&](int64_t i, int) { g_sink = static_cast<double>(k.read(base + i * share, share)); });
  return static_cast<double>(share * kParts * context_.threads) / seconds;
}

double Limits::products(WeightType type) {
  const ProductLimit limit = product_limit(active_isa(context_), type);
  constexpr int64_t kWork = 1'000'000'000 / kParts;  // multiply-adds of a part
  const int64_t rounds = kWork / limit.multiply_adds;
  const double seconds = timed(context_.threads, [&](int64_t, int) { g_sink = limit.run(rounds); });
  return 2.0 * static_cast<double>(rounds * limit.multiply_adds * kParts * context_.threads) / seconds;
}

Quartiles quartiles(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  auto at = [&](double q) {
    const double x = q * static_cast<double>(values.size() - 1);
    const size_t i = static_cast<size_t>(x);
    const double part = x - static_cast<double>(i);
    return values[i] * (1 - part) + values[std::min(i + 1, values.size() - 1)] * part;
  };
  return {at(0.25), at(0.5), at(0.75)};
}

int copies_beyond_caches(double bytes) {
  return 2 + static_cast<int>(2 * static_cast<double>(last_cache_bytes()) / bytes);
}

void measure(BenchResult& result, const std::function<void()>& call, const std::function<double()>& limit,
             Context& context, const std::function<void()>& plain) {
  using Clock = std::chrono::steady_clock;
  auto seconds_of = [](const std::function<void()>& f, int calls) {
    const auto begin = Clock::now();
    for (int i = 0; i < calls; ++i) f();
    return std::chrono::duration<double>(Clock::now() - begin).count() / calls;
  };
  const double once = seconds_of(call, 1);
  const int calls = std::max(1, static_cast<int>(0.05 / once));
  // At least 9 rounds, in alternation: both see the same machine.
  const int rounds = once > 1 ? 9 : 15;
  std::vector<double> seconds, shares, ratios;
  for (int round = 0; round < rounds; ++round) {
    context.throw_if_stopped();
    const double least = limit(), taken = seconds_of(call, calls);
    seconds.push_back(taken);
    shares.push_back(least / taken);
    if (plain) ratios.push_back(taken / seconds_of(plain, calls));
  }
  result.seconds = quartiles(seconds);
  result.share = quartiles(shares);
  if (plain) result.ratio = quartiles(ratios);
  if (result.share.median > 1.05)
    result.failure =
        fmt::format("a share of {:.2f} of the limit can't be: the benchmark is wrong here", result.share.median);
}

}  // namespace attend::app
