#pragma once
// Where statistics of the weights that queries gave to each key are gathered.
#include <cstdint>
#include <span>

namespace attend {

// Of one query head, each an entry a key, by slot; null: not wanted. What is there is added to.
struct KeyStatistics {
  float* sum = nullptr;       // of the weights, in ascending order of queries
  float* largest = nullptr;   // of what was there and the weights
  int32_t* times = nullptr;   // how many queries attended to the key
  int32_t* newest = nullptr;  // the position of the last that did
};

struct WeightPlaces {
  std::span<const KeyStatistics> heads;  // [B * Hq], all with the same statistics
  // A query attends to a key if its weight is more than this many times the mean weight, 1 / (keys that it sees).
  float attended = 1;

  bool counts() const { return !heads.empty() && (heads[0].times || heads[0].newest); }
};

}  // namespace attend
