#include "exact/score_entries.h"

namespace attend {

void register_scores(Registry& registry) {
  register_dcmha(registry);
  register_differential(registry);
  register_gaam(registry);
  register_hsa(registry);
  register_lla(registry);
  register_mla(registry);
  register_reversed(registry);
  register_sinkhorn(registry);
  register_tensor(registry);
}

}  // namespace attend
