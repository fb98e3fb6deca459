#include "kernels/base/simd_float.h"
#include "kernels/float_isa.h"
#include "kernels/rows/rms_norm_body.h"

namespace foretoken {

float avx2_float_dot(const float* a, const float* b, int64_t n) {
  F32x8 lanes[4] = {F32x8::zero(), F32x8::zero(), F32x8::zero(), F32x8::zero()};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int g = 0; g < 4; ++g) lanes[g] = fma(F32x8::load(a + i + 8 * g), F32x8::load(b + i + 8 * g), lanes[g]);
  }
  if (i < n) {
    float a_tail[kLanes], b_tail[kLanes];
    copy_tail(a + i, n - i, 0.0f, a_tail);
    copy_tail(b + i, n - i, -0.0f, b_tail);
    for (int g = 0; g < 4; ++g) lanes[g] = fma(F32x8::load(a_tail + 8 * g), F32x8::load(b_tail + 8 * g), lanes[g]);
  }
  return fold_lanes(lanes);
}

float avx2_rms_norm(const float* x, const float* weight, int64_t n, float eps, float* out) {
  const float sum = avx2_float_dot(x, x, n);
  scale_by_weight(x, rms_inverse(sum, n, eps), weight, n, out);
  return sum;
}

float avx2_rms_norm_gated(const float* x, const float* weight, const float* z, int64_t n, float eps, float* out) {
  const float sum = avx2_float_dot(x, x, n);
  scale_by_weight_and_gate(x, rms_inverse(sum, n, eps), weight, z, n, out);
  return sum;
}

float avx2_l2_norm(const float* x, int64_t n, float eps, float* out) {
  const float sum = avx2_float_dot(x, x, n);
  scale_by(x, l2_inverse(sum, eps), n, out);
  return sum;
}

}  // namespace foretoken
