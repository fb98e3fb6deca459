#pragma once

#include <cstdint>

#include "kernels/math.h"

// Private to delta_net.cpp and delta_net_avx2.cpp.

namespace foretoken {
namespace {

template <int kTaps>
inline void causal_conv_loop(const float* weight, const float* const* u, int64_t begin, int64_t end, float* out) {
  const float* rows[kTaps];
  for (int j = 0; j < kTaps; ++j) rows[j] = u[j];
#pragma GCC ivdep
  for (int64_t c = begin; c < end; ++c) {
    float y = 0.0f;
    for (int j = 0; j < kTaps; ++j) y = math::fma(weight[c * kTaps + j], rows[j][c], y);
    out[c] = math::silu(y);
  }
}

/// Four taps in every known model, written out so that the loop vectorises.
inline void causal_conv_any(const float* weight, int taps, const float* const* u, int64_t begin, int64_t end,
                            float* out) {
  if (taps == 4) return causal_conv_loop<4>(weight, u, begin, end, out);
  for (int64_t c = begin; c < end; ++c) {
    float y = 0.0f;
    for (int j = 0; j < taps; ++j) y = math::fma(weight[c * taps + j], u[j][c], y);
    out[c] = math::silu(y);
  }
}

}  // namespace
}  // namespace foretoken
