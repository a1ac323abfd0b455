#pragma once
// A session under a policy against the rule by which it should drop keys, followed in plain loops.
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "support/naive_model.h"
#include "support/small_session.h"

namespace attend::test {

using Keys = std::vector<std::vector<Row>>;
using Kept = std::vector<std::vector<bool>>;

struct Rule {
  std::string policy;
  std::function<bool(int64_t seen, int64_t prompt)> acts;
  std::function<void(int64_t seen, const Weights&, const Keys&, Kept&)> evict;
};

inline constexpr int64_t kRulePrompt = 29;

// Logits of the first kRulePrompt tokens as a prompt, of the rest decoded.
inline std::vector<float> prompt_then_decode(Session& session, const std::vector<int32_t>& ids, int64_t chunk,
                                             Context& context) {
  std::vector<float> logits = all_logits(session, std::span(ids).first(kRulePrompt), chunk, context);
  for (size_t i = kRulePrompt; i < ids.size(); ++i) {
    const auto row = session.decode(ids[i], context);
    logits.insert(logits.end(), row.begin(), row.end());
  }
  return logits;
}

inline void expect_near(const std::vector<float>& got, const std::vector<Row>& wanted) {
  double worst = 0, largest = 0;
  for (size_t i = 0; i < wanted.size(); ++i)
    for (size_t c = 0; c < wanted[i].size(); ++c) {
      worst = std::max(worst, std::fabs(static_cast<double>(got[i * 269 + c]) - wanted[i][c]));
      largest = std::max(largest, std::fabs(wanted[i][c]));
    }
  EXPECT_LE(worst, 1e-4 * largest);
}

// Logits of a text under the rule, and that the session gives the same.
inline std::vector<Row> follow(const Rule& rule, const SmallModel& small,
                               const std::shared_ptr<const LanguageModel>& model, const std::vector<int32_t>& ids) {
  const std::string bytes = small.bytes();
  NaiveModel naive(small, bytes);
  naive.evict = [&](int64_t, int64_t seen, const Weights& w, const Keys& keys, Kept& kept) {
    if (rule.acts(seen, kRulePrompt)) rule.evict(seen, w, keys, kept);
  };
  const std::vector<Row> wanted = naive.logits(ids);
  Context context(2);
  Session session = open(model, rule.policy);
  expect_near(prompt_then_decode(session, ids, 7, context), wanted);
  return wanted;
}

}  // namespace attend::test
