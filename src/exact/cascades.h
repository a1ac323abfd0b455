#pragma once
// What cascades of einsums (attend/tensor/cascade.h) of this room's entries share. Macros, because adjacent literals
// join.

// Of scores s[i,j]: the softmax over keys and the weighted sum of values.
#define ATTEND_CASCADE_OF_SCORES  \
  "m[i] = max_j s[i,j]\n"         \
  "p[i,j] = exp(s[i,j] - m[i])\n" \
  "z[i] = sum_j p[i,j]\n"         \
  "w[i,j] = p[i,j] / z[i]\n"      \
  "o[i,c] = sum_j w[i,j] * v[j,c]"
