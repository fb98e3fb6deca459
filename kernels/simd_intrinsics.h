#pragma once

// Private to the per-ISA files. The processor's intrinsics; or, where FORETOKEN_SIMD_EMULATION is defined, SIMDe's portable forms of the
// AVX-512 ones, so that the same sources are tested on machines without AVX-512. SIMDe falls back to an unfused multiply-add without
// FMA, which would change bits: an emulated file is therefore compiled with -mavx2 -mfma -mf16c.
//
// FT_KERNEL(avx512_rms_norm) is the name of an entry point in either build: the emulated copy is emulated_avx512_rms_norm, so that a test
// can link both.
#ifdef FORETOKEN_SIMD_EMULATION
#ifndef __FMA__
#error "compile emulated AVX-512 files with -mavx2 -mfma -mf16c: SIMDe's multiply-add is not fused without them"
#endif
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>
#define FT_KERNEL(name) emulated_##name
#else
#include <immintrin.h>
#define FT_KERNEL(name) name
#endif
