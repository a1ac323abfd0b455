// Limits of attention over a bounded memory with queries that wait, and evictions against the definition.
#include "attend/exact/attendre.h"

#include <fmt/format.h>

#include <cmath>
#include <map>

#include "attend/reference/attendre.h"
#include "attend/tensor/bound.h"
#include "attend/tensor/npy.h"
#include "attend/tensor/registry.h"
#include "exact/score_limits.h"
#include "support/expect_error.h"

namespace attend {
namespace {

using test::expect_error;
using test::SmallCall;

class Attendre : public test::EachIsa {};
ATTEND_EACH_ISA(Attendre);

// Of two ways to the same weighted values, for calls as SmallCall makes them.
double tolerance(SmallCall& call) {
  auto longest = [](const std::vector<float>& x, int64_t width) {
    double most = 0;
    for (size_t row = 0; row + static_cast<size_t>(width) <= x.size(); row += static_cast<size_t>(width)) {
      double square = 0;
      for (size_t c = 0; c < static_cast<size_t>(width); ++c)
        square += static_cast<double>(x[row + c]) * static_cast<double>(x[row + c]);
      most = std::max(most, std::sqrt(square));
    }
    return most;
  };
  return 2 * bound::softmax({.keys = call.tk,
                             .d = call.d,
                             .query = longest(call.q, call.d),
                             .key = longest(call.k, call.d),
                             .value = longest(call.v, 1),
                             .scale = 1 / std::sqrt(static_cast<double>(call.d))});
}

void expect_same(SmallCall& a, SmallCall& b) {
  EXPECT_LE(test::largest_difference(a.out, b.out), tolerance(a));
  EXPECT_LE(test::largest_difference(a.lse, b.lse), 1e-4);
}

TEST_P(Attendre, WithRoomForAllAndNoDelayIsCausalSoftmax) {
  Context c = context();
  for (const auto& [chunk, memory] : {std::pair{16, 0}, {7, 300}, {1, 0}, {400, 1}})
    for (Eviction eviction : {Eviction::kFifo, Eviction::kLra, Eviction::kLfa}) {
      SmallCall call(2, 4, 2, 150, 150, 24, 16), plain = call;
      plain.run({.causal = true}, c);
      attendre_attention(call.in(), {.chunk = chunk, .memory = memory, .eviction = eviction, .causal = true},
                         call.outputs(), c);
      expect_same(call, plain);
    }
}

TEST_P(Attendre, WithADelayOfTheTextIsBidirectionalSoftmax) {
  Context c = context();
  for (int64_t delay : {149, 150, 1000}) {
    SmallCall call(1, 4, 2, 150, 150, 24, 16), plain = call;
    plain.run({}, c);
    attendre_attention(call.in(), {.chunk = 16, .memory = 0, .delay = delay}, call.outputs(), c);
    expect_same(call, plain);
  }
}

// Token by token, a query sees what came up to `delay` tokens after it: as a causal one does from a later position.
TEST_P(Attendre, WaitsForLaterKeys) {
  Context c = context();
  constexpr int64_t kTokens = 90;
  for (int64_t delay : {1, 17}) {
    SmallCall call(1, 2, 1, kTokens, kTokens, 24, 16), plain = call;
    attendre_attention(call.in(), {.chunk = 1, .memory = 0, .delay = delay}, call.outputs(), c);
    std::vector<int32_t> positions;
    for (int64_t i = 0; i < kTokens; ++i) positions.push_back(static_cast<int32_t>(std::min(kTokens - 1, i + delay)));
    Qkv in = plain.in();
    in.q_positions = dense_view(positions.data(), DType::kI32, {1, kTokens});
    softmax_attention(in, {.causal = true}, plain.outputs(), c);
    expect_same(call, plain);
  }
}

TEST_P(Attendre, OldestFirstIsAWindow) {
  Context c = context();
  for (int64_t memory : {1, 9, 64}) {
    SmallCall call(1, 4, 2, 130, 130, 24, 16), plain = call;
    plain.run({.causal = true, .window = memory}, c);
    attendre_attention(call.in(), {.chunk = 1, .memory = memory, .eviction = Eviction::kFifo, .causal = true},
                       call.outputs(), c);
    expect_same(call, plain);
  }
}

TEST_P(Attendre, RetrievingAllChangesNoBit) {
  Context c = context();
  SmallCall call(1, 4, 2, 130, 130, 24, 16), all = call;
  AttendreOptions options = {.chunk = 8, .memory = 40, .delay = 11};
  attendre_attention(all.in(), options, all.outputs(), c);
  options.top = 40;
  attendre_attention(call.in(), options, call.outputs(), c);
  EXPECT_EQ(call.out, all.out);
  options.top = 39;
  attendre_attention(call.in(), options, call.outputs(), c);
  EXPECT_NE(call.out, all.out);
}

// The evictions of every policy against the definition; a wrong one shows in all that follows.
TEST_P(Attendre, EvictsAndRetrievesAsTheDefinitionDoes) {
  Context c = context();
  uint64_t seed = 100;
  for (Eviction eviction : {Eviction::kFifo, Eviction::kLra, Eviction::kLfa})
    for (int64_t chunk : {1, 6, 16})
      for (int64_t memory : {5, 33, 70})
        for (int64_t delay : {0, 10, 400})
          for (int64_t top : {0, 4})
            for (bool causal : {false, true}) {
              SCOPED_TRACE(fmt::format("seed {}, eviction {}, chunk {}, memory {}, delay {}, top {}, causal {}", ++seed,
                                       static_cast<int>(eviction), chunk, memory, delay, top, causal));
              const AttendreOptions options = {
                  .chunk = chunk, .memory = memory, .delay = delay, .top = top, .eviction = eviction, .causal = causal};
              SmallCall call(1, 3, 1, 101, 101, 16, 8, seed);
              attendre_attention(call.in(), options, call.outputs(), c);
              const std::vector<double> wanted = test::reference_out(*make_attendre_reference(options), call);
              double worst = 0;
              for (size_t i = 0; i < wanted.size(); ++i)
                worst = std::max(worst, std::abs(static_cast<double>(call.out[i]) - wanted[i]));
              ASSERT_LE(worst, tolerance(call));
            }
}

// Keys that leave take their gradients with them: sums of up to 202 rows. Texts of conformance fit into the memory.
TEST_P(Attendre, GradientsOfEvictedKeysAreTheDefinitions) {
  for (const char* eviction : {"fifo", "lra", "lfa"})
    for (const char* delay : {"0", "10"})
      for (const char* top : {"0", "4"}) {
        SCOPED_TRACE(fmt::format("eviction {}, delay {}, top {}", eviction, delay, top));
        const Spec spec = registry().complete(Spec{
            "attendre", {{"chunk", "6"}, {"memory", "33"}, {"delay", delay}, {"top", top}, {"eviction", eviction}}});
        const Entry& entry = registry().at("attendre");
        SmallCall call(2, 4, 2, 101, 101, 16, 8, 9);
        const Qkv qkv = call.in();
        SmallCall losses(2, 4, 2, 101, 101, 8, 8, 10);
        const Tensors in = {{"q", qkv.q}, {"k", qkv.k}, {"v", qkv.v}};
        const Tensors loss = {{"out", losses.in().q}}, out = {{"out", call.outputs().out}, {"lse", call.outputs().lse}};
        std::map<std::string, Array> got, want;
        Tensors to, reference_to;
        for (const auto& [name, like] : {std::pair{"q", qkv.q}, {"k", qkv.k}, {"v", qkv.v}}) {
          to[name] = got.emplace(name, make_array(DType::kF32, 4, like.shape)).first->second.view;
          reference_to[name] = want.emplace(name, make_array(DType::kF64, 4, like.shape)).first->second.view;
        }
        Context c = test::context_for(GetParam(), 2);
        const auto op = registry().make<Operator>(spec);
        op->backward(in, out, loss, to, c);
        entry.reference(spec)->backward(in, out, loss, reference_to, c);
        for (const auto& [name, array] : got) {
          const View& wanted = want.at(name).view;
          double most = 0;
          for (int64_t i = 0; i < wanted.count(); ++i) most = std::max(most, std::abs(value_at(wanted, i)));
          for (int64_t i = 0; i < wanted.count(); ++i)
            ASSERT_NEAR(value_at(array.view, i), value_at(wanted, i), bound::gamma(600) * most) << name << " " << i;
        }
      }
}

// Scores closer to each other, and to the mean, than f32 tells apart: decisions are those of the definition.
TEST_P(Attendre, DecidesWhereSinglePrecisionCannot) {
  Context c = context();
  for (Eviction eviction : {Eviction::kLra, Eviction::kLfa})
    for (int64_t top : {0, 9}) {
      const AttendreOptions options = {.chunk = 4, .memory = 24, .top = top, .eviction = eviction};
      SmallCall call(1, 2, 1, 120, 120, 16, 8, 77);
      // All keys are one key but for the last bits of some elements; queries are long.
      for (size_t i = 0; i < call.k.size(); ++i)
        call.k[i] = call.k[i % 16] * (1 + static_cast<float>(i % 7) * 0x1p-23f);
      for (float& x : call.q) x *= 3;
      attendre_attention(call.in(), options, call.outputs(), c);
      const std::vector<double> wanted = test::reference_out(*make_attendre_reference(options), call);
      double worst = 0;
      for (size_t i = 0; i < wanted.size(); ++i)
        worst = std::max(worst, std::abs(static_cast<double>(call.out[i]) - wanted[i]));
      EXPECT_LE(worst, tolerance(call)) << static_cast<int>(eviction) << " " << top;
    }
}

// A key that every query wants outlives those that nobody asks for; the oldest would leave first.
TEST_P(Attendre, KeepsWhatIsAttendedTo) {
  Context c = context();
  for (Eviction eviction : {Eviction::kFifo, Eviction::kLra, Eviction::kLfa}) {
    SmallCall call(1, 1, 1, 200, 200, 16, 1, 5);
    for (int64_t j = 0; j < 200; ++j) {
      call.v[static_cast<size_t>(j)] = j == 3;
      for (int64_t d = 0; d < 16; ++d) {
        call.k[static_cast<size_t>(j * 16 + d)] = d == 0 ? (j == 3 ? 20.0f : -1.0f) : 0.0f;
        call.q[static_cast<size_t>(j * 16 + d)] = d == 0 ? 3.0f : 0.0f;
      }
    }
    attendre_attention(call.in(), {.chunk = 4, .memory = 16, .eviction = eviction, .causal = true}, call.outputs(), c);
    EXPECT_NEAR(call.out[10], 1, 1e-5);
    EXPECT_NEAR(call.out[199], eviction == Eviction::kFifo ? 0 : 1, 1e-5);
  }
}

TEST(AttendreCall, RefusesWhatItDoesNotTake) {
  Context c(1);
  SmallCall call(1, 2, 1, 20, 20, 16, 8);
  using Refused = std::pair<const char*, AttendreOptions>;
  for (const Refused& refused :
       {Refused{"chunk = 0", {.chunk = 0}}, Refused{"memory = -1", {.memory = -1}},
        Refused{"delay = -2", {.delay = -2}}, Refused{"top = -1", {.top = -1}}, Refused{"scale", {.scale = INFINITY}}})
    expect_error(ErrorKind::kArgument, refused.first,
                 [&] { attendre_attention(call.in(), refused.second, call.outputs(), c); });
  SmallCall other(1, 2, 1, 19, 20, 16, 8);
  expect_error(ErrorKind::kArgument, "as many tokens", [&] { attendre_attention(other.in(), {}, other.outputs(), c); });
  for (float x : call.out) EXPECT_TRUE(std::isnan(x)) << "nothing is written";
}

}  // namespace
}  // namespace attend
