#pragma once

#include <cstdint>

#include "kernels/base/isa.h"

namespace foretoken {

/// out[i] = (x[i] * (1 / sqrt(sum(x^2) / n + eps))) * weight[i] (Zhang & Sennrich 2019). The sum of squares is a float
/// dot of rule 2 (kFloatLanes strided fma sums, folded); division and square root are IEEE, in float32. out may be x.
///
/// Returns the sum of squares, as the two below do. Where it is not finite, x is not finite or its squares overflow;
/// then `out` may be all zeros, so nobody can tell from `out`.
float rms_norm(Isa isa, const float* x, const float* weight, int64_t n, float eps, float* out);

/// out[i] = ((x[i] * inverse) * weight[i]) * silu(z[i]), inverse as in rms_norm: the gated norm of the delta net.
float rms_norm_gated(Isa isa, const float* x, const float* weight, const float* z, int64_t n, float eps, float* out);

/// out[i] = x[i] * (1 / max(sqrt(sum(x^2)), eps)), the sum as in rms_norm. out may be x.
float l2_norm(Isa isa, const float* x, int64_t n, float eps, float* out);

/// sum_i a[i] * b[i] by rule 2.
[[nodiscard]] float float_dot(Isa isa, const float* a, const float* b, int64_t n);

}  // namespace foretoken
