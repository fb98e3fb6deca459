#include "engine/model/families/qwen35.h"

#include <fmt/format.h>

#include "engine/model/mtp_layout.h"

namespace foretoken {

namespace {

void read_delta_net(const Metadata& keys, ModelConfig& c) {
  const auto listed = keys.integers("attention.recurrent_layers");
  if (listed) {
    // Either one flag a layer, or the indices of the recurrent ones; a file's array of num_layers entries of 0 and 1 is
    // flags.
    const auto layers = static_cast<size_t>(c.num_layers);
    const bool flags = listed->size() >= layers;
    for (size_t i = 0; i < listed->size(); ++i) {
      const int64_t value = (*listed)[i];
      if (flags ? value < 0 || value > 1 : value < 0 || value >= c.num_layers) {
        keys.fail("attention.recurrent_layers",
                  fmt::format("entry {} is {}; flags 0 or 1 or layers below {} allowed", i, value, c.num_layers));
      }
      if (flags && i < layers) c.recurrent[i] = value != 0;
      if (!flags) c.recurrent[static_cast<size_t>(value)] = true;
    }
  } else {
    const int64_t interval = keys.integer("full_attention_interval", 1, kMaxLayers, 4);
    for (int64_t i = 0; i < c.num_layers; ++i) c.recurrent[static_cast<size_t>(i)] = (i + 1) % interval != 0;
  }
  c.state_size = static_cast<int>(keys.integer("ssm.state_size", 16, 4096));
  if (c.state_size % 16 != 0) keys.fail("ssm.state_size", fmt::format("{} is no multiple of 16", c.state_size));
  c.num_key_heads = static_cast<int>(keys.integer("ssm.group_count", 1, ModelConfig::kMaxHeads));
  c.num_value_heads = static_cast<int>(keys.integer("ssm.time_step_rank", 1, ModelConfig::kMaxHeads));
  if (c.num_value_heads % c.num_key_heads != 0) {
    keys.fail("ssm.time_step_rank",
              fmt::format("{} value heads are no multiple of ssm.group_count {}", c.num_value_heads, c.num_key_heads));
  }
  c.conv_taps = static_cast<int>(keys.integer("ssm.conv_kernel", 1, 64));
  const int64_t value_dim = int64_t{c.state_size} * c.num_value_heads;
  const int64_t inner = keys.integer("ssm.inner_size", 1, int64_t{1} << 40, value_dim);
  if (inner != value_dim) {
    keys.fail("ssm.inner_size",
              fmt::format("{} differs from ssm.state_size x ssm.time_step_rank = {}", inner, value_dim));
  }
}

void read_mixers(const Metadata& keys, ModelConfig& c) {
  c.gated_attention = true;
  read_attention(keys, c);
  read_delta_net(keys, c);
}

void read_moe_config(const Metadata& keys, ModelConfig& c) {
  read_mixers(keys, c);
  read_experts(keys, c);
  const int64_t fallback = keys.integer("feed_forward_length", 1, ModelConfig::kMaxDim, c.expert_dim);
  c.shared_expert_dim = keys.integer("expert_shared_feed_forward_length", 1, ModelConfig::kMaxDim, fallback);
}

void read_dense_config(const Metadata& keys, ModelConfig& c) {
  read_mixers(keys, c);
  read_dense_feed_forward(keys, c);
}

void declare_delta_net(WeightLoader& load, const ModelConfig& c, const std::string& block, LayerWeights& layer) {
  DeltaNetWeights& to = layer.mixer.emplace<DeltaNetWeights>();
  const DeltaNetShape& shape = to.shape = {c.state_size, c.num_key_heads, c.num_value_heads, c.conv_taps};
  load.matrix(block + "attn_qkv.weight", shape.conv_channels(), c.hidden_dim, to.qkv);
  load.matrix(block + "attn_gate.weight", shape.value_dim(), c.hidden_dim, to.gate);
  load.matrix(block + "ssm_beta.weight", c.num_value_heads, c.hidden_dim, to.beta);
  load.matrix(block + "ssm_alpha.weight", c.num_value_heads, c.hidden_dim, to.alpha);
  load.matrix(block + "ssm_out.weight", c.hidden_dim, shape.value_dim(), to.out);
  load.vector(block + "ssm_conv1d.weight", shape.conv_channels() * c.conv_taps, to.conv);
  load.vector(block + "ssm_dt.bias", c.num_value_heads, to.dt);
  load.vector(block + "ssm_a", c.num_value_heads, to.a);
  load.vector(block + "ssm_norm.weight", c.state_size, to.norm);
}

void declare_layer(WeightLoader& load, const ModelConfig& c, int index, LayerWeights& to) {
  const std::string block = fmt::format("blk.{}.", index);
  load.vector(block + "attn_norm.weight", c.hidden_dim, to.mix_norm);
  load.vector(block + "post_attention_norm.weight", c.hidden_dim, to.ffn_norm);
  if (c.is_recurrent(index)) {
    declare_delta_net(load, c, block, to);
  } else {
    declare_attention(load, c, block, to);
  }
  if (c.num_experts > 0) {
    declare_experts(load, c, block, to);
  } else {
    declare_dense_feed_forward(load, c, block, to);
  }
}

}  // namespace

const Family Qwen35Moe::kFamily = {"qwen35moe", /*most_mtp_layers=*/1, read_moe_config, declare_layer};
const Family Qwen35::kFamily = {"qwen35", /*most_mtp_layers=*/1, read_dense_config, declare_layer};

}  // namespace foretoken
