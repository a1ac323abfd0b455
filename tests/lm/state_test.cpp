// A session that was saved and restored goes on with the same bits, in another kind of store too.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <random>

#include "attend/kv/head_gates.h"
#include "attend/kv/store_file.h"
#include "attend/lm/engine.h"
#include "attend/tensor/error.h"
#include "lm/state.h"
#include "support/expect_error.h"
#include "support/small_session.h"

namespace attend {
namespace {

std::vector<float> decode_some(Session& session, Context& context) {
  std::vector<float> all;
  for (int32_t id : {7, 30, 2, 119}) {
    const std::span<const float> logits = session.decode(id, context);
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

TEST(SessionState, GoesOnWithTheSameBits) {
  const test::SmallModel::File file = test::SmallModel{}.file();
  Context context(1);
  const auto model = LanguageModel::load(file.path, ComputeMode::kDefault, context);
  auto session = [&](const std::string& policy, int64_t limit = 0) {
    return Session(model, model_policy(policy, model->compute(), registry()), registry(), limit);
  };
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 150; ++i) ids.push_back(i * 37 % 256);
  const std::filesystem::path path = file.folder / "a.state";
  for (const std::string policy : {"softmax", "softmax:window=20,sinks=2", "softmax + bf16"}) {
    SCOPED_TRACE(policy);
    Session first = session(policy);
    first.prefill(ids, 64, Outputs::kNone, nullptr, context);
    first.save(path);
    const std::vector<float> wanted = decode_some(first, context);
    for (const char* store : {"contiguous", "paged", "virtual", "offloaded"}) {
      Session second = session(policy + " + " + store);
      second.restore(path);
      EXPECT_EQ(second.position(), 150);
      const std::vector<float> got = decode_some(second, context);
      EXPECT_EQ(std::memcmp(got.data(), wanted.data(), wanted.size() * sizeof(float)), 0) << store;
      test::expect_error(ErrorKind::kArgument, "must be new", [&] { second.restore(path); });
    }
    Session tight = session(policy, 149);
    test::expect_error(ErrorKind::kArgument, "holds 149", [&] { tight.restore(path); });
    EXPECT_EQ(tight.position(), 0);
    EXPECT_EQ(tight.bytes(), 0);
  }
}

// Whatever a policy keeps beside keys: it is saved in the middle of a prompt's answer and goes on as if it never was.
TEST(SessionState, GoesOnUnderEveryPolicy) {
  test::SmallModel small;
  small.layers = 5;
  small.head = 32;
  const test::SmallModel::File file = small.file();
  Context context(2);
  const auto model = LanguageModel::load(file.path, ComputeMode::kDefault, context);
  const std::filesystem::path path = file.folder / "a.state", gates = file.folder / "heads.json";
  std::ofstream(gates) << to_json(
      {.model = model->graph().name, .layers = 5, .kv_heads = 2, .gates = std::vector<double>(10, 0.5), .made_by = ""});
  std::vector<std::string> policies = {fmt::format("duo:plan=\"{}\",sinks=2,recent=6,stride=8", gates.native()),
                                       "adakv + snapkv:budget=20,observe=6",
                                       "pyramid:beta=3 + h2o:budget=20,stride=32",
                                       "softmax:window=40 + tova:budget=24,stride=16",
                                       "quest:budget=16,page=4 + knorm:budget=30,stride=16",
                                       "recycled:budget=10,similarity=0.5 + snapkv:budget=20"};
  policies.push_back(policies[0] + " + h2o:budget=12,stride=16");
  for (const char* kept : {"", "h2o:budget=20,stride=16 + ", "quest:budget=16,page=4 + ", "recycled:budget=10 + "})
    policies.push_back(fmt::format("{}kivi:residual=4,group=8,stride=8", kept));
  test::add_budgeted_policies({0, 16}, policies);
  auto open = [&](const std::string& policy) {
    return Session(model, model_policy(policy, model->compute(), registry()), registry());
  };
  const std::vector<int32_t> ids = test::some_ids(90);
  for (const std::string& policy : policies)
    for (size_t saved : {41u, 53u}) {
      SCOPED_TRACE(fmt::format("{} at {}", policy, saved));
      // A prompt, decoded tokens, a prompt again, more tokens.
      auto read = [&](Session& session, size_t from, size_t to, std::vector<float>* all) {
        for (size_t i = from; i < to;) {
          if (i == 60) {
            session.prefill(std::span(ids).subspan(60, 9), 4, Outputs::kLast, nullptr, context);
            i = 69;
          } else {
            session.decode(ids[i++], context);
          }
          if (all) all->insert(all->end(), session.last_logits().begin(), session.last_logits().end());
        }
      };
      std::vector<float> wanted, got;
      Session whole = open(policy), before = open(policy), after = open(policy + " + paged:page=4");
      for (Session* session : {&whole, &before})
        session->prefill(std::span(ids).first(40), 16, Outputs::kNone, nullptr, context);
      read(whole, 40, saved, nullptr);
      read(whole, saved, 90, &wanted);
      read(before, 40, saved, nullptr);
      before.save(path);
      after.restore(path);
      read(after, saved, 90, &got);
      EXPECT_EQ(got, wanted);
      for (int layer = 0; layer < 5; ++layer) EXPECT_EQ(after.kept_positions(layer, 1), whole.kept_positions(layer, 1));
    }
  // Another plan in a file of the same name is another policy.
  Session duo = open(policies[0]);
  duo.prefill(ids, 16, Outputs::kNone, nullptr, context);
  duo.save(path);
  std::ofstream(gates) << to_json({.model = model->graph().name,
                                   .layers = 5,
                                   .kv_heads = 2,
                                   .gates = std::vector<double>(10, 0.25),
                                   .made_by = ""});
  test::expect_error(ErrorKind::kFile, "another policy", [&] { open(policies[0]).restore(path); });
}

// What follows the keys may be any bytes: refused or read, never more than an error.
TEST(SessionState, RefusesWhatNoPolicyKept) {
  const auto model = test::load(test::SmallModel{});
  const test::SmallModel::File folder = test::SmallModel{}.file();
  const std::filesystem::path path = folder.folder / "a.state";
  Context context(1);
  for (const char* policy : {"h2o:budget=20,stride=16", "recycled:budget=10", "ltri:budget=8,dense=0",
                             "magicpig:sinks=2,recent=5,bits=4,tables=6"}) {
    SCOPED_TRACE(policy);
    Session session = test::open(model, policy);
    session.prefill(test::some_ids(30), 16, Outputs::kNone, nullptr, context);
    for (int32_t id : {1, 2, 3}) session.decode(id, context);
    session.save(path);
    Session twin = test::open(model, policy);
    twin.restore(path);
    // The store as it was saved, with other bytes behind it.
    const StoreOrigin origin{fingerprint(*model),
                             state_policy(model_policy(policy, model->compute(), registry()), registry())};
    const auto store = registry()
                           .make<StoreFactory>(parse_specs("contiguous")[0])
                           ->open({.layers = 2, .kv_heads = 2, .d = 8, .dv = 8, .codec = DType::kF32, .context = 400});
    std::vector<std::byte> good;
    const int64_t tokens = load_store(path, origin, *store, &good);
    ASSERT_FALSE(good.empty());
    std::mt19937 random(7);
    int refused = 0;
    for (int round = 0; round < 60; ++round) {
      std::vector<std::byte> bytes = good;
      if (round % 3 == 0)
        bytes.resize(random() % bytes.size());
      else
        for (int i = 0; i < 4; ++i)
          bytes[(round % 2 ? random() % std::min<size_t>(bytes.size(), 64) : random() % bytes.size())] =
              static_cast<std::byte>(random());
      save_store(*store, origin, tokens, path, bytes);
      Session other = test::open(model, policy);
      try {
        other.restore(path);
        other.decode(5, context);
      } catch (const Error& e) {
        EXPECT_EQ(e.kind(), ErrorKind::kFile) << e.what();
        EXPECT_EQ(other.position(), 0);
        ++refused;
      }
    }
    EXPECT_GE(refused, 20);
  }
}

// Two sessions of one factory that read the same beginning, in other chunks, hold its pages once; each goes on alone.
TEST(SessionState, EqualBeginningsAreHeldOnce) {
  const test::SmallModel::File file = test::SmallModel{}.file();
  Context context(1);
  const auto model = LanguageModel::load(file.path, ComputeMode::kDefault, context);
  const Policy policy = model_policy("paged:page=16", model->compute(), registry());
  const auto stores = registry().make<StoreFactory>(*policy[Kind::kStore]);
  auto session = [&](const StoreFactory* from) { return Session(model, policy, registry(), 0, from); };
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 330; ++i) ids.push_back(i * 37 % 256);
  Session alone = session(nullptr), first = session(stores.get()), second = session(stores.get());
  alone.prefill(ids, 512, Outputs::kNone, nullptr, context);
  first.prefill(ids, 64, Outputs::kNone, nullptr, context);
  second.prefill(ids, 50, Outputs::kNone, nullptr, context);
  EXPECT_LT(first.bytes() + second.bytes(), alone.bytes() * 3 / 2);
  first.decode(5, context);
  first.clear();
  const std::vector<float> wanted = decode_some(alone, context), got = decode_some(second, context);
  EXPECT_EQ(std::memcmp(got.data(), wanted.data(), wanted.size() * sizeof(float)), 0);
}

}  // namespace
}  // namespace attend
