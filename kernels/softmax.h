#pragma once

#include <cstdint>

#include "kernels/isa.h"

namespace foretoken {

/// out[i] = exp(x[i] - max(x)) / sum; the sum over kFloatLanes strided lanes (lane = i mod 32, plain adds), folded as rule 2.
/// out may be x.
void softmax(Isa isa, const float* x, int64_t n, float* out);

/// Index of the largest value, the lower one of equals. REQUIRES: n > 0. NaN is never chosen unless all are NaN (then 0).
[[nodiscard]] int64_t argmax(Isa isa, const float* x, int64_t n);

}  // namespace foretoken
