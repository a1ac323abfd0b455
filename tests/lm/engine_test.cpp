// Sessions over small models: limits, retention, cancellation, and a forward in double precision that shares no code.
#include "attend/lm/engine.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "attend/simd/isa.h"
#include "support/expect_error.h"
#include "support/naive_model.h"
#include "support/small_model.h"
#include "support/small_session.h"

namespace attend {
namespace {

using test::all_logits;
using test::expect_error;
using test::load;
using test::NaiveModel;
using test::open;
using test::Row;
using test::SmallModel;
using test::some_ids;

// Forms of one stretch: positions divided by 4.
TEST(Session, RotaryScalingsThatMeanTheSameGiveTheSameBits) {
  const std::vector<int32_t> ids = some_ids(40);
  Context context(2);
  auto logits = [&](const SmallModel& small, int64_t limit = 0) {
    Session session = open(load(small), "softmax", limit);
    return all_logits(session, ids, 17, context);
  };
  const std::vector<float> plain = logits({});
  SmallModel linear, divided, longrope, yarn;
  linear.texts["llama.rope.scaling.type"] = "linear";
  linear.more_reals["llama.rope.scaling.factor"] = 4;
  divided.vectors["rope_freqs.weight"] = std::vector<float>(4, 4.0f);
  longrope.texts["llama.rope.scaling.type"] = "longrope";
  longrope.more_integers["llama.rope.scaling.original_context_length"] = 100;
  longrope.vectors["rope_factors_short.weight"] = std::vector<float>(4, 1.0f);
  longrope.vectors["rope_factors_long.weight"] = std::vector<float>(4, 4.0f);
  yarn.texts["llama.rope.scaling.type"] = "yarn";
  yarn.more_reals = {{"llama.rope.scaling.factor", 4.0f}, {"llama.rope.scaling.yarn_ext_factor", 0.0f}};
  const std::vector<float> stretched = logits(linear);
  EXPECT_NE(stretched, plain);
  EXPECT_EQ(stretched, logits(divided));
  for (const char* key : {"llama.rope.scaling.factor", "llama.rope.scale_linear"}) {
    SmallModel untyped;
    untyped.more_reals[key] = 4;
    EXPECT_EQ(stretched, logits(untyped)) << key;
  }
  EXPECT_EQ(stretched, logits(longrope)) << "a context of 400 is beyond the trained one";
  EXPECT_EQ(plain, logits(longrope, 100)) << "a context of 100 is not";
  EXPECT_EQ(stretched, logits(yarn));
  yarn.more_reals["llama.rope.scaling.yarn_ext_factor"] = 1;
  EXPECT_NE(stretched, logits(yarn));
}

// Mechanisms that turn queries and keys themselves, with the model's own rotary options unless the policy says others.
TEST(Session, MechanismsTurnQueriesAndKeysThemselves) {
  const std::vector<int32_t> ids = some_ids(150);
  Context context(2);
  auto logits = [&](const SmallModel& small, const char* policy, int64_t limit = 0, int64_t chunk = 64) {
    Session session = open(load(small), policy, limit);
    return all_logits(session, ids, chunk, context);
  };
  SmallModel small, other, yarn;
  const std::vector<float> plain = logits(small, "softmax");
  EXPECT_EQ(plain, logits(small, "rope"));
  EXPECT_EQ(plain, logits(small, "dca:chunk=200")) << "the text fits into one chunk";
  EXPECT_EQ(logits(small, "softmax + f16"), logits(small, "rope + f16"));
  other.reals["rope.freq_base"] = 500;
  const std::vector<float> based = logits(small, "rope:base=500");
  EXPECT_EQ(based, logits(other, "softmax"));
  EXPECT_NE(based, plain);
  yarn.texts["llama.rope.scaling.type"] = "yarn";
  yarn.more_reals = {{"llama.rope.scaling.factor", 4.0f}};
  EXPECT_EQ(logits(yarn, "softmax"), logits(yarn, "rope"));
  EXPECT_EQ(logits(yarn, "softmax"), logits(yarn, "dca:chunk=200"));
  SmallModel divided, longrope;
  divided.vectors["rope_freqs.weight"] = {1, 1.5f, 4, 9};
  const std::vector<float> by_divisors = logits(divided, "softmax");
  EXPECT_NE(by_divisors, plain);
  EXPECT_EQ(by_divisors, logits(divided, "rope"));
  EXPECT_EQ(by_divisors, logits(divided, "dca:chunk=200"));
  longrope.texts["llama.rope.scaling.type"] = "longrope";
  longrope.more_integers["llama.rope.scaling.original_context_length"] = 100;
  longrope.vectors["rope_factors_short.weight"] = {1, 1, 1, 1};
  longrope.vectors["rope_factors_long.weight"] = {4, 4, 4, 4};
  expect_error(ErrorKind::kUnsupported, "text's length", [&] { logits(longrope, "rope"); });

  // Chunks of 32 tokens: other logits, the same ones however the prompt was cut, and texts beyond the trained context.
  const std::vector<float> chunked = logits(small, "dca:context=40,chunk=32");
  EXPECT_NE(chunked, plain);
  EXPECT_EQ(chunked, logits(small, "dca:context=40,chunk=32", 0, 7));
  small.integers["context_length"] = 40;
  expect_error(ErrorKind::kArgument, "40 tokens", [&] { logits(small, "softmax", 150); });
  EXPECT_EQ(chunked, logits(small, "dca:chunk=32", 150));
}

// Positions inside the cache: the model's attention until the first key leaves, then a text that never ends.
TEST(Session, StreamsBeyondTheTrainedContext) {
  const std::vector<int32_t> ids = some_ids(390);
  Context context(2);
  SmallModel small;
  auto logits = [&](const char* policy, int64_t rows, int64_t limit = 0, int64_t chunk = 64) {
    Session session = open(load(small), policy, limit);
    return all_logits(session, std::span(ids).first(static_cast<size_t>(rows)), chunk, context);
  };
  const std::vector<float> plain = logits("softmax", 40), within = logits("streaming:window=37,sinks=3", 40);
  float largest = 0, worst = 0;
  for (size_t i = 0; i < plain.size(); ++i) {
    largest = std::max(largest, std::abs(plain[i]));
    worst = std::max(worst, std::abs(plain[i] - within[i]));
  }
  EXPECT_LE(worst, 1e-4f * largest);
  EXPECT_NE(logits("rope:window=37,sinks=3", 200), logits("streaming:window=37,sinks=3", 200));
  EXPECT_EQ(logits("rope:window=37,sinks=3", 200), logits("softmax:window=37,sinks=3", 200));
  small.integers["context_length"] = 64;
  const std::vector<float> streamed = logits("streaming:window=37,sinks=3", 390, 390);
  for (int64_t chunk : {1, 23}) EXPECT_EQ(streamed, logits("streaming:window=37,sinks=3", 390, 390, chunk));
  Session session = open(load(small), "streaming:window=37,sinks=3", 390);
  session.prefill(ids, 64, Outputs::kNone, nullptr, context);
  EXPECT_EQ(session.bytes_read_next(), 4 * 40 * 16 * 4);
  EXPECT_LE(session.bytes(), 4 * 256 * (16 * 4 + 4)) << "what no query sees any more is freed";
}

// Local layers never see far: they keep the model's attention unless the mechanism's window is narrower.
TEST(Session, MechanismsWithPositionsOfTheirOwnLeaveLocalLayersAlone) {
  SmallModel small;
  small.architecture = "gemma3";
  small.layers = 6;
  const std::vector<int32_t> ids = some_ids(150);
  Context context(2);
  auto logits = [&](const char* policy, int64_t limit = 0) {
    Session session = open(load(small), policy, limit);
    return all_logits(session, ids, 64, context);
  };
  const std::vector<float> plain = logits("softmax");
  EXPECT_EQ(plain, logits("rope"));
  EXPECT_EQ(plain, logits("dca:chunk=200"));
  EXPECT_EQ(logits("softmax:window=4"), logits("rope:window=4"));
  const std::vector<float> chunked = logits("dca:context=40,chunk=32");
  EXPECT_NE(plain, chunked);
  expect_error(ErrorKind::kSpec, "local layers", [&] { logits("cog"); });
  small.integers["context_length"] = 40;
  EXPECT_EQ(chunked, logits("dca:chunk=32", 150));
  logits("streaming:window=36,sinks=4", 150);
  expect_error(ErrorKind::kArgument, "40 tokens", [&] { logits("softmax", 150); });
}

TEST(Session, RefusesRotaryDivisorsThatAreNone) {
  SmallModel model;
  model.vectors["rope_freqs.weight"] = {1, 0, 1, 1};
  expect_error(ErrorKind::kFile, "rope_freqs.weight", [&] { load(model); });
}

TEST(Engine, MatchesItsEquations) {
  for (const char* architecture : {"llama", "gemma3"}) {
    SCOPED_TRACE(architecture);
    SmallModel small;
    small.architecture = architecture;
    small.layers = 7;  // the sixth of gemma3 is global
    const std::string bytes = small.bytes();
    const std::vector<int32_t> ids = some_ids(19);
    const std::vector<Row> wanted = NaiveModel(small, bytes).logits(ids);
    const auto model = load(small);
    for (const IsaInfo& info : isa_list()) {
      if (!info.usable) continue;
      SCOPED_TRACE(name_of(info.isa));
      Session session = open(model);
      Context context(2);
      context.isa = info.isa;
      const std::vector<float> got = all_logits(session, ids, 8, context);
      double worst = 0, largest = 0;
      for (size_t i = 0; i < wanted.size(); ++i)
        for (size_t c = 0; c < wanted[i].size(); ++c) {
          worst = std::max(worst, std::fabs(got[i * 269 + c] - wanted[i][c]));
          largest = std::max(largest, std::fabs(wanted[i][c]));
        }
      EXPECT_LE(worst, 1e-4 * largest);
      EXPECT_GT(largest, 0.1);
    }
  }
}

TEST(Engine, DropsWhatAWindowHidesWithoutChangingABit) {
  const auto model = load(SmallModel{});
  const std::vector<int32_t> ids = some_ids(390);
  Context context(2);
  Session whole = open(model, "softmax:window=20,sinks=3");
  const std::vector<float> wanted = all_logits(whole, ids, 390, context);
  for (int64_t chunk : {1, 7, 100}) {
    Session cut = open(model, "softmax:window=20,sinks=3");
    const std::vector<float> got = all_logits(cut, ids, chunk, context);
    EXPECT_EQ(std::memcmp(got.data(), wanted.data(), wanted.size() * sizeof(float)), 0) << chunk;
    // 2 layers, 2 heads, (8 + 8) f32 and a position, in steps of 128 tokens.
    EXPECT_LE(cut.bytes(), 4 * 384 * (16 * 4 + 4)) << chunk;
    // The next query sees 3 sinks and 20 keys, one of them its own.
    EXPECT_EQ(cut.bytes_read_next(), 4 * 23 * 16 * 4) << chunk;
    // A step's keys are there before others are dropped.
    EXPECT_GE(cut.peak_bytes(), 4 * (22 + chunk) * (16 * 4 + 4)) << chunk;
    std::vector<int32_t> kept = {0, 1, 2};
    for (int32_t i = 390 - 19; i < 390; ++i) kept.push_back(i);
    for (int layer = 0; layer < 2; ++layer)
      for (int head = 0; head < 2; ++head) EXPECT_EQ(cut.kept_positions(layer, head), kept);
    expect_error(ErrorKind::kArgument, "layer = 2, the model has 2", [&] { cut.kept_positions(2, 0); });
    expect_error(ErrorKind::kArgument, "head = -1, the model has 2", [&] { cut.kept_positions(0, -1); });
    cut.clear();
    EXPECT_EQ(cut.peak_bytes(), 0);
    EXPECT_TRUE(cut.kept_positions(0, 0).empty());
  }
  Session all = open(model);
  all_logits(all, ids, 64, context);
  EXPECT_EQ(all.bytes_read_next(), 4 * 391 * 16 * 4);
  EXPECT_EQ(all.peak_bytes(), all.bytes());
  EXPECT_EQ(all.kept_positions(1, 1).size(), 390u);
  EXPECT_EQ(all.kept_positions(1, 1).back(), 389);
}

TEST(Engine, LocalLayersKeepTheirOwnWindow) {
  SmallModel small;
  small.architecture = "gemma3";
  small.layers = 6;
  const auto model = load(small);
  Context context(1);
  Session session = open(model);
  session.prefill(some_ids(300), 64, Outputs::kNone, nullptr, context);
  EXPECT_EQ(session.bytes_read_next(), (5 * 6 + 301) * 2 * 16 * 4);
  Session narrower = open(model, "softmax:window=4,sinks=1");
  narrower.prefill(some_ids(300), 64, Outputs::kNone, nullptr, context);
  EXPECT_EQ(narrower.bytes_read_next(), 6 * 5 * 2 * 16 * 4);
  Session wider = open(model, "softmax:window=50,sinks=1");
  wider.prefill(some_ids(300), 64, Outputs::kNone, nullptr, context);
  EXPECT_EQ(wider.bytes_read_next(), (5 * 6 + 51) * 2 * 16 * 4);
}

TEST(Engine, RefusesBeforeAnythingChanges) {
  const auto model = load(SmallModel{});
  Context context(1);
  Session session = open(model, "softmax", 10);
  expect_error(ErrorKind::kArgument, "at least one token",
               [&] { session.prefill({}, 4, Outputs::kNone, {}, context); });
  expect_error(ErrorKind::kArgument, "the context holds 10",
               [&] { session.prefill(some_ids(11), 4, Outputs::kNone, {}, context); });
  expect_error(ErrorKind::kArgument, "token id = 269", [&] {
    session.prefill(std::vector<int32_t>{1, 269}, 4, Outputs::kNone, {}, context);
  });
  expect_error(ErrorKind::kArgument, "token id = -1", [&] { session.decode(-1, context); });
  expect_error(ErrorKind::kArgument, "chunk", [&] { session.prefill(some_ids(2), 0, Outputs::kNone, {}, context); });
  EXPECT_EQ(session.position(), 0);
  session.prefill(some_ids(10), 4, Outputs::kNone, {}, context);
  expect_error(ErrorKind::kArgument, "the context holds 10", [&] { session.decode(1, context); });
  expect_error(ErrorKind::kArgument, "400 tokens", [&] { open(model, "softmax", 401); });
  expect_error(ErrorKind::kSpec, "sofmax", [&] { open(model, "sofmax"); });
  expect_error(ErrorKind::kSpec, "prefix", [&] { open(model, "softmax:prefix=9"); });
}

TEST(Engine, StopsWhenAsked) {
  const auto model = load(SmallModel{});
  std::stop_source source;
  Context context(1);
  context.stop = source.get_token();
  Session session = open(model);
  source.request_stop();
  expect_error(ErrorKind::kCancelled, "", [&] { session.prefill(some_ids(30), 8, Outputs::kAll, {}, context); });
  Context other(1);
  session.clear();
  EXPECT_EQ(session.position(), 0);
  session.prefill(some_ids(30), 8, Outputs::kAll, {}, other);
  EXPECT_EQ(session.position(), 30);
}

TEST(Engine, KeepsTheLastRow) {
  const auto model = load(SmallModel{});
  Context context(1);
  Session session = open(model);
  const std::vector<float> all = all_logits(session, some_ids(37), 20, context);
  ASSERT_EQ(session.last_logits().size(), 269u);
  EXPECT_EQ(std::memcmp(session.last_logits().data(), all.data() + 36 * 269, 269 * sizeof(float)), 0);
  session.prefill(some_ids(3), 20, Outputs::kNone, {}, context);
  EXPECT_TRUE(session.last_logits().empty());
}

TEST(Engine, MemoryFollowsUse) {
  SmallModel small;
  small.context = 1 << 30;
  const auto model = load(small);
  Context context(1);
  Session session = open(model);
  EXPECT_EQ(session.bytes(), 0);
  session.prefill(some_ids(5), 8, Outputs::kNone, {}, context);
  EXPECT_LE(session.bytes(), 4 * 128 * 16 * 4);
}

TEST(Engine, PoliciesName) {
  EXPECT_EQ(model_policy("softmax", ComputeMode::kF32, registry())[Kind::kCodec]->name, "f32");
  EXPECT_EQ(model_policy("softmax + bf16", ComputeMode::kF32, registry())[Kind::kCodec]->name, "bf16");
  EXPECT_EQ(model_policy("softmax", ComputeMode::kDefault, registry())[Kind::kCodec]->name, "f16");
  auto exact = [](std::string_view text, ComputeMode compute) {
    return to_string(exact_policy(model_policy(text, compute, registry()), compute, registry()), registry());
  };
  auto named = [](std::string_view text) { return to_string(registry().policy(text), registry()); };
  EXPECT_EQ(exact("softmax:window=4 + bf16", ComputeMode::kDefault), named("softmax + bf16"));
  EXPECT_EQ(exact("softmax:window=4 + q8_0", ComputeMode::kDefault), named("softmax + f16"));
  EXPECT_EQ(exact("h2o + kivi", ComputeMode::kDefault), named("softmax + f16"));
  EXPECT_EQ(exact("q4_0", ComputeMode::kF32), named("softmax + f32"));
}

}  // namespace
}  // namespace attend
