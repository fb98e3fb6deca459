#pragma once

// Private to the per-ISA files. The processor's intrinsics; or, where FORETOKEN_SIMD_EMULATION is defined, SIMDe's
// portable forms of the AVX-512 ones, so that the same sources are tested on machines without AVX-512. SIMDe falls back
// to an unfused multiply-add without FMA, which would change bits: an emulated file is therefore compiled with -mavx2
// -mfma -mf16c.
//
// FT_KERNEL(avx512_rms_norm) is the name of an entry point in either build: the emulated copy is
// emulated_avx512_rms_norm, so that a test can link both.
#ifdef FORETOKEN_SIMD_EMULATION
#ifndef __FMA__
#error "compile emulated AVX-512 files with -mavx2 -mfma -mf16c: SIMDe's multiply-add is not fused without them"
#endif
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>
// Forms that SIMDe lacks.
#undef _mm512_cvtph_ps
#define _mm512_cvtph_ps(half)                                                               \
  _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_cvtph_ps(_mm256_castsi256_si128(half))), \
                     _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1)), 1)
#undef _mm512_cvtepu16_epi32
#define _mm512_cvtepu16_epi32(x)                                                               \
  _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x))), \
                     _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1)), 1)
#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32(x)                                                               \
  _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_cvtps_epi32(_mm512_castps512_ps256(x))), \
                     _mm256_cvtps_epi32(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1))), 1)
#undef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps(x)                                                               \
  _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_cvtepi32_ps(_mm512_castsi512_si256(x))), \
                     _mm256_cvtepi32_ps(_mm512_extracti64x4_epi64(x, 1)), 1)
#undef _mm512_cvtepu8_epi32
#define _mm512_cvtepu8_epi32(x) \
  _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_cvtepu8_epi32(x)), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8)), 1)
#undef _mm512_cvtepi32_epi16
#define _mm512_cvtepi32_epi16(x)                                                                         \
  _mm256_permute4x64_epi64(                                                                              \
      _mm256_packus_epi32(_mm256_and_si256(_mm512_castsi512_si256(x), _mm256_set1_epi32(0xffff)),        \
                          _mm256_and_si256(_mm512_extracti64x4_epi64(x, 1), _mm256_set1_epi32(0xffff))), \
      0xd8)
#undef _mm512_srai_epi32
#define _mm512_srai_epi32(x, count)                                                               \
  _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_srai_epi32(_mm512_castsi512_si256(x), count)), \
                     _mm256_srai_epi32(_mm512_extracti64x4_epi64(x, 1), count), 1)
#undef _mm512_madd_epi16  // SIMDe 0.7.4 gives this alias the masked form's arguments
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)
#undef _mm256_dpbusd_avx_epi32
#define _mm256_dpbusd_avx_epi32(sum, a, b) simde_mm256_dpbusd_epi32(sum, a, b)
#define FT_KERNEL(name) emulated_##name
#else
// GCC 12's AVX-512 intrinsics initialise a don't-care register with itself, which its own warning calls a fault (GCC
// bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#define FT_KERNEL(name) name
#endif
