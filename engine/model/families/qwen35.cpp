#include "engine/cpu/forward_pass.h"

namespace foretoken {

// Qwen3.5 and 3.6 (qwen35moe, and qwen35 with a dense feed-forward part): gated delta nets with gated attention between
// them, every layer with experts and one shared expert. x is the residual stream:
//
//   x = x + Mix(rms_norm(x, mix_norm)),  Mix = gated delta net or gated attention
//   x = x + MoE(rms_norm(x, ffn_norm))
void run_qwen35_trunk(ForwardPass& pass, const ModelWeights& weights) {
  int attention_idx = 0, recurrent_idx = 0;
  for (const LayerWeights& layer : weights.layers) {
    if (layer.recurrent) {
      const DeltaNetWeights& mix = layer.delta_net;
      pass.norm(layer.mix_norm, block_bits({&mix.qkv, &mix.gate, &mix.beta, &mix.alpha}));
      pass.delta_net(mix, recurrent_idx++);
    } else {
      const AttentionWeights& mix = layer.attention;
      pass.norm(layer.mix_norm, block_bits({&mix.q, &mix.k, &mix.v}));
      pass.attention(mix, attention_idx++);
    }
    pass.add_and_norm(layer.ffn_norm, input_blocks(layer.moe));
    pass.feed_forward(layer.moe);
  }
}

}  // namespace foretoken
