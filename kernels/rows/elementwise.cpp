#include "kernels/rows/elementwise.h"

#include "kernels/float_isa.h"
#include "kernels/rows/elementwise_body.h"

namespace foretoken {

void silu_mul(Isa isa, const float* gate, const float* up, int64_t n, float* out) {
  isa == Isa::kScalar ? silu_mul_loop(gate, up, n, out) : avx2_silu_mul(gate, up, n, out);
}

void sigmoid_gate(Isa isa, const float* gate, int64_t n, float* x) {
  isa == Isa::kScalar ? sigmoid_gate_loop(gate, n, x) : avx2_sigmoid_gate(gate, n, x);
}

void add(Isa isa, const float* y, int64_t n, float* x) {
  isa == Isa::kScalar ? add_loop(y, n, x) : avx2_add(y, n, x);
}

void add_scaled(Isa isa, float scale, const float* x, int64_t n, float* y) {
  isa == Isa::kScalar ? add_scaled_loop(scale, x, n, y) : avx2_add_scaled(scale, x, n, y);
}

void scale_row(Isa isa, float scale, const float* x, int64_t n, float* out) {
  isa == Isa::kScalar ? scale_row_loop(scale, x, n, out) : avx2_scale_row(scale, x, n, out);
}

float largest_magnitude(Isa isa, const float* x, int64_t n) {
  return isa == Isa::kScalar ? largest_magnitude_loop(x, n) : avx2_largest_magnitude(x, n);
}

}  // namespace foretoken
