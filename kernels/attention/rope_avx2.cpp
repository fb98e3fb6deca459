#include "kernels/attention/rope_body.h"
#include "kernels/float_isa.h"

namespace foretoken {

void avx2_rope(const float* cos, const float* sin, int half_dim, float* x) {
  rotate_pairs(cos, sin, half_dim, x);
}

void avx2_rope_adjacent(const float* cos, const float* sin, int half_dim, float* x) {
  rotate_adjacent(cos, sin, half_dim, x);
}

}  // namespace foretoken
