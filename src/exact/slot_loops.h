#pragma once
// Loops over the slots of attendre's memory, for each instruction set.
#include <cstdint>
#include <limits>

#include "attend/simd/dense.h"
#include "attend/simd/hook.h"

namespace attend::exact {

inline constexpr float kHiddenSlot = -std::numeric_limits<float>::infinity();

struct SlotLoops {
  // Hides what lies in no slot or after `newest`; gives how many scores are left.
  int64_t (*hide)(const int32_t* token, int64_t n, int32_t newest, float* s);
  // exact[j] = scale * q . k[j] in double, ascending elements, for panels [d, 64] of n slots.
  void (*dots)(const float* q, int64_t d, const float* panels, int64_t n, double scale, double* exact);
  // Whether some weight lies in [low, high].
  bool (*any_between)(const float* w, int64_t n, float low, float high);
  // w <- w * inverse, g <- w (g - sum of w g + d_lse).
  void (*slopes)(float* w, float* g, int64_t n, float inverse, float d_lse);
  // Notes the slots of weights above `least`.
  void (*note)(const float* w, int64_t n, float least, int32_t step, int32_t* last, int32_t* times);
};

struct SlotLoop {
  [[gnu::always_inline]] static inline int64_t hide(const int32_t* token, int64_t n, int32_t newest, float* s) {
    int32_t seen = 0;
#pragma omp simd reduction(+ : seen)
    for (int64_t j = 0; j < n; ++j) {
      const bool visible = token[j] >= 0 && token[j] <= newest;
      s[j] = visible ? s[j] : kHiddenSlot;
      seen += visible ? 1 : 0;
    }
    return seen;
  }
  [[gnu::always_inline]] static inline void dots(const float* q, int64_t d, const float* panels, int64_t n,
                                                 double scale, double* exact) {
    for (int64_t first = 0; first < n; first += kPanelKeys, panels += kPanelKeys * d) {
      double sum[kPanelKeys] = {};
      for (int64_t c = 0; c < d; ++c) {
        const double x = static_cast<double>(q[c]);
#pragma omp simd
        for (int64_t j = 0; j < kPanelKeys; ++j) sum[j] += x * static_cast<double>(panels[c * kPanelKeys + j]);
      }
      for (int64_t j = 0; j < kPanelKeys; ++j) exact[first + j] = scale * sum[j];
    }
  }
  [[gnu::always_inline]] static inline bool any_between(const float* w, int64_t n, float low, float high) {
    int32_t found = 0;
#pragma omp simd reduction(| : found)
    for (int64_t j = 0; j < n; ++j) found |= w[j] >= low && w[j] <= high ? 1 : 0;
    return found != 0;
  }
  [[gnu::always_inline]] static inline void slopes(float* w, float* g, int64_t n, float inverse, float d_lse) {
    float lanes[16] = {}, mean = 0;
    for (int64_t first = 0; first < n; first += 16) {
      const int64_t count = n - first < 16 ? n - first : 16;
#pragma omp simd
      for (int64_t l = 0; l < count; ++l) {
        w[first + l] *= inverse;
        lanes[l] += w[first + l] == 0 ? 0.0f : w[first + l] * g[first + l];
      }
    }
    for (const float lane : lanes) mean += lane;
    const float away = d_lse - mean;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) g[j] = w[j] == 0 ? 0.0f : w[j] * (g[j] + away);
  }
  [[gnu::always_inline]] static inline void note(const float* w, int64_t n, float least, int32_t step, int32_t* last,
                                                 int32_t* times) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const bool attended = w[j] > least;
      last[j] = attended ? step : last[j];
      times[j] += attended ? 1 : 0;
    }
  }
};

// clang-format off
#define ATTEND_SLOT_LOOPS(name, TARGET)                                                                              \
  TARGET inline int64_t slot_hide_##name(const int32_t* token, int64_t n, int32_t newest, float* s) {                \
    return SlotLoop::hide(token, n, newest, s);                                                                      \
  }                                                                                                                  \
  TARGET inline void slot_dots_##name(const float* q, int64_t d, const float* panels, int64_t n, double scale,       \
                                      double* exact) {                                                               \
    SlotLoop::dots(q, d, panels, n, scale, exact);                                                                   \
  }                                                                                                                  \
  TARGET inline bool slot_any_between_##name(const float* w, int64_t n, float low, float high) {                     \
    return SlotLoop::any_between(w, n, low, high);                                                                   \
  }                                                                                                                  \
  TARGET inline void slot_slopes_##name(float* w, float* g, int64_t n, float inverse, float d_lse) {                 \
    SlotLoop::slopes(w, g, n, inverse, d_lse);                                                                       \
  }                                                                                                                  \
  TARGET inline void slot_note_##name(const float* w, int64_t n, float least, int32_t step, int32_t* last,           \
                                      int32_t* times) {                                                              \
    SlotLoop::note(w, n, least, step, last, times);                                                                  \
  }                                                                                                                  \
  inline constexpr SlotLoops kSlotLoops_##name = {slot_hide_##name, slot_dots_##name, slot_any_between_##name,       \
                                                  slot_slopes_##name, slot_note_##name};
// clang-format on
ATTEND_SLOT_LOOPS(avx2, ATTEND_TARGET_AVX2)
ATTEND_SLOT_LOOPS(avx512, ATTEND_TARGET_AVX512)
#undef ATTEND_SLOT_LOOPS

}  // namespace attend::exact
