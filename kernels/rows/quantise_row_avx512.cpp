#include "kernels/matmul/quant_matmul.h"
#include "kernels/rows/quantise_row_body.h"

namespace foretoken {

namespace {

struct Steps {
  static constexpr int kWidth = 16;

  // Magnitudes of floats order like their bits, infinity and NaN above all; so the largest is exact and the order free.
  static uint32_t largest_magnitude(const float* x, int count) {
    const __m512i mask = _mm512_set1_epi32(0x7fffffff);
    __m512i largest = _mm512_setzero_si512();
    for (int i = 0; i < count; i += 16) {
      const __m512i bits = _mm512_castps_si512(_mm512_loadu_ps(x + i));
      largest = _mm512_max_epi32(largest, _mm512_and_si512(bits, mask));
    }
    return largest_of(_mm256_max_epi32(_mm512_castsi512_si256(largest), _mm512_extracti64x4_epi64(largest, 1)));
  }

  // 16 values to int8, with their sum.
  static void quantise(const float* x, float factor, int8_t* q, int16_t* sum) {
    const __m512 inverse = _mm512_set1_ps(factor);
    const __m128i packed = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), inverse)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q), packed);
    // Sums of eight bytes biased by 128 each.
    const __m128i eights = _mm_sad_epu8(_mm_xor_si128(packed, _mm_set1_epi8(-128)), _mm_setzero_si128());
    const __m128i all = _mm_add_epi64(eights, _mm_shuffle_epi32(eights, 0x4e));
    *sum = static_cast<int16_t>(_mm_cvtsi128_si32(all) - 16 * 128);
  }
};

}  // namespace

void FT_KERNEL(avx512_quantise_row)(const float* values, int64_t num_cols, int block, int8_t* q, float* d,
                                    int16_t* sums) {
  quantise_row_with<Steps>(values, num_cols, block, q, d, sums);
}

}  // namespace foretoken
