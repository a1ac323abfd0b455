// A session that was saved and restored goes on with the same bits, in another kind of store too.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>

#include "attend/lm/engine.h"
#include "attend/tensor/error.h"
#include "support/expect_error.h"
#include "support/small_model.h"

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
