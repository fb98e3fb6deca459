#include "kernels/int8_peak.h"
#include "kernels/int8_peak_isa.h"

namespace foretoken {

namespace {

using Vector = __m512i;
constexpr int64_t kWidth = 64;
inline Vector zero() {
  return _mm512_setzero_si512();
}
inline Vector load(const void* from) {
  return _mm512_loadu_si512(from);
}
inline void store(void* to, Vector v) {
  _mm512_store_si512(to, v);
}
inline Vector dot(Vector sum, Vector w, Vector x) {
  return _mm512_dpbusd_epi32(sum, w, x);
}

}  // namespace

uint32_t FT_KERNEL(avx512vnni_int8_burst)(const uint8_t* w, const int8_t* x, int64_t rounds) {
  // Eight sums: dpbusd takes 4 to 5 cycles, one or two start in each.
  constexpr int kSums = 8;
  const Vector x_all = load(x);
  Vector sum[kSums];
  for (Vector& s : sum) s = zero();
  for (int64_t round = 0; round < rounds; ++round) {
    for (int64_t i = 0; i < kInt8BurstBytes; i += kSums * kWidth) {
      for (int j = 0; j < kSums; ++j) sum[j] = dot(sum[j], load(w + i + j * kWidth), x_all);
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
