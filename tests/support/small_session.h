#pragma once
// Sessions over a small model, for tests.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attend/lm/engine.h"
#include "support/small_model.h"

namespace attend::test {

inline std::shared_ptr<const LanguageModel> load(const SmallModel& small, ComputeMode mode = ComputeMode::kF32) {
  const SmallModel::File file = small.file();
  Context context(1);
  return LanguageModel::load(file.path, mode, context);
}

inline Session open(const std::shared_ptr<const LanguageModel>& model, std::string_view policy = "softmax",
                    int64_t context = 0) {
  return Session(model, model_policy(policy, model->compute(), registry()), registry(), context);
}

// Every retention at some strides and every selector, with budgets that small texts fill.
inline void add_budgeted_policies(std::initializer_list<int> strides, std::vector<std::string>& policies) {
  for (const Entry* entry : registry().entries()) {
    if (entry->kind == Kind::kRetention)
      for (int stride : strides) policies.push_back(fmt::format("{}:budget=20,stride={}", entry->name, stride));
    if (entry->kind == Kind::kSelector)
      policies.push_back(entry->name == "magicpig" ? "magicpig:sinks=2,recent=5,bits=4,tables=6"
                                                   : fmt::format("{}:budget=12", entry->name));
  }
}

inline std::vector<int32_t> some_ids(int64_t n) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<int32_t>((i * 97 + 5) % 269));
  return ids;
}

inline std::vector<float> all_logits(Session& session, std::span<const int32_t> ids, int64_t chunk, Context& context) {
  std::vector<float> all;
  session.prefill(
      ids, chunk, Outputs::kAll,
      [&](int64_t, const View& rows) {
        EXPECT_LE(rows.shape[0], kOutputRows);
        all.insert(all.end(), rows.as<float>(), rows.as<float>() + rows.count());
      },
      context);
  return all;
}

}  // namespace attend::test
