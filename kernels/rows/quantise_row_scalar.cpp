#include <bit>
#include <cmath>
#include <limits>

#include "kernels/matmul/quant_matmul.h"

namespace foretoken {

void scalar_quantise_row(const float* values, int64_t num_cols, int block, int8_t* q, float* d, int16_t* sums) {
  for (int64_t begin = 0; begin < num_cols; begin += block) {
    const float* const x = values + begin;
    // Magnitudes of floats order like their bits, infinity and NaN above all, so the largest is exact and the order
    // free.
    uint32_t largest = 0;
    for (int i = 0; i < block; ++i) {
      const uint32_t magnitude = std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
      largest = magnitude > largest ? magnitude : largest;
    }
    const float amax = std::bit_cast<float>(largest);
    const float inverse = 127.0f / amax;  // amax = 0 gives infinity
    const bool not_finite = largest >= 0x7f800000u;
    const bool zero = not_finite || inverse > std::numeric_limits<float>::max();
    d[begin / block] = not_finite ? std::numeric_limits<float>::quiet_NaN() : zero ? 0.0f : amax / 127.0f;
    for (int i = 0; i < block; ++i) {
      q[begin + i] = zero ? int8_t{0} : static_cast<int8_t>(std::nearbyint(x[i] * inverse));
    }
    for (int64_t run = begin; run < begin + block; run += 16) {
      int sum = 0;
      for (int i = 0; i < 16; ++i) sum += q[run + i];
      sums[run / 16] = static_cast<int16_t>(sum);
    }
  }
}

}  // namespace foretoken
