#pragma once

#include "engine/model/families/family.h"
#include "engine/model/families/layer_text.h"
#include "engine/model/weights.h"

namespace foretoken {

/// Qwen3.5 and 3.6: gated delta nets with gated attention between them, every layer with experts and one shared expert
/// (qwen35moe), or with a dense feed-forward part (qwen35). Qwen3-Next and Qwen3-Coder-Next (qwen3next) differ from
/// qwen35moe in the order of the delta nets' value heads and in how their tensors are fused. An MTP layer has gated
/// attention.
struct Qwen35Text {
  /// x is the residual stream:
  ///   x = x + Mix(rms_norm(x, mix_norm)),  Mix = gated delta net or gated attention
  ///   x = x + FeedForward(rms_norm(x, ffn_norm))
  template <class Pass>
  static void layer(Pass& pass, const BasicLayerWeights<typename Pass::Matrix>& layer) {
    if (layer.is_recurrent()) {
      pass.norm(layer.mix_norm, pass.inputs_of(layer.delta_net()));
      pass.delta_net(layer.delta_net(), layer.mixer_idx);
    } else {
      pass.norm(layer.mix_norm, pass.inputs_of(layer.attention()));
      pass.attention(layer.attention(), layer.mixer_idx);
    }
    feed_forward(pass, layer);
  }

  using Mtp = NextnBlock;
};

struct Qwen35Moe : Qwen35Text {
  static const Family kFamily;
};
struct Qwen35 : Qwen35Text {
  static const Family kFamily;
};
struct Qwen3Next : Qwen35Text {
  static const Family kFamily;
};

}  // namespace foretoken
