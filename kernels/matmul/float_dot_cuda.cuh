#pragma once

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_language.h"
#include "kernels/matmul/matmul.h"

// Rule 2 of the contract for one warp, a lane for each of the 32 strided sums.

namespace foretoken::cuda {

static_assert(kFloatLanes == kWarpSize);

/// Values of each side that a lane of warp_dot asks for at once.
inline constexpr int kDotAhead = 8;

/// sum a[i] * b[i], in every lane.
__device__ __forceinline__ float warp_dot(const float* a, const float* b, int64_t n, int lane) {
  float sum = 0.0f;
  int64_t i = lane;
  for (; i + (kDotAhead - 1) * kWarpSize < n; i += kDotAhead * kWarpSize) {
    float x[kDotAhead], y[kDotAhead];
    FT_UNROLL
    for (int s = 0; s < kDotAhead; ++s) {
      x[s] = a[i + s * kWarpSize];
      y[s] = b[i + s * kWarpSize];
    }
    FT_UNROLL
    for (int s = 0; s < kDotAhead; ++s) sum = __fmaf_rn(x[s], y[s], sum);
  }
  for (; i < n; i += kWarpSize) sum = __fmaf_rn(a[i], b[i], sum);
  return fold_lanes(sum);
}

__device__ __forceinline__ float square_root(float x) {
#ifdef __CUDA_ARCH__
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}

/// 1 / sqrt(sum / n + eps).
__device__ __forceinline__ float rms_inverse(float sum, int64_t n, float eps) {
  return 1.0f / square_root(sum / static_cast<float>(n) + eps);
}

/// 1 / max(sqrt(sum), eps).
__device__ __forceinline__ float l2_inverse(float sum, float eps) {
  const float norm = square_root(sum);
  return 1.0f / (norm > eps ? norm : eps);
}

}  // namespace foretoken::cuda
