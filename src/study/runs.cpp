#include "study/runs.h"

#include <algorithm>

namespace attend {

bool selects(const Readings& policy) {
  return std::any_of(policy.begin(), policy.end(),
                     [](const Policy& each) { return each[Kind::kSelector].has_value(); });
}

std::vector<int32_t> greedy_tokens(Ensemble& session, int64_t count, const Tokenizer& tokenizer, const RowOps& ops,
                                   Context& context) {
  std::vector<int32_t> ids;
  std::span<const float> logits = session.last_logits();
  while (static_cast<int64_t>(ids.size()) < count) {
    const auto top = static_cast<int32_t>(ops.largest(logits.data(), static_cast<int64_t>(logits.size())));
    if (tokenizer.is_end(top)) break;
    ids.push_back(top);
    if (static_cast<int64_t>(ids.size()) == count || session.position() == session.context()) break;
    logits = session.decode(top, context);
  }
  return ids;
}

}  // namespace attend
