// Tokens that are taken back.
#include <fmt/format.h>

#include "attend/kv/retention.h"
#include "attend/lm/engine.h"
#include "attend/tensor/error.h"
#include "executor.h"
#include "retainer.h"
#include "selective_reader.h"

namespace attend {

void Session::count_keys(int layer, int64_t position, std::vector<int64_t>& counts) const {
  counts.clear();
  for (int h = 0; h < model_->graph().layers[static_cast<size_t>(layer)].kv_heads; ++h)
    counts.push_back(slots_in(store_->keys(layer, h), {0, position}).end);
}

void Session::check_truncates(int64_t position) const {
  check_settled("truncate");
  if (position < 0 || position > position_)
    throw Error(ErrorKind::kArgument, "truncate", "position", std::to_string(position),
                fmt::format("must be 0..{}", position_));
  if (position == 0 || position == position_) return;
  retainer_->check_truncates(position);
  std::vector<int64_t> counts;
  for (int layer = 0; reader_ && layer < static_cast<int>(layers_.size()); ++layer) {
    count_keys(layer, position, counts);
    if (!reader_->can_cut(layer, counts))
      throw Error(ErrorKind::kUnsupported, "truncate", "position", std::to_string(position),
                  "the selector has chosen anew since what tokens read");
  }
}

void Session::truncate(int64_t position) {
  check_truncates(position);
  if (position == position_) return;
  if (position == 0) return clear();
  cut(position);
}

void Session::cut(int64_t position) {
  std::vector<int64_t> counts;
  for (int layer = 0; layer < static_cast<int>(layers_.size()); ++layer) {
    count_keys(layer, position, counts);
    for (size_t h = 0; h < counts.size(); ++h) store_->cut(layer, static_cast<int>(h), counts[h]);
    if (reader_) reader_->cut(layer, counts);
  }
  retainer_->truncate(*store_, position);
  position_ = position;
  last_ = {};
}

}  // namespace attend
