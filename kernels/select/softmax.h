#pragma once

#include <cstdint>

#include "kernels/base/isa.h"

namespace foretoken {

/// out[i] = exp(x[i] - max(x)) / sum; the sum over kFloatLanes strided lanes (lane = i mod 32, plain adds), folded as
/// rule 2. out may be x.
void softmax(Isa isa, const float* x, int64_t n, float* out);

/// Softmax probability of x[chosen] among x, to some 1e-5: values more than 16 below x[chosen] are left out a block at
/// a time. For decisions about speed alone; it is no part of any text. REQUIRES: 0 <= chosen < n.
[[nodiscard]] float softmax_share(Isa isa, const float* x, int64_t n, int64_t chosen);

/// Index of the largest value, the lower one of equals. REQUIRES: n > 0. NaN is never chosen unless all are NaN (then
/// 0).
[[nodiscard]] int64_t argmax(Isa isa, const float* x, int64_t n);

}  // namespace foretoken
