#include "simd/tiles.h"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <system_error>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace attend {
namespace {

#if defined(__x86_64__)
template <void (*kMultiply)()>
void multiply(int rows, const void* a, const void* b, void* c) {
  const Tiles tiles(rows);
  Tiles::load<0>(c, kTileBytes);
  Tiles::load<4>(a, kTileBytes);
  Tiles::load<6>(b, kTileBytes);
  kMultiply();
  Tiles::store<0>(c, kTileBytes);
}

void multiply_bf16(int rows, const uint16_t* a, const uint16_t* b, float* c) {
  multiply<Tiles::multiply_bf16<0, 4, 6>>(rows, a, b, c);
}
void multiply_s8u8(int rows, const int8_t* a, const uint8_t* b, int32_t* c) {
  multiply<Tiles::multiply_s8u8<0, 4, 6>>(rows, a, b, c);
}
void multiply_u8s8(int rows, const uint8_t* a, const int8_t* b, int32_t* c) {
  multiply<Tiles::multiply_u8s8<0, 4, 6>>(rows, a, b, c);
}
#else
void multiply_bf16(int, const uint16_t*, const uint16_t*, float*) {}
void multiply_s8u8(int, const int8_t*, const uint8_t*, int32_t*) {}
void multiply_u8s8(int, const uint8_t*, const int8_t*, int32_t*) {}
#endif

struct Range {
  int low, high;
};

// Without a pattern that a swap of rows, columns or pairs could hide.
struct Integers {
  uint32_t state = 1;
  int next(const Range& range) {
    state = state * 1664525u + 1013904223u;
    return range.low + static_cast<int>((state >> 8) % static_cast<uint32_t>(range.high - range.low + 1));
  }
};

uint16_t bf16_of(int x) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(x)) >> 16);
}

// kGroup elements of A and B share 32 bits. What lies beyond `rows` must not change.
template <int kGroup, class A, class B, class C, class MakeA, class MakeB>
std::string wrong(const char* name, int rows, void (*product)(int, const A*, const B*, C*), const Range& of_a,
                  const Range& of_b, MakeA make_a, MakeB make_b) {
  constexpr int kDepth = 16 * kGroup;
  Integers random;
  std::array<int, kTileRows * kDepth> x, w;
  alignas(64) std::array<A, kTileRows * kDepth> a;
  alignas(64) std::array<B, kDepth * 16> b;
  alignas(64) std::array<C, kTileRows * 16> c;
  std::array<int, kTileRows * 16> want;
  for (size_t i = 0; i < x.size(); ++i) a[i] = make_a(x[i] = random.next(of_a));
  for (size_t i = 0; i < w.size(); ++i) b[i] = make_b(w[i] = random.next(of_b));
  for (size_t i = 0; i < c.size(); ++i) c[i] = static_cast<C>(want[i] = random.next({-1000, 1000}));
  for (int m = 0; m < rows; ++m)
    for (int n = 0; n < 16; ++n)
      for (int k = 0; k < kDepth; ++k)
        want[static_cast<size_t>(m * 16 + n)] += x[static_cast<size_t>(m * kDepth + k)] *
                                                 w[static_cast<size_t>((k / kGroup * 16 + n) * kGroup + k % kGroup)];
  product(rows, a.data(), b.data(), c.data());
  for (size_t i = 0; i < c.size(); ++i)
    if (c[i] != static_cast<C>(want[i]))
      return fmt::format("its {} product of tiles of {} rows is wrong: [{}, {}] is {}, not {}", name, rows, i / 16,
                         i % 16, c[i], want[i]);
  return {};
}

}  // namespace

const TileProducts& tile_products() {
  static constexpr TileProducts products = {multiply_bf16, multiply_s8u8, multiply_u8s8};
  return products;
}

std::string wrong_products(const TileProducts& products) {
  const auto to_signed = [](int x) { return static_cast<int8_t>(x); };
  const auto to_unsigned = [](int x) { return static_cast<uint8_t>(x); };
  for (const int rows : {kTileRows, 1, 7}) {
    std::string error = wrong<2>("bf16", rows, products.bf16, {-200, 200}, {-200, 200}, bf16_of, bf16_of);
    if (error.empty()) error = wrong<4>("int8", rows, products.s8u8, {-128, 127}, {0, 255}, to_signed, to_unsigned);
    if (error.empty()) error = wrong<4>("uint8", rows, products.u8s8, {0, 255}, {-128, 127}, to_unsigned, to_signed);
    if (!error.empty()) return error;
  }
  return {};
}

std::string tiles_refused() {
#if ATTEND_TILE_MODEL
  return {};
#elif defined(__linux__) && defined(__x86_64__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, Linux 5.16 and later
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0) return {};
  return fmt::format("the OS refuses AMX tiles: {}", std::generic_category().message(errno));
#else
  return "attend does not know how to ask this OS for AMX tiles";
#endif
}

}  // namespace attend
