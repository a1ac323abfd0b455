// What codecs that code keys anew promise of each key's age.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "attend/kv/codec.h"
#include "attend/kv/staged_store.h"
#include "attend/kv/store.h"
#include "attend/simd/isa.h"
#include "attend/simd/key_rows.h"
#include "attend/tensor/context.h"
#include "attend/tensor/registry.h"

namespace attend {
namespace {

constexpr int64_t kGroup = 8, kStride = 16, kTokens = 208, kD = 32;

struct Stair {
  int64_t youngest;  // age
  int bytes_of_key;
};

// Keys on the staircase `spec` after kTokens of them, and the largest error of a key's element in each stair.
std::vector<float> errors_by_stair(const std::string& spec, const std::vector<Stair>& stairs) {
  const auto codec = registry().make<Codec>(parse_specs(spec)[0]);
  const auto contiguous = registry().make<StoreFactory>(parse_specs("contiguous")[0]);
  const auto store = open_store(
      *contiguous, {.layers = 1, .kv_heads = 1, .d = kD, .dv = kD, .codec = codec->type, .context = kTokens}, *codec);
  std::mt19937 random(3);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> k(static_cast<size_t>(kTokens * kD)), read(k.size());
  for (float& x : k) x = uniform(random);
  for (int32_t t = 0; t < kTokens; ++t) {
    const View row = dense_view(k.data() + t * kD, DType::kF32, {1, 1, kD});
    store->append(0, row, row, {&t, 1});
    if ((t + 1) % codec->stride == 0) store->settle(t + 1);
  }
  const KeyView keys = store->keys(0, 0);
  read_keys(keys, 0, kTokens, kD, active_isa(Context(1)), read.data());
  std::vector<float> errors(stairs.size());
  for (const KeyRun& run : keys.runs)
    for (int64_t slot = run.first_slot; slot < run.first_slot + run.count; ++slot) {
      // A group falls when all of it is old enough.
      const int64_t age = kTokens - (slot / kGroup + 1) * kGroup;
      size_t stair = 0;
      while (stair + 1 < stairs.size() && age >= stairs[stair + 1].youngest) ++stair;
      EXPECT_EQ(row_bytes(run.k_type, kD), stairs[stair].bytes_of_key) << "slot " << slot << " of " << spec;
      for (int64_t c = 0; c < kD; ++c) {
        const size_t i = static_cast<size_t>(slot * kD + c);
        errors[stair] = std::max(errors[stair], std::abs(read[i] - k[i]));
      }
    }
  return errors;
}

TEST(Codecs, StairsAreOfTheAgesThatSaqNames) {
  const std::vector<float> errors =
      errors_by_stair(fmt::format("saq:full=16,eight=32,four=64,group={},stride={}", kGroup, kStride),
                      {{0, 64}, {16, 34}, {48, 16}, {112, 8}});
  // Half a step and what f16 scales and offsets lose, on top of what was lost above. Steps are 2 / 254 of the largest
  // number, 1 / 15 and 1 / 3 of a range of at most 2 and two errors.
  const float rounding = std::ldexp(1.0f, -9);
  const float eight = 0.5f / 127 + rounding, four = eight + (1 + eight) / 15 + rounding,
              two = four + (1 + four) / 3 + rounding;
  EXPECT_LT(errors[0], 6e-4f);
  EXPECT_LT(errors[1], eight);
  EXPECT_LT(errors[2], four);
  EXPECT_LT(errors[3], two);
  for (size_t s = 1; s < errors.size(); ++s) EXPECT_GT(errors[s], errors[s - 1]);
}

TEST(Codecs, StairsWithoutKeysAreLeftOut) {
  errors_by_stair(fmt::format("saq:full=40,eight=0,four=0,group={},stride={}", kGroup, kStride), {{0, 64}, {40, 8}});
  errors_by_stair(fmt::format("saq:full=0,eight=24,four=0,group={},stride={}", kGroup, kStride), {{0, 34}, {24, 8}});
}

}  // namespace
}  // namespace attend
