#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/formats/weight_type.h"

namespace foretoken {

/// File blocks -> float32, exactly as the GGUF format defines the values (each value computed in float32 in the order
/// of ggml's dequantize_row_*). REQUIRES: num_values is a multiple of the block size. Used for embeddings and as the
/// tests' reference.
void decode_row(WeightType type, const std::byte* blocks, int64_t num_values, float* values);

/// float32 -> file blocks by a plain rounding quantiser (for `synth` and the tests; no search for better scales).
void encode_row(WeightType type, const float* values, int64_t num_values, std::byte* blocks);

/// False if a scale in the row is NaN or infinite: a file with such a block is refused.
[[nodiscard]] bool row_is_finite(WeightType type, const std::byte* blocks, int64_t num_values);

}  // namespace foretoken
