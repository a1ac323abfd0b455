// Highway's best target and, on top of what it stands for, AVX512_VNNI and AVX512_BF16. Included first of all.
#define HWY_WANT_AVX3_DL
#include "hwy/detect_targets.h"
#undef HWY_TARGET
#define HWY_TARGET HWY_AVX3_DL
#include "hwy/highway.h"
#undef HWY_TARGET_STR
#define HWY_TARGET_STR \
  HWY_TARGET_STR_AVX3  \
  ",vpclmulqdq,avx512vbmi,avx512vbmi2,vaes,avxvnni,avx512bitalg,avx512vpopcntdq,avx512vnni,avx512bf16"
#define ATTEND_BF16_DOT 1
