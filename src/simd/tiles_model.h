#pragma once
// AMX's tiles in software, with the interface of Tiles: what the manual's pseudo code says, so that kernels for tiles
// run where no processor has them. Slow, and no proof of a processor's rounding; built with -DATTEND_TILE_MODEL=ON.
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace attend {

class Tiles {
 public:
  explicit Tiles(int rows) noexcept : Tiles(rows, rows, 64) {}
  Tiles(int rows, int second_rows, int depth) noexcept { rows_[0] = rows, rows_[1] = second_rows, depth_ = depth; }
  ~Tiles() { rows_[0] = rows_[1] = depth_ = 0; }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  template <int kTile>
  static void zero() {
    std::memset(tile_[kTile], 0, sizeof(tile_[kTile]));
  }
  template <int kTile, bool = false>
  static void load(const void* from, int64_t stride) {
    zero<kTile>();
    const size_t bytes = kTile == 4 || kTile == 5 ? static_cast<size_t>(depth_) : 64;
    for (int r = 0; r < rows<kTile>(); ++r)
      std::memcpy(tile_[kTile] + r * 64, static_cast<const char*>(from) + r * stride, bytes);
  }
  template <int kTile>
  static void store(void* to, int64_t stride) {
    for (int r = 0; r < rows<kTile>(); ++r) std::memcpy(static_cast<char*>(to) + r * stride, tile_[kTile] + r * 64, 64);
  }
  template <int kC, int kA, int kB>
  static void multiply_bf16() {
    for (int m = 0; m < rows<kC>(); ++m)
      for (int n = 0; n < 16; ++n) {
        float chain[2] = {};
        for (int k = 0; k < depth_ / 4; ++k)
          for (int i = 0; i < 2; ++i)
            chain[i] = flushed(
                std::fma(bf16(tile_[kA] + m * 64 + 4 * k + 2 * i), bf16(tile_[kB] + k * 64 + 4 * n + 2 * i), chain[i]));
        float sum;
        std::memcpy(&sum, tile_[kC] + m * 64 + 4 * n, 4);
        sum = flushed(flushed(sum) + flushed(chain[0] + chain[1]));
        std::memcpy(tile_[kC] + m * 64 + 4 * n, &sum, 4);
      }
  }
  template <int kC, int kA, int kB>
  static void multiply_u8s8() {
    multiply_bytes<kC, kA, kB, uint8_t, int8_t>();
  }
  template <int kC, int kA, int kB>
  static void multiply_s8u8() {
    multiply_bytes<kC, kA, kB, int8_t, uint8_t>();
  }

 private:
  template <int kTile>
  static int rows() {
    if (kTile > 5) return depth_ / 4;
    return rows_[kTile == 2 || kTile == 3 || kTile == 5];
  }
  static float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }
  static float bf16(const unsigned char* p) {
    uint16_t bits;
    std::memcpy(&bits, p, 2);
    return flushed(std::bit_cast<float>(static_cast<uint32_t>(bits) << 16));
  }
  template <int kC, int kA, int kB, class A, class B>
  static void multiply_bytes() {
    for (int m = 0; m < rows<kC>(); ++m)
      for (int n = 0; n < 16; ++n) {
        int32_t sum;
        std::memcpy(&sum, tile_[kC] + m * 64 + 4 * n, 4);
        for (int k = 0; k < depth_; ++k)
          sum += static_cast<A>(tile_[kA][m * 64 + k]) * static_cast<B>(tile_[kB][k / 4 * 64 + 4 * n + k % 4]);
        std::memcpy(tile_[kC] + m * 64 + 4 * n, &sum, 4);
      }
  }

  static inline thread_local unsigned char tile_[8][16 * 64];
  static inline thread_local int rows_[2] = {}, depth_ = 0;
};

}  // namespace attend
