#include "attend/lm/speculation.h"

#include <algorithm>
#include <string>

#include "attend/tensor/error.h"

namespace attend {

Speculation::Speculation(Session& session, Drafter& drafter, int64_t most)
    : session_(session), drafter_(drafter), most_(most), length_(most) {
  if (most < 1 || most >= kOutputRows)
    throw Error(ErrorKind::kArgument, "speculation", "most", std::to_string(most),
                "must be 1.." + std::to_string(kOutputRows - 1));
  session.check_verifies();
}

int64_t Speculation::position() const {
  return session_.position() - static_cast<int64_t>(tried_.size()) + asked_;
}

void Speculation::settle(Context& context) {
  if (tried_.empty()) return;
  session_.accept(asked_, context);
  const int64_t drafted = static_cast<int64_t>(tried_.size()) - 1, accepted = asked_ - 1;
  length_ = std::min(most_, accepted == drafted ? std::max(length_, 2 * drafted) : accepted + 1);
  tried_.clear();
  asked_ = 0;
}

std::span<const float> Speculation::decode(int32_t id, Context& context) {
  const size_t vocabulary = static_cast<size_t>(tried_.empty() ? 0 : logits_.shape[1]);
  if (asked_ < static_cast<int64_t>(tried_.size()) && tried_[static_cast<size_t>(asked_)] == id) {
    text_.push_back(id);
    ++counts_.tokens, ++counts_.accepted;
    return {logits_.as<float>() + asked_++ * logits_.shape[1], vocabulary};
  }
  settle(context);
  text_.push_back(id);
  ++counts_.tokens, ++counts_.steps;
  draft_.clear();
  if (const int64_t most = std::min(length_, session_.most_verified() - 1); most > 0) {
    drafter_.propose(text_, most, draft_, context);
    draft_.resize(std::min(draft_.size(), static_cast<size_t>(most)));
  }
  if (draft_.empty()) {
    const std::span<const float> row = session_.decode(id, context);
    return row;
  }
  counts_.drafted += static_cast<int64_t>(draft_.size());
  tried_.assign(1, id);
  tried_.insert(tried_.end(), draft_.begin(), draft_.end());
  logits_ = session_.verify(tried_, context);
  asked_ = 1;
  return {logits_.as<float>(), static_cast<size_t>(logits_.shape[1])};
}

}  // namespace attend
