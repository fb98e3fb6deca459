#include "engine/cpu/forward_pass.h"

namespace foretoken {

// Qwen3 MoE (Qwen3-30B-A3B, Qwen3-Coder-30B-A3B): attention with normed heads and experts in every layer. x is the
// residual stream:
//
//   x = x + Attention(rms_norm(x, mix_norm))
//   x = x + MoE(rms_norm(x, ffn_norm))
void run_qwen3moe_trunk(ForwardPass& pass, const ModelWeights& weights) {
  int attention_idx = 0;
  for (const LayerWeights& layer : weights.layers) {
    const AttentionWeights& mix = layer.attention;
    pass.norm(layer.mix_norm, block_bits({&mix.q, &mix.k, &mix.v}));
    pass.attention(mix, attention_idx++);
    pass.add_and_norm(layer.ffn_norm, input_blocks(layer.moe));
    pass.feed_forward(layer.moe);
  }
}

}  // namespace foretoken
