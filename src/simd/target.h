#pragma once
// Marks for code that is compiled once per instruction set.
#define ATTEND_INLINE [[gnu::always_inline]] inline

// Before a loop whose constant trip count must be unrolled for its arrays to live in registers.
#if defined(__clang__)
#define ATTEND_UNROLL _Pragma("clang loop unroll(full)")
#else
#define ATTEND_UNROLL _Pragma("GCC unroll 16")
#endif
