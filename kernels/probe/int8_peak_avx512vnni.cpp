#include "kernels/probe/int8_peak_body.h"

namespace foretoken {

namespace {

struct Lanes : Int8x64 {
  static Vector dot(Vector sum, Vector w, Vector x) { return _mm512_dpbusd_epi32(sum, w, x); }
};

}  // namespace

uint32_t FT_KERNEL(avx512vnni_int8_burst)(const uint8_t* w, const int8_t* x, int64_t rounds) {
  return int8_burst_with<Lanes>(w, x, rounds);
}

}  // namespace foretoken
