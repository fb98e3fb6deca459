#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/formats/weight_type.h"

namespace foretoken {

/// float32 -> file blocks with the least sum of squared errors that a search over scales finds. Slower than encode_row()
/// (some ten million values a second and core) and closer: scales are fitted to the integers that they lead to, and of
/// blocks with scales of their own for 16 or 32 values each of those is chosen with the weights in it. F32, F16 and BF16
/// are rounded to nearest even, Q8_0 by its largest value.
/// REQUIRES: can_quantise(type), finite values, num_values is a multiple of the block size.
void quantise_weights(WeightType type, const float* values, int64_t num_values, std::byte* blocks);

[[nodiscard]] bool can_quantise(WeightType type);

}  // namespace foretoken
