#include "kernels/float_isa.h"
#include "kernels/rows/elementwise_body.h"

namespace foretoken {

void avx2_silu_mul(const float* gate, const float* up, int64_t n, float* out) {
  silu_mul_loop(gate, up, n, out);
}

void avx2_sigmoid_gate(const float* gate, int64_t n, float* x) {
  sigmoid_gate_loop(gate, n, x);
}

void avx2_add(const float* y, int64_t n, float* x) {
  add_loop(y, n, x);
}

void avx2_add_scaled(float scale, const float* x, int64_t n, float* y) {
  add_scaled_loop(scale, x, n, y);
}

void avx2_scale_row(float scale, const float* x, int64_t n, float* out) {
  scale_row_loop(scale, x, n, out);
}

float avx2_largest_magnitude(const float* x, int64_t n) {
  return largest_magnitude_loop(x, n);
}

}  // namespace foretoken
