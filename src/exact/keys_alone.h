#pragma once
// Arguments of calls that read keys and no values.
#include "attend/exact/softmax.h"
#include "attend/tensor/quantised_row.h"

namespace attend::exact {

// The same arguments; of key views, with a width that rows of their values may have.
inline Qkv keys_alone(const Qkv& in) {
  Qkv alone = in;
  if (in.keys.empty()) return alone;
  alone.dv = 1;
  for (const KeyView& keys : in.keys)
    for (const KeyRun& run : keys.runs)
      if (is_quantised(run.v_type)) alone.dv = kQuantisedBlock;
  return alone;
}

}  // namespace attend::exact
