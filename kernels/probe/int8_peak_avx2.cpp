#include "kernels/probe/int8_peak_body.h"

namespace foretoken {

namespace {

struct Lanes : Int8x32 {
  static Vector dot(Vector sum, Vector w, Vector x) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
  }
};

}  // namespace

uint32_t avx2_int8_burst(const uint8_t* w, const int8_t* x, int64_t rounds) {
  return int8_burst_with<Lanes>(w, x, rounds);
}

}  // namespace foretoken
