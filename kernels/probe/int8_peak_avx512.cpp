#include "kernels/probe/int8_peak_body.h"

namespace foretoken {

namespace {

struct Lanes : Int8x64 {
  static Vector dot(Vector sum, Vector w, Vector x) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(w, x), _mm512_set1_epi16(1)));
  }
};

}  // namespace

uint32_t FT_KERNEL(avx512_int8_burst)(const uint8_t* w, const int8_t* x, int64_t rounds) {
  return int8_burst_with<Lanes>(w, x, rounds);
}

}  // namespace foretoken
