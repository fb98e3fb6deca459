#include "engine/model/families/qwen3moe.h"

#include <fmt/format.h>

namespace foretoken {

namespace {

void read_config(const Metadata& keys, ModelConfig& c) {
  read_attention(keys, c);
  read_experts(keys, c);
}

void declare_layer(WeightLoader& load, const ModelConfig& c, int index, LayerWeights& to) {
  const std::string block = fmt::format("blk.{}.", index);
  load.vector(block + "attn_norm.weight", c.hidden_dim, to.mix_norm);
  load.vector(block + "ffn_norm.weight", c.hidden_dim, to.ffn_norm);
  declare_attention(load, c, block, HeadNorms::kOwn, to);
  declare_experts(load, c, block, to);
}

}  // namespace

const Family Qwen3Moe::kFamily = {"qwen3moe", /*most_mtp_layers=*/0, read_config, declare_layer};

}  // namespace foretoken
