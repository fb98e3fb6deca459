#pragma once

#include <cstdint>

#include "kernels/base/simd_intrinsics.h"

// Private to the quantise_row_avx*.cpp: a row over the two steps in which the instruction sets differ.

namespace foretoken {
namespace {

/// The largest of eight lanes, none negative.
inline uint32_t largest_of(__m256i eight) {
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(four));
}

/// Rule 1 of the contract, block by block. S::largest_magnitude(x, count): the bits of the largest |x|;
/// S::quantise(x, inverse, q, sums): S::kWidth values to int8 and the sums of each 16 of them.
template <class S>
void quantise_row_with(const float* values, int64_t num_cols, int block, int8_t* q, float* d, int16_t* sums) {
  constexpr uint32_t kInfinityBits = 0x7f800000u;
  for (int64_t begin = 0; begin < num_cols; begin += block) {
    const uint32_t largest = S::largest_magnitude(values + begin, block);
    const float amax = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(largest))));
    const float inverse = 127.0f / amax;
    const bool finite = largest < kInfinityBits;
    if (finite && inverse <= __FLT_MAX__) {
      d[begin / block] = amax / 127.0f;
      for (int64_t i = begin; i < begin + block; i += S::kWidth) S::quantise(values + i, inverse, q + i, sums + i / 16);
    } else {
      d[begin / block] = finite ? 0.0f : __builtin_nanf("");
      for (int64_t i = begin; i < begin + block; ++i) q[i] = 0;
      for (int64_t i = begin / 16; i < (begin + block) / 16; ++i) sums[i] = 0;
    }
  }
}

}  // namespace
}  // namespace foretoken
