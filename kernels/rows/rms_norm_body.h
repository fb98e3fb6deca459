#pragma once

#include <cstdint>

#include "kernels/base/math.h"

// Private to rms_norm.cpp and rms_norm_avx2.cpp: everything but the sum of squares. Plain loops, vectorised for the
// file's instruction set.

namespace foretoken {
namespace {

inline float rms_inverse(float sum, int64_t n, float eps) {
  return 1.0f / __builtin_sqrtf(sum / static_cast<float>(n) + eps);
}

inline float l2_inverse(float sum, float eps) {
  const float norm = __builtin_sqrtf(sum);
  return 1.0f / (norm > eps ? norm : eps);
}

inline void scale_by_weight(const float* x, float inverse, const float* weight, int64_t n, float* out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) out[i] = (x[i] * inverse) * weight[i];
}

inline void scale_by_weight_and_gate(const float* x, float inverse, const float* weight, const float* z, int64_t n,
                                     float* out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) out[i] = ((x[i] * inverse) * weight[i]) * math::silu(z[i]);
}

inline void scale_by(const float* x, float inverse, int64_t n, float* out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * inverse;
}

}  // namespace
}  // namespace foretoken
