#pragma once

#include <cstdint>

#include "kernels/base/math.h"

// Private to elementwise.cpp and elementwise_avx2.cpp: plain loops, which the compiler vectorises for the file's
// instruction set. `ivdep` says that no iteration needs another's result; an output may still be the same array as an
// input.

namespace foretoken {
namespace {

inline void silu_mul_loop(const float* gate, const float* up, int64_t n, float* out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) out[i] = math::silu(gate[i]) * up[i];
}

inline void sigmoid_gate_loop(const float* gate, int64_t n, float* x) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] * math::sigmoid(gate[i]);
}

inline void add_loop(const float* y, int64_t n, float* x) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] + y[i];
}

inline void add_scaled_loop(float scale, const float* x, int64_t n, float* y) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) y[i] = math::fma(scale, x[i], y[i]);
}

inline void scale_row_loop(float scale, const float* x, int64_t n, float* out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) out[i] = scale * x[i];
}

// Magnitudes of floats order like their bits, infinity and NaN above all; so the largest is exact and the order free.
inline float largest_magnitude_loop(const float* x, int64_t n) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t magnitude = math::bits_of(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return math::float_from_bits(largest);
}

}  // namespace
}  // namespace foretoken
