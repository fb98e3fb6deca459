#pragma once

#include "engine/model/families/family.h"
#include "engine/model/families/layer_text.h"
#include "engine/model/weights.h"

namespace foretoken {

/// Llama's dense models, SmolLM2 among them: attention whose heads are not normed and whose adjacent values turn
/// together, and a dense feed-forward part in every layer; no MTP layer.
struct Llama {
  static const Family kFamily;

  template <class Pass>
  static void layer(Pass& pass, const BasicLayerWeights<typename Pass::Matrix>& layer) {
    attention_and_feed_forward(pass, layer);
  }

  using Mtp = NoMtpBlock;
};

}  // namespace foretoken
