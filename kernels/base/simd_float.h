#pragma once

#include <cstdint>

#include "kernels/base/simd_intrinsics.h"

// Private to the per-ISA files of the float kernels: a register of floats, so that a tiled loop is written once for
// AVX2 and AVX-512. In an anonymous namespace and force-inlined, so that every file has its own copy (see math.h).

#define FT_INLINE inline __attribute__((always_inline))

namespace foretoken {
namespace {

/// Lanes of a float dot product (kFloatLanes of matmul.h, which per-ISA files do not include: its inline functions link
/// as one copy).
constexpr int kLanes = 32;

/// Eight floats in an AVX2 register.
struct F32x8 {
  static constexpr int kWidth = 8;
  static constexpr int kRegisters = 16;
  __m256 v;

  static FT_INLINE F32x8 zero() { return {_mm256_setzero_ps()}; }
  static FT_INLINE F32x8 broadcast(float x) { return {_mm256_set1_ps(x)}; }
  static FT_INLINE F32x8 load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static FT_INLINE F32x8 load_half(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static FT_INLINE F32x8 load_bfloat(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
  }
  FT_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  FT_INLINE void store_half(uint16_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  friend FT_INLINE F32x8 operator+(F32x8 a, F32x8 b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend FT_INLINE F32x8 operator-(F32x8 a, F32x8 b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend FT_INLINE F32x8 operator*(F32x8 a, F32x8 b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend FT_INLINE F32x8 operator/(F32x8 a, F32x8 b) { return {_mm256_div_ps(a.v, b.v)}; }
  /// a * b + c, rounded once.
  friend FT_INLINE F32x8 fma(F32x8 a, F32x8 b, F32x8 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  /// Lane by lane a > b ? a : b, so b where a is NaN.
  friend FT_INLINE F32x8 max(F32x8 a, F32x8 b) { return {_mm256_max_ps(a.v, b.v)}; }

  /// Folds 8 -> 4 -> 2 -> 1, lane i adding lane i + half.
  FT_INLINE float fold() const {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  FT_INLINE float largest() const {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
};

#if defined(__AVX512F__) || defined(FORETOKEN_SIMD_EMULATION)
/// Sixteen floats in an AVX-512 register.
struct F32x16 {
  static constexpr int kWidth = 16;
  static constexpr int kRegisters = 32;
  __m512 v;

  static FT_INLINE F32x16 zero() { return {_mm512_setzero_ps()}; }
  static FT_INLINE F32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static FT_INLINE F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static FT_INLINE F32x16 load_half(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static FT_INLINE F32x16 load_bfloat(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
  }
  FT_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  friend FT_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend FT_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend FT_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend FT_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  friend FT_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }

  FT_INLINE F32x8 low() const { return {_mm512_castps512_ps256(v)}; }
  FT_INLINE F32x8 high() const { return {_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1))}; }
  /// Folds 16 -> 8 -> 4 -> 2 -> 1, lane i adding lane i + half.
  FT_INLINE float fold() const { return (low() + high()).fold(); }
  FT_INLINE float largest() const { return max(low(), high()).largest(); }
};
#endif

/// The sum of 32 lanes held in 32 / kWidth registers, folded 32 -> 16 -> 8 -> 4 -> 2 -> 1.
template <class V>
FT_INLINE float fold_lanes(const V* lanes) {
  if constexpr (V::kWidth == 8) {
    return ((lanes[0] + lanes[2]) + (lanes[1] + lanes[3])).fold();
  } else {
    return (lanes[0] + lanes[1]).fold();
  }
}

/// F32x8::fold of four sums at once: the same additions, with a third fewer shuffles.
FT_INLINE void fold_four(const F32x8 (&eight)[4], float* to) {
  __m128 four[4];
  for (int r = 0; r < 4; ++r)
    four[r] = _mm_add_ps(_mm256_castps256_ps128(eight[r].v), _mm256_extractf128_ps(eight[r].v, 1));
  // Two sums a register, lanes 0 and 1 of each + lanes 2 and 3; then the even lanes of all four + the odd ones.
  const __m128 two01 = _mm_add_ps(_mm_movelh_ps(four[0], four[1]), _mm_movehl_ps(four[1], four[0]));
  const __m128 two23 = _mm_add_ps(_mm_movelh_ps(four[2], four[3]), _mm_movehl_ps(four[3], four[2]));
  _mm_storeu_ps(to, _mm_add_ps(_mm_shuffle_ps(two01, two23, 0x88), _mm_shuffle_ps(two01, two23, 0xdd)));
}

/// Copies `n` < 32 values to `to` and fills the other lanes up to 32 with `fill`. The tail of a dot product runs as a
/// full step over +0 against -0 lanes: their product is -0, and acc + -0 is acc for every acc, -0, infinities and NaN
/// included, so the bits are those of a lane that stops early.
template <class T>
FT_INLINE void copy_tail(const T* from, int64_t n, T fill, T* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
  for (int64_t i = n; i < kLanes; ++i) to[i] = fill;
}

}  // namespace
}  // namespace foretoken
