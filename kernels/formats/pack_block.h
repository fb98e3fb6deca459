#pragma once

#include <cstddef>

#include "kernels/formats/quant_formats.h"

namespace foretoken {

/// The inverse of unpack_block(): writes one block from its integers. d and dmin are rounded to what the block stores
/// (halves; of MXFP4 a power of two), so their values there must be given where q was chosen for them.
/// REQUIRES: `type` is one of those of can_pack(), and the integers are within the bounds that quant_formats.h gives.
void pack_block(WeightType type, const QuantBlock& block, std::byte* out);

[[nodiscard]] bool can_pack(WeightType type);

}  // namespace foretoken
