#pragma once

#include <cstdint>

#include "kernels/base/math.h"
#include "kernels/formats/weight_type.h"

namespace foretoken {

/// The bytes of a block, in a file or of levels, that stand apart from its four-byte words in the interleaved layout; see
/// interleave.h.
struct OddBytes {
  int begin;
  int count;
};

/// Of types with an interleaved form; {0, 0} for the others too.
FORETOKEN_HD constexpr OddBytes odd_bytes(WeightType type) {
  switch (type) {
    case WeightType::kQ4_0:
    case WeightType::kQ5_0:
    case WeightType::kQ8_0:
    case WeightType::kIQ4_NL:
    case WeightType::kQ1_0:
    case WeightType::kQ2_0:
    case WeightType::kIQ3_S:
    case WeightType::kIQ3_XXS:
    case WeightType::kIQ2_S:
    case WeightType::kIQ2_XS:
    case WeightType::kIQ2_XXS:
    case WeightType::kIQ1_S:
    case WeightType::kIQ1_M:
      return {0, 2};
    case WeightType::kMXFP4:
      return {0, 1};
    case WeightType::kQ3_K:
      return {108, 2};
    case WeightType::kQ6_K:
      return {208, 2};
    case WeightType::kTQ1_0:
      return {52, 2};
    case WeightType::kTQ2_0:
      return {64, 2};
    default:
      return {0, 0};
  }
}

}  // namespace foretoken
