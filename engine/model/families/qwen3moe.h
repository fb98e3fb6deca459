#pragma once

#include "engine/model/families/family.h"
#include "engine/model/families/layer_text.h"
#include "engine/model/weights.h"

namespace foretoken {

/// Qwen3 MoE (Qwen3-30B-A3B, Qwen3-Coder-30B-A3B): attention with normed heads and experts in every layer; no shared
/// expert, no MTP layer.
struct Qwen3Moe {
  static const Family kFamily;

  template <class Pass>
  static void layer(Pass& pass, const BasicLayerWeights<typename Pass::Matrix>& layer) {
    attention_and_feed_forward(pass, layer);
  }

  using Mtp = NoMtpBlock;
};

}  // namespace foretoken
