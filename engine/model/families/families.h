#pragma once

#include <array>
#include <string_view>

#include "engine/model/families/qwen35.h"
#include "engine/model/families/qwen3moe.h"
#include "kernels/base/error.h"

namespace foretoken {

// The families that the program runs. A new one has a header and a source beside these, and an entry in both lists.

inline constexpr std::array<const Family*, 3> kFamilies = {&kQwen35Moe, &kQwen35, &kQwen3Moe};

/// One layer in the words of its architecture's family. `Pass` is who computes: ForwardPass or CudaForwardPass.
template <class Pass>
void run_layer(std::string_view architecture, Pass& pass, const BasicLayerWeights<typename Pass::Matrix>& layer) {
  const Family* family = find_family(architecture);
  if (family == &kQwen3Moe) return qwen3moe_layer(pass, layer);
  FT_CHECK(family == &kQwen35Moe || family == &kQwen35);
  qwen35_layer(pass, layer);
}

}  // namespace foretoken
