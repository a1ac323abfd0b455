#include "exact/score_entries.h"

namespace attend {

void register_scores(Registry&) {}

}  // namespace attend
