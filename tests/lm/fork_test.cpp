// A fork goes on with the bits of a session of its own, whatever the other one does, under every policy and store.
#include <fmt/format.h>

#include "attend/lm/ensemble.h"
#include "attend/lm/speculation.h"
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

std::vector<float> decode_some(Session& session, int32_t first, Context& context) {
  std::vector<float> all;
  for (int32_t i = 0; i < 25; ++i) {
    const auto row = session.decode((first + i * 31) % 269, context);
    all.insert(all.end(), row.begin(), row.end());
  }
  return all;
}

TEST(Fork, GoesOnAloneUnderEveryPolicyAndStore) {
  SmallModel deep;
  deep.layers = 5;
  const auto model = load(deep, ComputeMode::kDefault);
  std::vector<std::string> policies = {"softmax",
                                       "softmax:window=20,sinks=3",
                                       "streaming:window=20,sinks=3",
                                       "adakv + snapkv:budget=20,observe=6",
                                       "pyramid:beta=3 + h2o:budget=20,stride=16",
                                       "quest:budget=16,page=4 + knorm:budget=30,stride=16"};
  test::add_budgeted_policies({16}, policies);
  Context context(2);
  auto prepare = [&](Session& session) {
    session.prefill(some_ids(37), 16, Outputs::kNone, nullptr, context);
    for (int32_t id : {5, 6, 7}) session.decode(id, context);
  };
  for (const std::string& policy : policies) {
    std::vector<std::vector<float>> wanted;
    for (int32_t first : {3, 100, 200}) {
      Session alone = open(model, policy);
      prepare(alone);
      wanted.push_back(decode_some(alone, first, context));
    }
    for (const char* store : {"contiguous", "paged:page=4", "virtual", "offloaded"}) {
      SCOPED_TRACE(fmt::format("{}, {}", policy, store));
      Session session = open(model, fmt::format("{} + {}", policy, store));
      prepare(session);
      Session first = session.fork(), second = session.fork();
      EXPECT_EQ(first.position(), 40);
      EXPECT_TRUE(std::ranges::equal(first.last_logits(), session.last_logits()));
      EXPECT_EQ(decode_some(session, 3, context), wanted[0]);
      EXPECT_EQ(decode_some(first, 100, context), wanted[1]);
      session.clear();
      EXPECT_EQ(decode_some(second, 200, context), wanted[2]);
    }
  }
}

TEST(Fork, SharesPagesUntilTheyAreWritten) {
  const auto model = load(SmallModel{});
  Context context(1);
  Session session = open(model, "paged:page=16");
  session.prefill(some_ids(330), 64, Outputs::kNone, nullptr, context);
  const int64_t alone = session.bytes();
  std::vector<Session> forks;
  for (int i = 0; i < 8; ++i) forks.push_back(session.fork());
  int64_t total = session.bytes();
  for (Session& fork : forks) fork.decode(3, context);
  for (const Session& fork : forks) total += fork.bytes();
  EXPECT_LT(total, alone * 9 / 2) << "nine sessions, each with last pages of its own in whole pages of the system";
}

TEST(Fork, TrialsAreSettledFirstAndReadingsForkTogether) {
  const auto model = load(SmallModel{});
  Context context(1);
  Session session = open(model);
  session.prefill(some_ids(20), 8, Outputs::kLast, nullptr, context);
  session.verify(some_ids(3), context);
  expect_error(ErrorKind::kArgument, "3 on trial", [&] { session.fork(); });
  Ensemble ensemble(model, model_readings("rope | dca", model->compute(), registry()), registry());
  ensemble.prefill(some_ids(20), 8, Outputs::kLast, nullptr, context);
  Ensemble fork = ensemble.fork();
  EXPECT_TRUE(std::ranges::equal(fork.last_logits(), ensemble.last_logits()));
  ensemble.decode(1, context);
  ensemble.decode(2, context);
  fork.decode(1, context);
  EXPECT_TRUE(std::ranges::equal(fork.decode(2, context), ensemble.last_logits()));
}

// A drafter goes from one fork's text to another's.
TEST(Fork, OneDrafterServesSeveralTexts) {
  const auto model = load(SmallModel{});
  Context context(1);
  const std::vector<int32_t> prompt = some_ids(30);
  for (const char* cheap : {"softmax", "softmax:window=12,sinks=2", "h2o:budget=16,stride=8"}) {
    const auto drafter =
        make_session_drafter(*model, model, model_policy(cheap, model->compute(), registry()), registry());
    Session session = open(model);
    session.prefill(prompt, 8, Outputs::kLast, nullptr, context);
    for (int32_t first : {3, 100, 50}) {
      Session wanted = session.fork(), own = session.fork();
      Speculation speculation(own, *drafter, 4);
      speculation.read(prompt);
      for (int32_t i = 0; i < 25; ++i) {
        const int32_t id = (first + i * 31) % 269;
        EXPECT_TRUE(std::ranges::equal(speculation.decode(id, context), wanted.decode(id, context))) << cheap;
      }
    }
  }
}

}  // namespace
}  // namespace attend
