#include "kernels/int8_peak.h"
#include "kernels/int8_peak_isa.h"

namespace foretoken {

namespace {

using Vector = __m256i;
constexpr int64_t kWidth = 32;
inline Vector zero() {
  return _mm256_setzero_si256();
}
inline Vector load(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
inline void store(void* to, Vector v) {
  _mm256_store_si256(static_cast<__m256i*>(to), v);
}
inline Vector dot(Vector sum, Vector w, Vector x) {
  return _mm256_dpbusd_avx_epi32(sum, w, x);
}

}  // namespace

uint32_t avx2vnni_int8_burst(const uint8_t* w, const int8_t* x, int64_t rounds) {
  // Eight sums: dpbusd takes 4 to 5 cycles, two start in each.
  constexpr int kSums = 8;
  const Vector x_half[2] = {load(x), load(x + 32)};
  Vector sum[kSums];
  for (Vector& s : sum) s = zero();
  for (int64_t round = 0; round < rounds; ++round) {
    for (int64_t i = 0; i < kInt8BurstBytes; i += kSums * kWidth) {
      for (int j = 0; j < kSums; ++j) sum[j] = dot(sum[j], load(w + i + j * kWidth), x_half[j % 2]);
    }
  }
  alignas(64) uint32_t parts[kWidth / 4];
  uint32_t total = 0;
  for (const Vector& s : sum) {
    store(parts, s);
    for (uint32_t part : parts) total += part;
  }
  return total;
}

}  // namespace foretoken
