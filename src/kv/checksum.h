#pragma once
// A 64-bit checksum of bytes that come in pieces: equal for equal pieces. Finds damage, proves nothing.
#include <bit>
#include <cstdint>
#include <cstring>

namespace attend::kv {

constexpr uint64_t mix(uint64_t lane, uint64_t word) {
  return std::rotl((lane ^ word) * 0x9fb21c651e98df25u, 29);
}

// Four independent lanes of 8 bytes.
inline uint64_t checksum(const void* data, int64_t bytes, uint64_t seed = 0) {
  const auto* from = static_cast<const unsigned char*>(data);
  uint64_t lane[4] = {0x9e3779b97f4a7c15u ^ seed, 0xbf58476d1ce4e5b9u, 0x94d049bb133111ebu, 0xd6e8feb86659fd93u};
  int64_t i = 0;
  for (; i + 32 <= bytes; i += 32) {
    uint64_t word[4];
    std::memcpy(word, from + i, 32);
    for (int l = 0; l < 4; ++l) lane[l] = mix(lane[l], word[l]);
  }
  for (; i < bytes; ++i) lane[0] = mix(lane[0], from[i]);
  uint64_t hash = static_cast<uint64_t>(bytes);
  for (uint64_t l : lane) hash = (hash ^ l ^ l >> 32) * 0xd6e8feb86659fd93u;
  return hash ^ hash >> 32;
}

}  // namespace attend::kv
