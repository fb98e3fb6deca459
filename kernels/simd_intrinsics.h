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
