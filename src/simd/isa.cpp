#include "attend/simd/isa.h"

#include <fmt/format.h>

#include <array>
#include <cstdlib>
#include <vector>

#include "attend/tensor/error.h"
#include "simd/tiles.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace attend {
namespace {

struct Feature {
  std::string_view name;
  bool present;
};

#if defined(__x86_64__)
struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  if (!__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d)) return {};
  return r;
}

uint64_t enabled_state() {
  if (!(cpuid(1, 0).c >> 27 & 1)) return 0;  // OSXSAVE
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

// What each instruction set adds to the one before it. The first of each group is what the operating system saves.
struct Features {
  std::vector<Feature> avx2, avx512, vnni, bf16, amx;

  Features() {
    const Registers one = cpuid(1, 0), seven = cpuid(7, 0), seven1 = cpuid(7, 1), extended = cpuid(0x80000001u, 0);
    const uint64_t state = enabled_state();
    avx2 = {{"OS saves AVX state", (state & 0x6) == 0x6},
            {"AVX2", (seven.b >> 5 & 1) != 0},
            {"FMA", (one.c >> 12 & 1) != 0},
            {"F16C", (one.c >> 29 & 1) != 0},
            {"BMI1", (seven.b >> 3 & 1) != 0},
            {"BMI2", (seven.b >> 8 & 1) != 0},
            {"LZCNT", (extended.c >> 5 & 1) != 0},
            {"PCLMUL", (one.c >> 1 & 1) != 0},
            {"AES", (one.c >> 25 & 1) != 0}};
    avx512 = {{"OS saves AVX-512 state", (state & 0xe6) == 0xe6},
              {"AVX512F", (seven.b >> 16 & 1) != 0},
              {"AVX512DQ", (seven.b >> 17 & 1) != 0},
              {"AVX512CD", (seven.b >> 28 & 1) != 0},
              {"AVX512BW", (seven.b >> 30 & 1) != 0},
              {"AVX512VL", (seven.b >> 31 & 1) != 0}};
    vnni = {{"AVX512_VNNI", (seven.c >> 11 & 1) != 0}};
    bf16 = {{"AVX512_BF16", (seven1.a >> 5 & 1) != 0},     {"AVX512_VBMI", (seven.c >> 1 & 1) != 0},
            {"AVX512_VBMI2", (seven.c >> 6 & 1) != 0},     {"VAES", (seven.c >> 9 & 1) != 0},
            {"VPCLMULQDQ", (seven.c >> 10 & 1) != 0},      {"AVX512_BITALG", (seven.c >> 12 & 1) != 0},
            {"AVX512_VPOPCNTDQ", (seven.c >> 14 & 1) != 0}};
    amx = {{"OS saves AMX tiles", (state & 0x60000) == 0x60000},
           {"AMX_TILE", (seven.d >> 24 & 1) != 0},
           {"AMX_INT8", (seven.d >> 25 & 1) != 0},
           {"AMX_BF16", (seven.d >> 22 & 1) != 0}};
#if ATTEND_TILE_MODEL
    amx.clear();
#endif
  }
};

#endif

[[maybe_unused]] std::string missing(std::initializer_list<const std::vector<Feature>*> groups) {
  for (const auto* group : groups)
    for (const Feature& feature : *group)
      if (!feature.present) return fmt::format("missing: {}", feature.name);
  return {};
}

std::vector<IsaInfo> detect() {
  std::vector<IsaInfo> list = {
      {Isa::kAvx2, "256-bit vectors, fused multiply-add", "AVX2 FMA F16C BMI1 BMI2 LZCNT PCLMUL AES", false, ""},
      {Isa::kAvx512, "512-bit vectors", "avx2 + AVX512F DQ CD BW VL", false, ""},
      {Isa::kAvx512Vnni, "512-bit vectors, int8 dot products", "avx512 + AVX512_VNNI", false, ""},
      {Isa::kAvx512Bf16, "512-bit vectors, bf16 dot products",
       "avx512vnni + AVX512_BF16 VBMI VBMI2 VAES VPCLMULQDQ BITALG VPOPCNTDQ", false, ""},
      {Isa::kAmx, "matrix tiles in bf16 and int8", "avx512bf16 + AMX_TILE AMX_INT8 AMX_BF16", false, ""},
      {Isa::kNeon, "128-bit vectors", "AArch64 with ASIMD", false, ""},
      {Isa::kNeonDot, "128-bit vectors, int8 dot products", "neon + ASIMDDP", false, ""},
  };
#if defined(__x86_64__)
  const Features f;
  list[0].why_not = missing({&f.avx2});
  list[1].why_not = missing({&f.avx2, &f.avx512});
  list[2].why_not = missing({&f.avx2, &f.avx512, &f.vnni});
  list[3].why_not = missing({&f.avx2, &f.avx512, &f.vnni, &f.bf16});
  std::string& amx = list[4].why_not = missing({&f.avx2, &f.avx512, &f.vnni, &f.bf16, &f.amx});
  if (amx.empty()) amx = tiles_refused();
  if (amx.empty()) amx = wrong_products(tile_products());
  list[5].why_not = list[6].why_not = "this machine is x86-64";
#elif defined(__aarch64__)
  for (size_t i = 0; i < 5; ++i) list[i].why_not = "this machine is AArch64";
  const std::vector<Feature> neon = {{"ASIMD", (getauxval(AT_HWCAP) & HWCAP_ASIMD) != 0}};
  const std::vector<Feature> dot = {{"ASIMDDP", (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0}};
  list[5].why_not = missing({&neon});
  list[6].why_not = missing({&neon, &dot});
#else
  for (IsaInfo& info : list) info.why_not = "this machine is neither x86-64 nor AArch64";
#endif
  for (IsaInfo& info : list) info.usable = info.why_not.empty();
  return list;
}

std::string names() {
  std::string all;
  for (const IsaInfo& info : isa_list()) all.append(all.empty() ? "" : ", ").append(name_of(info.isa));
  return all;
}

Isa require_usable(const IsaInfo& info, std::string_view source) {
  if (!info.usable)
    throw Error(ErrorKind::kUnsupported, "isa", source, name_of(info.isa), "not usable here: " + info.why_not);
  return info.isa;
}

}  // namespace

std::span<const IsaInfo> isa_list() {
  static const std::vector<IsaInfo> list = detect();
  return list;
}

Isa active_isa(const Context& context) {
  if (context.isa) return require_usable(isa_list()[static_cast<size_t>(*context.isa)], "Context::isa");
  if (const char* forced = std::getenv("ATTEND_ISA"); forced && *forced) {
    for (const IsaInfo& info : isa_list())
      if (name_of(info.isa) == forced) return require_usable(info, "ATTEND_ISA");
    throw Error(ErrorKind::kUnsupported, "isa", "ATTEND_ISA", forced, "must be one of " + names());
  }
  const IsaInfo* best = nullptr;
  for (const IsaInfo& info : isa_list())
    if (info.usable) best = &info;
  if (!best) throw Error(ErrorKind::kUnsupported, "isa", "machine", "", "has none of " + names());
  return best->isa;
}

}  // namespace attend
