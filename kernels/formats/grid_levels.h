#pragma once

#include <cstddef>

#include "kernels/base/math.h"
#include "kernels/formats/weight_type.h"

namespace foretoken {

/// What the interleaved layout holds of IQ1, IQ2 and IQ3: levels instead of indices. A look-up in a grid costs a load for
/// each four or eight weights and puts them where one row needs them; a level with its sign is three or four bits, which
/// registers unpack for many rows at once. The weights are the same, the bytes more: interleaved_block_bytes() has them.
///
/// A block: d (half); s of the scales, two nibbles a byte, one for each 32 values (IQ3, IQ2_XXS, IQ1_S: 4 bytes) or 16
/// (8 bytes); then the levels of values 0 .. 255. Bytes are grouped to words w of four, W values are taken four at a time.
///   IQ3_S    nibble c of q = 2c - 15, order as in Q4_K.
///   IQ3_XXS  nibble: bits 0..2 are the level, bit 3 is set for minus; order as in Q4_K.
///   IQ2      three bits, level and bit 2 for minus. Bytes 12r .. 12r+11 hold values 32r .. 32r+31, as twelve bytes
///            x[4] y[4] z[4]: values 4k+i, k = 0 .. 5, are bits 0..2 (k even) and 4..6 (odd) of x[i] (k < 2), y[i] and
///            z[i]; of k = 6 and 7 bits 3 and 7 of x[i] have the lowest, those of y[i] the second and of z[i] the third.
///   IQ1_S    s has bit 3 set where 1/8 is taken away. Two bits of g + 1: value 64n + 16j + 4k + i is bits 2j, 2j+1 of byte
///            16n + 4k + i.
///   IQ1_M    32 bits, bit l set where 1/8 is added to group l; then g + 1 as in IQ1_S.
FORETOKEN_HD constexpr bool has_levels(WeightType type) {
  switch (type) {
    case WeightType::kIQ3_S:
    case WeightType::kIQ3_XXS:
    case WeightType::kIQ2_S:
    case WeightType::kIQ2_XS:
    case WeightType::kIQ2_XXS:
    case WeightType::kIQ1_S:
    case WeightType::kIQ1_M:
      return true;
    default:
      return false;
  }
}

/// One block of a file in that form, interleaved_block_bytes(type) of them. REQUIRES: has_levels(type).
void block_to_levels(WeightType type, const std::byte* block, std::byte* levels);

/// The inverse: the bytes that the file had.
void block_from_levels(WeightType type, const std::byte* levels, std::byte* block);

}  // namespace foretoken
