#include "exact/score_entries.h"

namespace attend {

void register_scores(Registry& registry) {
  register_affine(registry);
  register_attendre(registry);
  register_cat_geometry(registry);
  register_cog(registry);
  register_dcmha(registry);
  register_differential(registry);
  register_entmax(registry);
  register_gaam(registry);
  register_hsa(registry);
  register_lla(registry);
  register_lssar(registry);
  register_mla(registry);
  register_prflash(registry);
  register_probabilistic(registry);
  register_relu(registry);
  register_reversed(registry);
  register_sentinel(registry);
  register_sigmoid(registry);
  register_sinkhorn(registry);
  register_softmax1(registry);
  register_tensor(registry);
}

}  // namespace attend
