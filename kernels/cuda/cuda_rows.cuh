#pragma once

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_language.h"
#include "kernels/cuda/cuda_rows.h"

// Device code of quantise_row: how the int8 forms of rows are made, by the kernels that make a row and quantise it at
// once.

namespace foretoken::cuda {

/// Eight values of a lane as int8, with their sum.
struct QuantisedEight {
  uint32_t words[2];
  int sum;
};

/// Quantises by the largest magnitude (as bits) of the block that the values belong to; d is the block's scale.
__device__ __forceinline__ QuantisedEight quantise_eight(const float (&x)[8], uint32_t largest, float& d) {
  const float amax = math::float_from_bits(largest);
  const float inverse = 127.0f / amax;  // amax = 0 gives infinity
  const bool finite = largest < 0x7f800000u;
  const bool zero = !finite || inverse > 0x1.fffffep+127f;
  d = !finite ? math::float_from_bits(0x7fc00000u) : zero ? 0.0f : amax / 127.0f;
  QuantisedEight out{{0, 0}, 0};
  for (int i = 0; i < 8; ++i) {
    const int q = zero ? 0 : __float2int_rn(x[i] * inverse);
    out.words[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(q)) << (8 * (i % 4));
    out.sum += q;
  }
  return out;
}

struct alignas(16) FourValues {
  float x[4];
};

/// One warp quantises values [256 * chunk, + 256) of a row that ends at num_cols; `values` are the row's, from there on. Magnitudes order like their bits, so
/// the largest is exact. Eight values of a lane are two vectors: value by value, 32 lanes would meet in four banks of
/// shared memory. REQUIRES: values is aligned to 16 bytes, num_cols a multiple of 8.
__device__ __forceinline__ void quantise_chunk(const float* values, int64_t num_cols, int64_t chunk, int lane,
                                               const QuantRows& by32, const QuantRows& by256, int64_t row) {
  const int64_t first = chunk * 256 + lane * 8;  // of the row
  const bool inside = first < num_cols;
  float x[8] = {};
  if (inside) {
    const auto* vectors = reinterpret_cast<const FourValues*>(values + lane * 8);
    const FourValues front = vectors[0], back = vectors[1];
    for (int i = 0; i < 4; ++i) {
      x[i] = front.x[i];
      x[4 + i] = back.x[i];
    }
  }
  uint32_t largest = 0;
  for (int i = 0; i < 8; ++i) {
    const uint32_t magnitude = math::bits_of(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  for (int half = 1; half < 4; half *= 2) {
    const uint32_t other = __shfl_xor_sync(kAllLanes, largest, half);
    largest = other > largest ? other : largest;
  }
  if (!by32.empty()) {  // four lanes hold a block
    float d;
    const QuantisedEight mine = quantise_eight(x, largest, d);
    int sum = mine.sum + __shfl_xor_sync(kAllLanes, mine.sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    if (inside) {
      // Words 0..3 of a block go to the front halves of lanes 0..3, words 4..7 to the back halves.
      const int word = lane % 4 * 2;
      auto* q = reinterpret_cast<uint32_t*>(by32.q + row * q_stride(32, by32.num_blocks)) + first / 32 * 8;
      q[word % 4 * 2 + word / 4] = mine.words[0];
      q[(word + 1) % 4 * 2 + (word + 1) / 4] = mine.words[1];
      if (lane % 4 == 0) {
        by32.d[row * by32.num_blocks + first / 32] = d;
        by32.sums[row * sums_stride(32, by32.num_blocks) + first / 32] = static_cast<int16_t>(sum);
      }
    }
  }
  if (!by256.empty()) {  // the warp holds a block
    for (int half = 4; half < kWarpSize; half *= 2) {
      const uint32_t other = __shfl_xor_sync(kAllLanes, largest, half);
      largest = other > largest ? other : largest;
    }
    float d;
    const QuantisedEight mine = quantise_eight(x, largest, d);
    const int sum = mine.sum + __shfl_xor_sync(kAllLanes, mine.sum, 1);
    const int run = lane / 2, t = run / 8 * 2 + run % 2, j = run % 8 / 2;  // run == run_of_lane(t, j)
    int8_t* q = by256.q + row * q_stride(256, by256.num_blocks) + run_offset(chunk, t, j) + lane % 2 * 8;
    *reinterpret_cast<uint2*>(q) = uint2{mine.words[0], mine.words[1]};
    if (lane % 2 == 0)
      by256.sums[row * sums_stride(256, by256.num_blocks) + chunk * 16 + 4 * t + j] = static_cast<int16_t>(sum);
    if (lane == 0) by256.d[row * by256.num_blocks + chunk] = d;
  }
}

}  // namespace foretoken::cuda
