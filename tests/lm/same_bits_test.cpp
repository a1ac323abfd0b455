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

void check(const char* file, const char* policy_text, int64_t tokens) {
  const auto path = test::model_file(file);
  ASSERT_FALSE(path.empty());
  Context loader;
  const auto model = LanguageModel::load(path, ComputeMode::kDefault, loader);
  const Policy policy = model_policy(policy_text, model->compute(), registry());
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < tokens; ++i) ids.push_back(static_cast<int32_t>((i * 7919 + 13) % model->graph().vocabulary));

  auto run = [&](int64_t chunk, int threads, size_t decoded) {
    SCOPED_TRACE(fmt::format("chunk {} threads {} decoded {}", chunk, threads, decoded));
    Context context(threads);
    Session session(model, policy, registry());
    Logits all;
    const size_t prompt = ids.size() - decoded;
    session.prefill(
        std::span(ids).first(prompt), chunk, Outputs::kAll,
        [&](int64_t first, const View& rows) { all.take(first, rows); }, context);
    for (size_t i = prompt; i < ids.size(); ++i) {
      std::span<const float> row = session.decode(ids[i], context);
      all.take(static_cast<int64_t>(i),
               dense_view(const_cast<float*>(row.data()), DType::kF32, {1, static_cast<int64_t>(row.size())}));
    }
    return all;
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
TEST(SameBits, Gemma) {
  check(test::kGemmaFile, "softmax + bf16", 70);
}

}  // namespace
}  // namespace attend
