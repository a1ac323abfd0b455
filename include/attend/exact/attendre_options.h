#pragma once
// Options of attention over a bounded memory with queries that wait; see attend/exact/attendre.h.
#include <cstdint>

namespace attend {

// Which key leaves a full memory: the oldest, the least recently or the least frequently attended one.
enum class Eviction { kFifo, kLra, kLfa };

struct AttendreOptions {
  int64_t chunk = 64;    // tokens that come at a time, at least 1
  int64_t memory = 512;  // keys that are kept, at least those of a chunk; 0: all
  int64_t delay = 0;     // queries that wait: one attends once so many later ones have come
  int64_t top = 0;       // keys that a query retrieves from the memory, those of largest score; 0: all
  Eviction eviction = Eviction::kLra;
  bool causal = false;  // a query sees no key after its own position
  double scale = 0;     // 0: 1/sqrt(D)
};

}  // namespace attend
