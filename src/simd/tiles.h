#pragma once
// The tiles of AMX: eight registers of 16 rows x 64 bytes, and products of two that add to a third. Assembly rather
// than intrinsics, whose loads in GCC 12 do not say that they read memory.
//
//   C [M, 16] += A [M, 32] B [32, 16]  in bf16: row i of A holds its 32 elements, row i of B the pairs (2 i, 2 i + 1)
//   of its 16 columns, row i of C 16 f32.  C [M, 16] += A [M, 64] B [64, 16]  in bytes, the same with fours.
//
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18 (tiles); volume 2,
// TDPBF16PS: even and odd elements are two chains of fused multiply-adds, rounded to nearest even, added to each other
// and then to C; denormals count as zero.
#include <cstdint>
#include <string>

#if ATTEND_TILE_MODEL
#include "simd/tiles_model.h"
#endif

namespace attend {

// Rows and bytes of a row of a tile.
inline constexpr int kTileRows = 16, kTileBytes = 64;

#if defined(__x86_64__) && !ATTEND_TILE_MODEL
// While it lives, this thread's tiles are usable. C is tiles 0 to 3, A 4 and 5, B 6 and 7: blocks of 2 x 2 products, 0, 1
// and 4 with `rows` rows, 2, 3 and 5 with `second_rows`. Rows of A have `depth` bytes, B has depth / 4 rows. May be made
// where Isa::kAmx is usable.
class Tiles {
 public:
  explicit Tiles(int rows) noexcept : Tiles(rows, rows, kTileBytes) {}
  Tiles(int rows, int second_rows, int depth) noexcept {
    alignas(64) struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    static_assert(sizeof(config) == 64);
    for (int i : {0, 1, 4}) config.rows[i] = static_cast<uint8_t>(rows);
    for (int i : {2, 3, 5}) config.rows[i] = static_cast<uint8_t>(second_rows);
    for (int i : {6, 7}) config.rows[i] = static_cast<uint8_t>(depth / 4);
    for (int i = 0; i < 8; ++i) config.row_bytes[i] = kTileBytes;
    for (int i : {4, 5}) config.row_bytes[i] = static_cast<uint16_t>(depth);
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
  }
  ~Tiles() { __asm__ volatile("tilerelease"); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  template <int kTile>
  [[gnu::always_inline]] static inline void zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  // Rows are `stride` bytes apart. kPassing: they are not read again before they leave the first cache.
  template <int kTile, bool kPassing = false>
  [[gnu::always_inline]] static inline void load(const void* from, int64_t stride) {
    if constexpr (kPassing) {
      __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
    } else {
      __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
    }
  }
  template <int kTile>
  [[gnu::always_inline]] static inline void store(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kC, int kA, int kB>
  [[gnu::always_inline]] static inline void multiply_bf16() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }
  // A unsigned, B signed.
  template <int kC, int kA, int kB>
  [[gnu::always_inline]] static inline void multiply_u8s8() {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }
  // A signed, B unsigned.
  template <int kC, int kA, int kB>
  [[gnu::always_inline]] static inline void multiply_s8u8() {
    __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }
};
#endif

// Whole products C += A B of tiles as above, A with `rows` rows.
struct TileProducts {
  void (*bf16)(int rows, const uint16_t* a, const uint16_t* b, float* c);
  void (*s8u8)(int rows, const int8_t* a, const uint8_t* b, int32_t* c);
  void (*u8s8)(int rows, const uint8_t* a, const int8_t* b, int32_t* c);
};

// The machine's; only where processor and OS have the tiles.
const TileProducts& tile_products();

// What is wrong with them, by loops over small integers, whose sums are exact; empty if nothing is.
std::string wrong_products(const TileProducts& products);

// Asks the OS to save this process's tiles; what it answers if it does not, else nothing.
std::string tiles_refused();

}  // namespace attend
