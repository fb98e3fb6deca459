#pragma once

#include <cstdint>

#include "kernels/base/math.h"

// Private to delta_net.cpp and delta_net_avx2.cpp.

namespace foretoken {
namespace {

inline void causal_conv_any(const float* weight, int taps, const float* const* u, int64_t begin, int64_t end,
                            float* out) {
  for (int64_t c = begin; c < end; ++c) {
    float y = 0.0f;
    for (int j = 0; j < taps; ++j) y = math::fma(weight[c * taps + j], u[j][c], y);
    out[c] = math::silu(y);
  }
}

}  // namespace
}  // namespace foretoken
