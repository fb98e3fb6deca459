#include "engine/model/families/llama.h"

#include <fmt/format.h>

namespace foretoken {

namespace {

void read_config(const Metadata& keys, ModelConfig& c) {
  c.rope_pairs = RopePairs::kAdjacent;
  read_attention(keys, c);
  read_dense_feed_forward(keys, c);
}

void declare_layer(WeightLoader& load, const ModelConfig& c, int index, LayerWeights& to) {
  const std::string block = fmt::format("blk.{}.", index);
  load.vector(block + "attn_norm.weight", c.hidden_dim, to.mix_norm);
  load.vector(block + "ffn_norm.weight", c.hidden_dim, to.ffn_norm);
  declare_attention(load, c, block, HeadNorms::kNone, to);
  declare_dense_feed_forward(load, c, block, to);
}

}  // namespace

const Family Llama::kFamily = {"llama", /*most_mtp_layers=*/0, read_config, declare_layer};

}  // namespace foretoken
