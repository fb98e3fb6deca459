#include "kernels/quant_matmul.h"

namespace foretoken {

namespace {

constexpr uint32_t kInfinityBits = 0x7f800000u;

// Magnitudes of floats order like their bits, infinity and NaN above all; so the largest is exact and the order free.
uint32_t largest_magnitude(const float* x, int count) {
  const __m512i mask = _mm512_set1_epi32(0x7fffffff);
  __m512i largest = _mm512_setzero_si512();
  for (int i = 0; i < count; i += 16) {
    const __m512i bits = _mm512_castps_si512(_mm512_loadu_ps(x + i));
    largest = _mm512_max_epi32(largest, _mm512_and_si512(bits, mask));
  }
  const __m256i eight = _mm256_max_epi32(_mm512_castsi512_si256(largest), _mm512_extracti64x4_epi64(largest, 1));
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(four));
}

float float_from_bits(uint32_t bits) {
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(bits))));
}

// 16 values to int8, with their sum.
void quantise_16(const float* x, __m512 inverse, int8_t* q, int16_t* sum) {
  const __m128i packed = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), inverse)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q), packed);
  // Sums of eight bytes biased by 128 each.
  const __m128i eights = _mm_sad_epu8(_mm_xor_si128(packed, _mm_set1_epi8(-128)), _mm_setzero_si128());
  const __m128i all = _mm_add_epi64(eights, _mm_shuffle_epi32(eights, 0x4e));
  *sum = static_cast<int16_t>(_mm_cvtsi128_si32(all) - 16 * 128);
}

}  // namespace

void FT_KERNEL(avx512_quantise_row)(const float* values, int64_t num_cols, int block, int8_t* q, float* d,
                                    int16_t* sums) {
  for (int64_t begin = 0; begin < num_cols; begin += block) {
    const uint32_t largest = largest_magnitude(values + begin, block);
    const float amax = float_from_bits(largest);
    const float inverse = 127.0f / amax;
    const bool finite = largest < kInfinityBits;
    if (finite && inverse <= __FLT_MAX__) {
      d[begin / block] = amax / 127.0f;
      for (int64_t i = begin; i < begin + block; i += 16) {
        quantise_16(values + i, _mm512_set1_ps(inverse), q + i, sums + i / 16);
      }
    } else {
      d[begin / block] = finite ? 0.0f : __builtin_nanf("");
      for (int64_t i = begin; i < begin + block; ++i) q[i] = 0;
      for (int64_t i = begin / 16; i < (begin + block) / 16; ++i) sums[i] = 0;
    }
  }
}

}  // namespace foretoken
