// Tokens that are read on trial, to be kept or taken back.
#include <fmt/format.h>

#include <algorithm>

#include "attend/lm/engine.h"
#include "attend/lm/token_class.h"
#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "executor.h"
#include "retainer.h"
#include "selective_reader.h"
#include "trial.h"

namespace attend {

void Session::check_verifies() const {
  if (reader_)
    throw Error(ErrorKind::kUnsupported, "verify", "policy", "",
                "has a selector, which chooses for one token at a time: there is nothing to gain");
}

int64_t Session::most_verified() const {
  const int64_t first = trial_->open() ? trial_->first() : position_;
  return std::min({kOutputRows, limit_ - position_, retainer_->next_act(first) - position_});
}

View Session::verify(std::span<const int32_t> ids, Context& context) {
  check_verifies();
  check_ids(ids);
  if (const int64_t most = most_verified(); static_cast<int64_t>(ids.size()) > most)
    throw Error(ErrorKind::kArgument, "verify", "tokens", std::to_string(ids.size()),
                fmt::format("must be at most {} here", most));
  const int64_t rows = static_cast<int64_t>(ids.size());
  if (!trial_->open()) retainer_->expect_act(position_, kNoEnd);
  trial_->add(position_, ids);
  last_ = {};
  const View hidden =
      executor_->run(ids, position_, rows, {*store_, *retainer_, nullptr, trial_.get(), false}, context);
  position_ += rows;
  peak_bytes_ = std::max(peak_bytes_, bytes());
  give(hidden, 0, nullptr, context);
  return dense_view(logits_.data(), DType::kF32, {rows, model_->graph().vocabulary});
}

void Session::accept(int64_t count, Context& context) {
  const std::vector<int32_t>& ids = trial_->ids();
  const int64_t tried = static_cast<int64_t>(ids.size());
  if (count < 0 || count > tried)
    throw Error(ErrorKind::kArgument, "accept", "count", std::to_string(count),
                fmt::format("must be 0..{}, tokens on trial", tried));
  if (tried == 0) return;
  const int64_t dropped = tried - count, vocabulary = model_->graph().vocabulary;
  // Logits of the last call alone are there.
  const float* row = last_.empty() ? nullptr : last_.data() - dropped * vocabulary;
  if (dropped > 0) cut(position_ - dropped);
  last_ = {};
  if (count > 0 && row && row >= logits_.as<float>()) last_ = {row, static_cast<size_t>(vocabulary)};
  executor_->observe(*trial_, count, {*store_, *retainer_, nullptr, nullptr, false}, context);
  if (retainer_->reads_classes())
    for (int64_t i = 0; i < count; ++i) retainer_->read(class_of(ids[static_cast<size_t>(i)], model_->tokenizer()));
  trial_->close();
  if (count > 0) retain(false, context);
}

}  // namespace attend
