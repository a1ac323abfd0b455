// Logits of both models don't depend, in any bit, on the chunk, on the threads, or on whether a token was part of a
// prompt or decoded.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>

#include "attend/lm/engine.h"
#include "support/model_file.h"

namespace attend {
namespace {

struct Logits {
  std::vector<float> values;
  int64_t vocabulary = 0;

  void take(int64_t first, const View& rows) {
    vocabulary = rows.shape[1];
    values.resize(static_cast<size_t>((first + rows.shape[0]) * vocabulary));
    std::memcpy(values.data() + first * vocabulary, rows.data, static_cast<size_t>(rows.count()) * sizeof(float));
  }
};

// A digest of each row would hide where bits differ: rows are compared whole, and named.
void expect_same(const Logits& got, const Logits& wanted) {
  ASSERT_EQ(got.values.size(), wanted.values.size());
  const int64_t rows = static_cast<int64_t>(wanted.values.size()) / wanted.vocabulary;
  for (int64_t r = 0; r < rows; ++r)
    ASSERT_EQ(std::memcmp(got.values.data() + r * wanted.vocabulary, wanted.values.data() + r * wanted.vocabulary,
                          static_cast<size_t>(wanted.vocabulary) * sizeof(float)),
              0)
        << "row " << r;
}

std::shared_ptr<const LanguageModel> load(const char* file) {
  const auto path = test::model_file(file);
  Context loader;
  return path.empty() ? nullptr : LanguageModel::load(path, ComputeMode::kDefault, loader);
}

// The last `decoded` of the tokens one by one.
Logits run_model(const std::shared_ptr<const LanguageModel>& model, const char* policy, int64_t tokens, int64_t chunk,
                 int threads, int64_t decoded) {
  SCOPED_TRACE(fmt::format("chunk {} threads {} decoded {}", chunk, threads, decoded));
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < tokens; ++i) ids.push_back(static_cast<int32_t>((i * 7919 + 13) % model->graph().vocabulary));
  Context context(threads);
  Session session(model, model_policy(policy, model->compute(), registry()), registry());
  Logits all;
  const size_t prompt = ids.size() - static_cast<size_t>(decoded);
  session.prefill(
      std::span(ids).first(prompt), chunk, Outputs::kAll,
      [&](int64_t first, const View& rows) { all.take(first, rows); }, context);
  for (size_t i = prompt; i < ids.size(); ++i) {
    std::span<const float> row = session.decode(ids[i], context);
    all.take(static_cast<int64_t>(i),
             dense_view(const_cast<float*>(row.data()), DType::kF32, {1, static_cast<int64_t>(row.size())}));
  }
  return all;
}

void check(const char* file, const char* policy, int64_t tokens) {
  const auto model = load(file);
  ASSERT_TRUE(model);
  auto run = [&](int64_t chunk, int threads, int64_t decoded) {
    return run_model(model, policy, tokens, chunk, threads, decoded);
  };
  const Logits wanted = run(512, 1, 0);
  expect_same(run(1, 2, 0), wanted);
  expect_same(run(7, 3, 0), wanted);
  expect_same(run(64, 2, 0), wanted);
  expect_same(run(512, 3, 0), wanted);
  expect_same(run(33, 2, 20), wanted);
}

TEST(SameBits, Smollm) {
  check(test::kSmollmFile, "softmax", 90);
}
TEST(SameBits, SmollmWindow) {
  check(test::kSmollmFile, "softmax:window=24,sinks=3", 150);
}
TEST(SameBits, SmollmQuantisedKeys) {
  check(test::kSmollmFile, "softmax + q8_0", 70);
}
TEST(SameBits, SmollmQuantisedKeysAndWindow) {
  check(test::kSmollmFile, "softmax:window=24,sinks=3 + q4_0", 90);
}
TEST(SameBits, SmollmAgingKeys) {
  check(test::kSmollmFile, "softmax + kivi:bits=2,residual=8,group=16,stride=16", 90);
}
TEST(SameBits, SmollmKeysOnAStaircase) {
  check(test::kSmollmFile, "softmax + saq:full=8,eight=16,four=32,group=8,stride=8", 120);
}
// Keys out of sight must not be coded with those in sight, whenever they go.
TEST(SameBits, SmollmAgingKeysAndWindow) {
  check(test::kSmollmFile, "softmax:window=40,sinks=3 + kivi:bits=4,residual=5,group=32,stride=24", 150);
}
TEST(SameBits, Gemma) {
  check(test::kGemmaFile, "softmax + bf16", 70);
}

// Nor on where keys lie.
TEST(SameBits, SmollmStores) {
  const auto model = load(test::kSmollmFile);
  ASSERT_TRUE(model);
  constexpr int64_t kTokens = 90;
  const Logits wanted = run_model(model, "softmax:window=24,sinks=3 + contiguous", kTokens, 512, 2, 0);
  for (const Entry* entry : registry().entries())
    if (entry->kind == Kind::kStore) {
      SCOPED_TRACE(entry->name);
      const std::string policy = fmt::format("softmax:window=24,sinks=3 + {}", entry->name);
      expect_same(run_model(model, policy.c_str(), kTokens, 40, 2, 20), wanted);
    }
  const char* kAging = "softmax:window=24,sinks=3 + kivi:bits=2,residual=8,group=16,stride=16 + ";
  const Logits aged = run_model(model, fmt::format("{}contiguous", kAging).c_str(), kTokens, 512, 2, 0);
  for (const Entry* entry : registry().entries())
    if (entry->kind == Kind::kStore) {
      SCOPED_TRACE(entry->name);
      expect_same(run_model(model, fmt::format("{}{}", kAging, entry->name).c_str(), kTokens, 40, 2, 20), aged);
    }
}

}  // namespace
}  // namespace attend
