#pragma once

#include "kernels/base/math.h"

// Private to rope.cpp and rope_avx2.cpp.

namespace foretoken {
namespace {

inline void rotate_pairs(const float* cos, const float* sin, int half_dim, float* x) {
#pragma GCC ivdep
  for (int i = 0; i < half_dim; ++i) {
    const float a = x[i], b = x[i + half_dim];
    x[i] = math::fma(a, cos[i], -(b * sin[i]));
    x[i + half_dim] = math::fma(a, sin[i], b * cos[i]);
  }
}

inline void rotate_adjacent(const float* cos, const float* sin, int half_dim, float* x) {
#pragma GCC ivdep
  for (int i = 0; i < half_dim; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = math::fma(a, cos[i], -(b * sin[i]));
    x[2 * i + 1] = math::fma(a, sin[i], b * cos[i]);
  }
}

}  // namespace
}  // namespace foretoken
