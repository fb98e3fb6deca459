#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/simd_intrinsics.h"

// Private to the per-ISA files of the quantised kernels: a register of 32-bit lanes, each an output row, so that a
// kernel is written once for all widths. In an anonymous namespace and force-inlined, so that every file has its own
// copy.

#ifndef FT_INLINE
#define FT_INLINE inline __attribute__((always_inline))
#endif

namespace foretoken {
namespace {

/// Eight lanes in an AVX2 register. kDot: has the four-way int8 dot product (AVX-VNNI).
template <bool kHasDot>
struct Lanes8 {
  static constexpr int kLanes = 8;
  static constexpr bool kDot = kHasDot;
  using Int = __m256i;
  using Float = __m256;

  static FT_INLINE Int load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static FT_INLINE void store(void* p, Int x) { _mm256_store_si256(static_cast<__m256i*>(p), x); }
  /// The same four bytes in every lane.
  static FT_INLINE Int broadcast(const void* p) {
    int32_t word;
    __builtin_memcpy(&word, p, 4);
    return _mm256_set1_epi32(word);
  }
  static FT_INLINE Int zero() { return _mm256_setzero_si256(); }
  static FT_INLINE Int splat8(int x) { return _mm256_set1_epi8(static_cast<char>(x)); }
  static FT_INLINE Int splat16(int x) { return _mm256_set1_epi16(static_cast<int16_t>(x)); }
  static FT_INLINE Int splat32(int x) { return _mm256_set1_epi32(x); }
  static FT_INLINE Int and_(Int a, Int b) { return _mm256_and_si256(a, b); }
  static FT_INLINE Int or_(Int a, Int b) { return _mm256_or_si256(a, b); }
  static FT_INLINE Int xor_(Int a, Int b) { return _mm256_xor_si256(a, b); }
  static FT_INLINE Int add8(Int a, Int b) { return _mm256_add_epi8(a, b); }
  static FT_INLINE Int sub8(Int a, Int b) { return _mm256_sub_epi8(a, b); }
  /// Unsigned: a - b, or 0 where b is larger; the smaller one.
  static FT_INLINE Int subtract_or_zero8(Int a, Int b) { return _mm256_subs_epu8(a, b); }
  static FT_INLINE Int min8(Int a, Int b) { return _mm256_min_epu8(a, b); }
  static FT_INLINE Int add16(Int a, Int b) { return _mm256_add_epi16(a, b); }
  static FT_INLINE Int sub16(Int a, Int b) { return _mm256_sub_epi16(a, b); }
  static FT_INLINE Int add32(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static FT_INLINE Int mul16(Int a, Int b) { return _mm256_mullo_epi16(a, b); }
  static FT_INLINE Int mul32(Int a, Int b) { return _mm256_mullo_epi32(a, b); }
  /// The lower half of each lane of a, and that of b in the upper half. REQUIRES: b has both halves alike or, with kDot,
  /// both have the upper half 0.
  static FT_INLINE Int join16(Int a, Int b) {
    if constexpr (kDot) return or_(a, shift32<-16>(b));
    return _mm256_blend_epi16(a, b, 0xaa);
  }
  /// Shifts within 16 bits; a negative count shifts left.
  template <int kRight>
  static FT_INLINE Int shift16(Int a) {
    if constexpr (kRight > 0) return _mm256_srli_epi16(a, kRight);
    if constexpr (kRight < 0) return _mm256_slli_epi16(a, -kRight);
    return a;
  }
  template <int kRight>
  static FT_INLINE Int shift32(Int a) {
    if constexpr (kRight > 0) return _mm256_srli_epi32(a, kRight);
    if constexpr (kRight < 0) return _mm256_slli_epi32(a, -kRight);
    return a;
  }
  static FT_INLINE Int shift_right32(Int a, int count) { return _mm256_srl_epi32(a, _mm_cvtsi32_si128(count)); }
  template <int kRight>
  static FT_INLINE Int arithmetic16(Int a) {
    return _mm256_srai_epi16(a, kRight);
  }
  template <int kRight>
  static FT_INLINE Int arithmetic32(Int a) {
    return _mm256_srai_epi32(a, kRight);
  }
  /// Both halves. GCC folds the shuffle of a constant, the intrinsic it would execute each time.
  static FT_INLINE Int twice(__m128i x) {
#if defined(FORETOKEN_SIMD_EMULATION)
    return _mm256_broadcastsi128_si256(x);
#else
    return reinterpret_cast<Int>(__builtin_shufflevector(x, x, 0, 1, 0, 1));
#endif
  }
  /// Bytes of each 128 bits of a by the pattern's low four bits; zero where the pattern's top bit is set.
  static FT_INLINE Int shuffle(Int a, __m128i pattern) {
    return _mm256_shuffle_epi8(a, twice(pattern));
  }
  static FT_INLINE Int look_up(__m128i table, Int index) {
    return _mm256_shuffle_epi8(twice(table), index);
  }
  /// Bytes that have any of the bits of `mask`: value, else 0. mask has one bit set in each byte.
  static FT_INLINE Int where_set(Int a, Int mask, int value) {
    return and_(_mm256_cmpeq_epi8(and_(a, mask), mask), splat8(value));
  }
  /// 16-bit lanes other than x, 0 for those that are x.
  static FT_INLINE Int clear_where16(Int a, int x) {
    return _mm256_andnot_si256(_mm256_cmpeq_epi16(a, splat16(x)), a);
  }
  /// Pairs of u8 x s8 summed in int16, saturating: callers bound it.
  static FT_INLINE Int pairs(Int u, Int s) {
    return _mm256_maddubs_epi16(u, s);
  }
  /// Pairs of int16 x int16 summed in int32.
  static FT_INLINE Int madd(Int a, Int b) {
    return _mm256_madd_epi16(a, b);
  }
  /// sum + the four u8 x s8 of each lane.
  static FT_INLINE Int dot(Int sum, Int u, Int s) {
#if defined(__AVXVNNI__) || defined(FORETOKEN_SIMD_EMULATION)
    if constexpr (kDot) return _mm256_dpbusd_avx_epi32(sum, u, s);
#endif
    return add32(sum, madd(pairs(u, s), splat16(1)));
  }
  /// What multiplies s8 x s8 needs of w: its magnitudes, and w to carry signs over.
  struct Signed {
    Int magnitude, sign;
  };
  /// The weights' side of a product, once for all rows.
  template <bool kSigned>
  static FT_INLINE auto factor(Int w) {
    if constexpr (kSigned) {
      return Signed{_mm256_abs_epi8(w), w};
    } else {
      return w;
    }
  }
  static FT_INLINE Int pairs(const Signed& w, Int s) {
    return pairs(w.magnitude, _mm256_sign_epi8(s, w.sign));
  }

  static FT_INLINE Float to_float(Int x) {
    return _mm256_cvtepi32_ps(x);
  }
  static FT_INLINE Float as_float(Int x) {
    return _mm256_castsi256_ps(x);
  }
  static FT_INLINE Float load_float(const float* p) {
    return _mm256_load_ps(p);
  }
  static FT_INLINE void store_float(float* p, Float x) {
    _mm256_store_ps(p, x);
  }
  static FT_INLINE void store_unaligned(float* p, Float x) {
    _mm256_storeu_ps(p, x);
  }
  static FT_INLINE Float broadcast_float(const float* p) {
    return _mm256_broadcast_ss(p);
  }
  static FT_INLINE Float negate(Float a) {
    return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f));
  }
  static FT_INLINE Float add(Float a, Float b) {
    return _mm256_add_ps(a, b);
  }
  static FT_INLINE Float mul(Float a, Float b) {
    return _mm256_mul_ps(a, b);
  }
  /// a * b + c and -a * b + c, rounded once.
  static FT_INLINE Float fma(Float a, Float b, Float c) {
    return _mm256_fmadd_ps(a, b, c);
  }
  static FT_INLINE Float negative_fma(Float a, Float b, Float c) {
    return _mm256_fnmadd_ps(a, b, c);
  }
  /// kLanes halves side by side.
  static FT_INLINE Float halves(const std::byte* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  /// The two halves of each lane.
  static FT_INLINE void two_halves(Int a, Float& low, Float& high) {
    const Int packed = _mm256_packus_epi32(and_(a, splat32(0xffff)), _mm256_srli_epi32(a, 16));
    const Int ordered = _mm256_permute4x64_epi64(packed, 0xd8);
    low = _mm256_cvtph_ps(_mm256_castsi256_si128(ordered));
    high = _mm256_cvtph_ps(_mm256_extracti128_si256(ordered, 1));
  }
  /// kLanes bytes, each to a lane.
  static FT_INLINE Int widen_bytes(const std::byte* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  /// Lanes of b where a < limit, of c elsewhere.
  static FT_INLINE Int where_less(Int a, int limit, Int b, Int c) {
    return _mm256_blendv_epi8(c, b, _mm256_cmpgt_epi32(splat32(limit), a));
  }
};

#if defined(__AVX512F__) || defined(FORETOKEN_SIMD_EMULATION)
/// Sixteen lanes in an AVX-512 register. kDot: has AVX512-VNNI.
template <bool kHasDot>
struct Lanes16 {
  static constexpr int kLanes = 16;
  static constexpr bool kDot = kHasDot;
  using Int = __m512i;
  using Float = __m512;

  static FT_INLINE Int load(const void* p) { return _mm512_loadu_si512(p); }
  static FT_INLINE void store(void* p, Int x) { _mm512_store_si512(p, x); }
  static FT_INLINE Int broadcast(const void* p) {
    int32_t word;
    __builtin_memcpy(&word, p, 4);
    return _mm512_set1_epi32(word);
  }
  static FT_INLINE Int zero() { return _mm512_setzero_si512(); }
  static FT_INLINE Int splat8(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }
  static FT_INLINE Int splat16(int x) { return _mm512_set1_epi16(static_cast<int16_t>(x)); }
  static FT_INLINE Int splat32(int x) { return _mm512_set1_epi32(x); }
  static FT_INLINE Int and_(Int a, Int b) { return _mm512_and_si512(a, b); }
  static FT_INLINE Int or_(Int a, Int b) { return _mm512_or_si512(a, b); }
  static FT_INLINE Int xor_(Int a, Int b) { return _mm512_xor_si512(a, b); }
  static FT_INLINE Int add8(Int a, Int b) { return _mm512_add_epi8(a, b); }
  static FT_INLINE Int sub8(Int a, Int b) { return _mm512_sub_epi8(a, b); }
  /// Unsigned: a - b, or 0 where b is larger; the smaller one.
  static FT_INLINE Int subtract_or_zero8(Int a, Int b) { return _mm512_subs_epu8(a, b); }
  static FT_INLINE Int min8(Int a, Int b) { return _mm512_min_epu8(a, b); }
  static FT_INLINE Int add16(Int a, Int b) { return _mm512_add_epi16(a, b); }
  static FT_INLINE Int sub16(Int a, Int b) { return _mm512_sub_epi16(a, b); }
  static FT_INLINE Int add32(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static FT_INLINE Int mul16(Int a, Int b) { return _mm512_mullo_epi16(a, b); }
  static FT_INLINE Int mul32(Int a, Int b) { return _mm512_mullo_epi32(a, b); }
  static FT_INLINE Int join16(Int a, Int b) {
    if constexpr (kDot) return or_(a, shift32<-16>(b));
    return _mm512_mask_blend_epi16(0xaaaaaaaau, a, b);
  }
  template <int kRight>
  static FT_INLINE Int shift16(Int a) {
    if constexpr (kRight > 0) return _mm512_srli_epi16(a, kRight);
    if constexpr (kRight < 0) return _mm512_slli_epi16(a, -kRight);
    return a;
  }
  template <int kRight>
  static FT_INLINE Int shift32(Int a) {
    if constexpr (kRight > 0) return _mm512_srli_epi32(a, kRight);
    if constexpr (kRight < 0) return _mm512_slli_epi32(a, -kRight);
    return a;
  }
  static FT_INLINE Int shift_right32(Int a, int count) { return _mm512_srl_epi32(a, _mm_cvtsi32_si128(count)); }
  template <int kRight>
  static FT_INLINE Int arithmetic16(Int a) {
    return _mm512_srai_epi16(a, kRight);
  }
  template <int kRight>
  static FT_INLINE Int arithmetic32(Int a) {
    return _mm512_srai_epi32(a, kRight);
  }
  static FT_INLINE Int shuffle(Int a, __m128i pattern) {
    return _mm512_shuffle_epi8(a, _mm512_broadcast_i32x4(pattern));
  }
  static FT_INLINE Int look_up(__m128i table, Int index) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), index);
  }
  static FT_INLINE Int where_set(Int a, Int mask, int value) {
    return _mm512_maskz_mov_epi8(_mm512_test_epi8_mask(a, mask), splat8(value));
  }
  static FT_INLINE Int clear_where16(Int a, int x) {
    const Int difference = _mm512_xor_si512(a, splat16(x));
    return _mm512_maskz_mov_epi16(_mm512_test_epi16_mask(difference, difference), a);
  }
  static FT_INLINE Int pairs(Int u, Int s) { return _mm512_maddubs_epi16(u, s); }
  static FT_INLINE Int madd(Int a, Int b) { return _mm512_madd_epi16(a, b); }
  static FT_INLINE Int dot(Int sum, Int u, Int s) {
#if defined(__AVX512VNNI__) || defined(FORETOKEN_SIMD_EMULATION)
    if constexpr (kDot) return _mm512_dpbusd_epi32(sum, u, s);
#endif
    return add32(sum, madd(pairs(u, s), splat16(1)));
  }
  struct Signed {
    Int magnitude;
    __mmask64 negative;
  };
  template <bool kSigned>
  static FT_INLINE auto factor(Int w) {
    if constexpr (kSigned) {
      return Signed{_mm512_abs_epi8(w), _mm512_movepi8_mask(w)};
    } else {
      return w;
    }
  }
  static FT_INLINE Int pairs(const Signed& w, Int s) {
    return pairs(w.magnitude, _mm512_mask_sub_epi8(s, w.negative, zero(), s));
  }

  static FT_INLINE Float to_float(Int x) {
    return _mm512_cvtepi32_ps(x);
  }
  static FT_INLINE Float as_float(Int x) {
    return _mm512_castsi512_ps(x);
  }
  static FT_INLINE Float load_float(const float* p) {
    return _mm512_load_ps(p);
  }
  static FT_INLINE void store_float(float* p, Float x) {
    _mm512_store_ps(p, x);
  }
  static FT_INLINE void store_unaligned(float* p, Float x) {
    _mm512_storeu_ps(p, x);
  }
  static FT_INLINE Float broadcast_float(const float* p) {
    return _mm512_set1_ps(*p);
  }
  static FT_INLINE Float negate(Float a) {
    return _mm512_castsi512_ps(xor_(_mm512_castps_si512(a), splat32(static_cast<int>(0x80000000u))));
  }
  static FT_INLINE Float add(Float a, Float b) {
    return _mm512_add_ps(a, b);
  }
  static FT_INLINE Float mul(Float a, Float b) {
    return _mm512_mul_ps(a, b);
  }
  static FT_INLINE Float fma(Float a, Float b, Float c) {
    return _mm512_fmadd_ps(a, b, c);
  }
  static FT_INLINE Float negative_fma(Float a, Float b, Float c) {
    return _mm512_fnmadd_ps(a, b, c);
  }
  static FT_INLINE Float halves(const std::byte* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static FT_INLINE void two_halves(Int a, Float& low, Float& high) {
    low = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a));
    high = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(a, 16)));
  }
  static FT_INLINE Int widen_bytes(const std::byte* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static FT_INLINE Int where_less(Int a, int limit, Int b, Int c) {
    return _mm512_mask_mov_epi32(c, _mm512_cmpgt_epi32_mask(splat32(limit), a), b);
  }
};
#endif

}  // namespace
}  // namespace foretoken
