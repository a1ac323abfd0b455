#pragma once
#include "attend/tensor/operator.h"

namespace attend {

// Whether later queries can see every key.
bool sees_all(const Operator& mechanism);

// Whether what a key gets depends on where it stands. To a softmax over all keys that come before it makes no difference.
bool goes_by_positions(const Operator& mechanism);

}  // namespace attend
