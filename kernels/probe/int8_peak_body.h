#pragma once

#include "kernels/probe/int8_peak.h"
#include "kernels/probe/int8_peak_isa.h"

// Private to the int8_peak_*.cpp: the burst over a register type V with an instruction sequence V::dot.

namespace foretoken {
namespace {

struct Int8x32 {
  using Vector = __m256i;
  static constexpr int64_t kWidth = 32;
  static Vector zero() { return _mm256_setzero_si256(); }
  static Vector load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
  static void store(void* to, Vector v) { _mm256_store_si256(static_cast<__m256i*>(to), v); }
};

#if defined(__AVX512F__) || defined(FORETOKEN_SIMD_EMULATION)
struct Int8x64 {
  using Vector = __m512i;
  static constexpr int64_t kWidth = 64;
  static Vector zero() { return _mm512_setzero_si512(); }
  static Vector load(const void* from) { return _mm512_loadu_si512(from); }
  static void store(void* to, Vector v) { _mm512_store_si512(to, v); }
};
#endif

/// Eight sums: addition waits one cycle, but a shorter chain would leave the multipliers idle between loads; a dot
/// product instruction takes 4 to 5 cycles, one or two start in each.
template <class V>
uint32_t int8_burst_with(const uint8_t* w, const int8_t* x, int64_t rounds) {
  constexpr int kSums = 8;
  const typename V::Vector x_half[2] = {V::load(x), V::load(x + 64 - V::kWidth)};
  typename V::Vector sum[kSums];
  for (auto& s : sum) s = V::zero();
  for (int64_t round = 0; round < rounds; ++round) {
    for (int64_t i = 0; i < kInt8BurstBytes; i += kSums * V::kWidth) {
      for (int j = 0; j < kSums; ++j) sum[j] = V::dot(sum[j], V::load(w + i + j * V::kWidth), x_half[j % 2]);
    }
  }
  alignas(64) uint32_t parts[V::kWidth / 4];
  uint32_t total = 0;
  for (const auto& s : sum) {
    V::store(parts, s);
    for (uint32_t part : parts) total += part;
  }
  return total;
}

}  // namespace
}  // namespace foretoken
