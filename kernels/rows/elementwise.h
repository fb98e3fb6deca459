#pragma once

#include <cstdint>

#include "kernels/base/isa.h"

namespace foretoken {

// Elementwise operations on rows of floats. No sum, so the order of work is free; the functions exp, sigmoid, silu and
// softplus are those of math.h on every backend.

/// out[i] = silu(gate[i]) * up[i], silu(x) = x * sigmoid(x). out may be gate or up.
void silu_mul(Isa isa, const float* gate, const float* up, int64_t n, float* out);

/// x[i] = x[i] * sigmoid(gate[i]).
void sigmoid_gate(Isa isa, const float* gate, int64_t n, float* x);

/// x[i] = x[i] + y[i].
void add(Isa isa, const float* y, int64_t n, float* x);

/// y[i] = fma(scale, x[i], y[i]).
void add_scaled(Isa isa, float scale, const float* x, int64_t n, float* y);

/// out[i] = scale * x[i].
void scale_row(Isa isa, float scale, const float* x, int64_t n, float* out);

/// The largest |x[i]|, +0 for n = 0; infinity counts above every number and NaN above infinity, so `largest < limit`
/// says that all are finite and below it.
[[nodiscard]] float largest_magnitude(Isa isa, const float* x, int64_t n);

}  // namespace foretoken
