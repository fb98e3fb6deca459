#pragma once

#include <cstdint>

// Rule 4 of the contract: exp, log and what is made of them, in one sequence of plain float32 operations with the fused
// multiply-add written out, so that scalar code, loops vectorised for any instruction set, and CUDA kernels get the
// same bits. No libm: its results differ between versions. Everything is branch-free, so that loops over these
// functions vectorise.
//
// The functions are static and force-inlined: each file has its own copy, compiled for its own instruction set.
// Ordinary inline functions would be linked as one copy, perhaps the AVX-512 one, and run by baseline code.
//
// NaN stays NaN. Denormal arguments and results are kept.

#ifdef __CUDACC__
#define FORETOKEN_HD __host__ __device__
#else
#define FORETOKEN_HD
#endif
#define FORETOKEN_MATH [[nodiscard]] FORETOKEN_HD static inline __attribute__((always_inline))

namespace foretoken::math {

/// a * b + c, rounded once.
FORETOKEN_MATH float fma(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);          // without -mfma a call of fmaf, which rounds once too
#endif
}

FORETOKEN_MATH float float_from_bits(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);  // not std::bit_cast: it would be linked as one copy
#endif
}

FORETOKEN_MATH uint32_t bits_of(float x) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(x);
#else
  return __builtin_bit_cast(uint32_t, x);
#endif
}

inline constexpr float kLog2E = 0x1.715476p+0f;
// ln 2 = kLn2High + kLn2Low to 2^-55. kLn2High has 21 bits, so n * kLn2High and x - n * kLn2High are exact where exp
// needs them.
inline constexpr float kLn2High = 0x1.62e430p-1f;
inline constexpr float kLn2Low = -0x1.05c610p-29f;

/// e^x within 1.25 ulp (measured: 0.89). exp(0) = 1, exp(-inf) = 0, exp(x) = inf above 88.7228.
///
/// x = n ln2 + r with |r| <= ln2/2, e^r = 1 + r + r^2 q(r), q of degree 4 (minimax, relative error of e^r below
/// 2^-28.2). The scale 2^n is applied as two powers: the first product is exact, the second rounds once, to a denormal
/// or to infinity too.
FORETOKEN_MATH float exp(float x) {
  // e^-104 rounds to 0 and e^89 to infinity; the comparisons are false for NaN, which goes on as itself.
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  constexpr float kRound = 0x1.8p+23f;  // adding it leaves the nearest integer, ties to even, in the low mantissa bits
  const float shifted = fma(x, kLog2E, kRound);
  const float n = shifted - kRound;
  float r = fma(n, -kLn2High, x);
  r = fma(n, -kLn2Low, r);
  float p = 0x1.6a511ap-10f;
  p = fma(p, r, 0x1.12397cp-7f);
  p = fma(p, r, 0x1.5558acp-5f);
  p = fma(p, r, 0x1.555492p-3f);
  p = fma(p, r, 0x1.fffffcp-2f);
  p = fma(p, r, 1.0f);
  p = fma(p, r, 1.0f);
  const int32_t exponent = static_cast<int32_t>(bits_of(shifted) - 0x4b400000u);  // n in [-150, 128]; anything for NaN
  const int32_t half = exponent >> 1;
  const uint32_t scale1 = (static_cast<uint32_t>(half) + 127u) << 23;
  const uint32_t scale2 = (static_cast<uint32_t>(exponent) - static_cast<uint32_t>(half) + 127u) << 23;
  return (p * float_from_bits(scale1)) * float_from_bits(scale2);
}

/// Exponent k and mantissa of a normal positive u = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)).
struct LogParts {
  int32_t exponent;
  float f;
};

FORETOKEN_MATH LogParts log_parts(float u) {
  const uint32_t bits = bits_of(u);
  const int32_t exponent = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;  // 0x3f3504f3 is sqrt(1/2)
  return {exponent, float_from_bits(bits - (static_cast<uint32_t>(exponent) << 23)) - 1.0f};
}

/// log(2^exponent (1 + f)). log(1 + f) = f - f^2/2 + f^3 q(f), q of degree 8 (minimax, relative error of the whole
/// below 2^-30).
FORETOKEN_MATH float log_of_parts(int32_t exponent, float f) {
  const float k = static_cast<float>(exponent);
  float q = 0x1.146ee6p-4f;
  q = fma(q, f, -0x1.de006ap-4f);
  q = fma(q, f, 0x1.e6c106p-4f);
  q = fma(q, f, -0x1.fc291ep-4f);
  q = fma(q, f, 0x1.233b9cp-3f);
  q = fma(q, f, -0x1.555c42p-3f);
  q = fma(q, f, 0x1.99a476p-3f);
  q = fma(q, f, -0x1.000006p-2f);
  q = fma(q, f, 0x1.555548p-2f);
  const float square = f * f;
  float tail = square * f * q;
  tail = fma(k, kLn2Low, tail);
  tail = fma(-0.5f, square, tail);
  return fma(k, kLn2High, f + tail);
}

/// Natural logarithm, within 1.5 ulp (measured: 0.81). REQUIRES: x is positive, normal and finite.
FORETOKEN_MATH float log(float x) {
  const LogParts parts = log_parts(x);
  return log_of_parts(parts.exponent, parts.f);
}

/// log(1 + x), within 2.25 ulp (measured: 1.38), for 0 <= x <= 2^100, which is all that softplus needs; not for
/// negative or infinite x.
FORETOKEN_MATH float log1p(float x) {
  const float u = 1.0f + x;
  const float lost = x > 1.0f ? 1.0f - (u - x) : x - (u - 1.0f);  // by the sum, exactly
  const LogParts parts = log_parts(u);
  const float scale = float_from_bits(0x3f800000u - (static_cast<uint32_t>(parts.exponent) << 23));  // 2^-exponent
  return log_of_parts(parts.exponent, fma(lost, scale, parts.f));
}

/// 1 / (1 + e^-x). Below -88.7228, where e^-x is infinite, it is 0.
FORETOKEN_MATH float sigmoid(float x) {
  return 1.0f / (1.0f + exp(-x));
}

/// x * sigmoid(x).
FORETOKEN_MATH float silu(float x) {
  return x * sigmoid(x);
}

/// log(1 + e^x): x itself above 20, where the rest is below half an ulp.
FORETOKEN_MATH float softplus(float x) {
  const float small = log1p(exp(x));
  return x > 20.0f ? x : small;
}

}  // namespace foretoken::math
