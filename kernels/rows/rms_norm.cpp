#include "kernels/rows/rms_norm.h"

#include "kernels/float_isa.h"
#include "kernels/matmul/matmul.h"
#include "kernels/rows/rms_norm_body.h"

namespace foretoken {

namespace {

float scalar_float_dot(const float* a, const float* b, int64_t n) {
  float lanes[kFloatLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i % kFloatLanes] = math::fma(a[i], b[i], lanes[i % kFloatLanes]);
  for (int half = kFloatLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

}  // namespace

float rms_norm(Isa isa, const float* x, const float* weight, int64_t n, float eps, float* out) {
  if (isa != Isa::kScalar) return avx2_rms_norm(x, weight, n, eps, out);
  const float sum = scalar_float_dot(x, x, n);
  scale_by_weight(x, rms_inverse(sum, n, eps), weight, n, out);
  return sum;
}

float rms_norm_gated(Isa isa, const float* x, const float* weight, const float* z, int64_t n, float eps, float* out) {
  if (isa != Isa::kScalar) return avx2_rms_norm_gated(x, weight, z, n, eps, out);
  const float sum = scalar_float_dot(x, x, n);
  scale_by_weight_and_gate(x, rms_inverse(sum, n, eps), weight, z, n, out);
  return sum;
}

float l2_norm(Isa isa, const float* x, int64_t n, float eps, float* out) {
  if (isa != Isa::kScalar) return avx2_l2_norm(x, n, eps, out);
  const float sum = scalar_float_dot(x, x, n);
  scale_by(x, l2_inverse(sum, eps), n, out);
  return sum;
}

float float_dot(Isa isa, const float* a, const float* b, int64_t n) {
  return isa == Isa::kScalar ? scalar_float_dot(a, b, n) : avx2_float_dot(a, b, n);
}

}  // namespace foretoken
