#pragma once

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_language.h"
#include "kernels/matmul/matmul.h"

// Rule 2 of the contract for one warp, a lane for each of the 32 strided sums.

namespace foretoken::cuda {

static_assert(kFloatLanes == kWarpSize);

/// sum a[i] * b[i], in every lane.
__device__ __forceinline__ float warp_dot(const float* a, const float* b, int64_t n, int lane) {
  float sum = 0.0f;
  for (int64_t i = lane; i < n; i += kWarpSize) sum = __fmaf_rn(a[i], b[i], sum);
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
