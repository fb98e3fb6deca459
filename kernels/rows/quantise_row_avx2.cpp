#include "kernels/matmul/quant_matmul.h"
#include "kernels/rows/quantise_row_body.h"

namespace foretoken {

namespace {

struct Steps {
  static constexpr int kWidth = 32;

  // Magnitudes of floats order like their bits, infinity and NaN above all; so the largest is exact and the order free.
  static uint32_t largest_magnitude(const float* x, int count) {
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    __m256i largest = _mm256_setzero_si256();
    for (int i = 0; i < count; i += 8) {
      const __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(x + i));
      largest = _mm256_max_epi32(largest, _mm256_and_si256(bits, mask));
    }
    return largest_of(largest);
  }

  // 32 values to int8, with the sums of both halves.
  static void quantise(const float* x, float factor, int8_t* q, int16_t* sums) {
    const __m256 inverse = _mm256_set1_ps(factor);
    __m256i part[4];
    for (int i = 0; i < 4; ++i) part[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), inverse));
    const __m256i packed =
        _mm256_packs_epi16(_mm256_packs_epi32(part[0], part[1]), _mm256_packs_epi32(part[2], part[3]));
    // The packs work within 128 bits; this puts the fours back in order.
    const __m256i ordered = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), ordered);
    // Sums of eight bytes biased by 128 each.
    const __m256i biased = _mm256_xor_si256(ordered, _mm256_set1_epi8(-128));
    const __m256i eights = _mm256_sad_epu8(biased, _mm256_setzero_si256());
    const __m256i sixteens = _mm256_add_epi64(eights, _mm256_shuffle_epi32(eights, 0x4e));
    sums[0] = static_cast<int16_t>(_mm_cvtsi128_si32(_mm256_castsi256_si128(sixteens)) - 16 * 128);
    sums[1] = static_cast<int16_t>(_mm_cvtsi128_si32(_mm256_extracti128_si256(sixteens, 1)) - 16 * 128);
  }
};

}  // namespace

void avx2_quantise_row(const float* values, int64_t num_cols, int block, int8_t* q, float* d, int16_t* sums) {
  quantise_row_with<Steps>(values, num_cols, block, q, d, sums);
}

}  // namespace foretoken
