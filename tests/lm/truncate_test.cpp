// Tokens that were taken back leave no trace: any sequence of reading, decoding and taking back gives, bit for bit,
// what a session gives that read what is left.
#include <fmt/format.h>

#include <random>

#include "attend/lm/ensemble.h"
#include "attend/tensor/error.h"
#include "support/expect_error.h"
#include "support/small_session.h"

namespace attend {
namespace {

using test::all_logits;
using test::expect_error;
using test::load;
using test::open;
using test::SmallModel;
using test::some_ids;

struct Call {
  bool prompt;
  std::vector<int32_t> ids;
};

void replay(Session& session, const std::vector<Call>& calls, int64_t chunk, Context& context) {
  for (const Call& call : calls)
    if (call.prompt)
      session.prefill(call.ids, chunk, Outputs::kNone, nullptr, context);
    else
      session.decode(call.ids[0], context);
}

// What follows, and what is held.
std::vector<float> go_on(Session& session, Context& context) {
  std::vector<float> all;
  auto add = [&](std::span<const float> logits) { all.insert(all.end(), logits.begin(), logits.end()); };
  for (int32_t id : {7, 30, 2}) add(session.decode(id, context));
  add(all_logits(session, some_ids(11), 5, context));
  for (int32_t id : {119, 4}) add(session.decode(id, context));
  for (int layer = 0; layer < 2; ++layer)
    for (int head = 0; head < 2; ++head)
      for (int32_t position : session.kept_positions(layer, head)) all.push_back(static_cast<float>(position));
  return all;
}

int64_t cut_calls(std::vector<Call>& calls, int64_t position) {
  int64_t at = 0;
  size_t n = 0;
  for (; n < calls.size() && at < position; ++n) {
    const int64_t left = position - at, size = static_cast<int64_t>(calls[n].ids.size());
    calls[n].ids.resize(static_cast<size_t>(std::min(left, size)));
    at += std::min(left, size);
  }
  calls.resize(n);
  return at;
}

// How many truncations went through.
int walk(const std::shared_ptr<const LanguageModel>& model, const std::string& policy, unsigned seed) {
  constexpr const char* kStores[] = {"contiguous", "paged:page=4", "virtual", "offloaded"};
  SCOPED_TRACE(fmt::format("{}, seed {}", policy, seed));
  std::mt19937 random(seed);
  auto below = [&](uint32_t n) { return static_cast<int64_t>(random() % n); };
  const auto named = [&] { return fmt::format("{} + {}", policy, kStores[below(4)]); };
  Context context(1 + static_cast<int>(below(3)));
  Session session = open(model, named());
  std::vector<Call> calls;
  int went = 0;
  auto some = [&](int64_t n) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<int32_t>(below(269)));
    return ids;
  };
  for (int step = 0; step < 40 && session.position() < 200; ++step) {
    const int64_t what = below(8);
    if (what == 0 || calls.empty()) {
      calls.push_back({true, some(1 + below(40))});
      session.prefill(calls.back().ids, 1 + below(20), Outputs::kNone, nullptr, context);
    } else if (what < 5) {
      calls.push_back({false, some(1)});
      session.decode(calls.back().ids[0], context);
    } else {
      const int64_t position = session.position() - (below(4) ? below(6) : below(60));
      if (position < 0) continue;
      try {
        session.truncate(position);
        EXPECT_EQ(cut_calls(calls, position), position);
        ++went;
      } catch (const Error& e) {
        EXPECT_EQ(e.kind(), ErrorKind::kUnsupported) << e.what();
      }
    }
  }
  Context other(2);
  Session fresh = open(model, named());
  replay(fresh, calls, 9, other);
  EXPECT_EQ(session.position(), fresh.position());
  EXPECT_EQ(go_on(session, context), go_on(fresh, other));
  return went;
}

TEST(Truncate, LeavesNoTraceUnderAnyPolicy) {
  SmallModel deep;
  deep.layers = 5;
  const auto model = load(deep, ComputeMode::kDefault);
  std::vector<std::string> policies = {"softmax",
                                       "softmax + bf16",
                                       "softmax:window=20,sinks=3",
                                       "streaming:window=20,sinks=3",
                                       "dca:context=40,chunk=32",
                                       "adakv + snapkv:budget=20,observe=6",
                                       "pyramid:beta=3 + h2o:budget=20,stride=32",
                                       "softmax:window=50 + knorm:budget=24,stride=24",
                                       "quest:budget=16,page=4 + knorm:budget=30,stride=16",
                                       "recycled:budget=10 + snapkv:budget=20"};
  test::add_budgeted_policies({0, 16}, policies);
  for (const std::string& policy : policies) {
    int went = 0;
    for (unsigned seed = 1; seed <= 6; ++seed) went += walk(model, policy, seed);
    EXPECT_GT(went, 0) << policy;
  }
}

TEST(Truncate, LeavesNoTraceWhileKeysAge) {
  SmallModel small;
  small.head = 32;
  const auto model = load(small, ComputeMode::kDefault);
  int went = 0;
  for (const char* policy : {"kivi:bits=2,residual=4,group=8,stride=16",
                             "h2o:budget=30,stride=16 + kivi:bits=4,residual=0,group=8,stride=8"})
    for (unsigned seed = 1; seed <= 6; ++seed) went += walk(model, policy, seed);
  EXPECT_GT(went, 0);
  Context context(1);
  Session session = open(model, "kivi:residual=4,group=8,stride=16");
  session.prefill(some_ids(20), 64, Outputs::kNone, nullptr, context);
  session.truncate(16);
  expect_error(ErrorKind::kUnsupported, "coded anew: at most back to 16", [&] { session.truncate(15); });
}

TEST(Truncate, RefusesWhatCannotBeUndone) {
  const auto model = load(SmallModel{});
  Context context(1);
  Session plain = open(model);
  const std::vector<float> all = all_logits(plain, some_ids(30), 8, context);
  expect_error(ErrorKind::kArgument, "position = 31, must be 0..30", [&] { plain.truncate(31); });
  expect_error(ErrorKind::kArgument, "position = -1", [&] { plain.truncate(-1); });
  plain.truncate(30);
  EXPECT_EQ(plain.last_logits().size(), 269u) << "nothing went";
  plain.truncate(0);
  EXPECT_EQ(plain.position(), 0);
  EXPECT_TRUE(plain.last_logits().empty());
  EXPECT_EQ(all_logits(plain, some_ids(30), 7, context), all);

  Session h2o = open(model, "h2o:budget=12,stride=16");
  h2o.prefill(some_ids(20), 64, Outputs::kNone, nullptr, context);
  expect_error(ErrorKind::kUnsupported, "keys were dropped: at most back to 20", [&] { h2o.truncate(19); });
  h2o.decode(3, context);
  expect_error(ErrorKind::kUnsupported, "were added up: at most back to 21", [&] { h2o.truncate(20); });
  EXPECT_EQ(h2o.position(), 21);

  Session recycled = open(model, "recycled:budget=4,stride=8");
  recycled.prefill(some_ids(20), 64, Outputs::kNone, nullptr, context);
  for (int i = 0; i < 4; ++i) recycled.decode(i, context);
  recycled.truncate(21);
  expect_error(ErrorKind::kUnsupported, "chosen anew", [&] { recycled.truncate(20); });
}

TEST(Truncate, EnsemblesTakeBackInAllReadings) {
  const auto model = load(SmallModel{});
  Context context(2);
  auto ensemble = [&] {
    Ensemble e(model, model_readings("rope:base=500 | softmax | dca", model->compute(), registry()), registry());
    e.prefill(some_ids(40), 16, Outputs::kNone, nullptr, context);
    return e;
  };
  Ensemble plain = ensemble(), cut = ensemble();
  for (int i = 0; i < 5; ++i) cut.decode(i, context);
  cut.truncate(40);
  EXPECT_TRUE(cut.last_logits().empty());
  const std::span<const float> a = plain.decode(9, context), b = cut.decode(9, context);
  EXPECT_EQ(std::vector(a.begin(), a.end()), std::vector(b.begin(), b.end()));
}

}  // namespace
}  // namespace attend
