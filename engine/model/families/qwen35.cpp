#include "engine/model/families/qwen35.h"

#include <fmt/format.h>

#include <numeric>
#include <utility>

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
      if (!flags) c.recurrent[value] = true;
    }
  } else {
    const int64_t interval = keys.integer("full_attention_interval", 1, kMaxLayers, 4);
    for (int64_t i = 0; i < c.num_layers; ++i) c.recurrent[i] = (i + 1) % interval != 0;
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

void read_next_config(const Metadata& keys, ModelConfig& c) {
  read_moe_config(keys, c);
  c.grouped_heads = true;
}

/// Rows of a tensor that holds, for each key head, its rows of one part after the other: of part `part` those of all
/// key heads.
std::vector<RowRange> rows_of_part(const std::vector<int64_t>& part_rows, size_t part, int num_key_heads) {
  const int64_t stride = std::accumulate(part_rows.begin(), part_rows.end(), int64_t{0});
  const int64_t first =
      std::accumulate(part_rows.begin(), part_rows.begin() + static_cast<ptrdiff_t>(part), int64_t{0});
  std::vector<RowRange> rows;
  for (int64_t head = 0; head < num_key_heads; ++head)
    rows.push_back({head * stride + first, head * stride + first + part_rows[part]});
  return rows;
}

/// Queries, keys and values, and z: attn_qkv and attn_gate, or ssm_in of older files, by key head.
void declare_inputs(WeightLoader& load, const ModelConfig& c, const std::string& block, DeltaNetWeights& to) {
  const DeltaNetShape& shape = to.shape;
  const std::string fused = block + "ssm_in.weight";
  if (load.has(block + "attn_qkv.weight") || !load.has(fused)) {
    load.matrix(block + "attn_qkv.weight", shape.conv_channels(), c.hidden_dim, to.qkv);
    load.matrix(block + "attn_gate.weight", shape.value_dim(), c.hidden_dim, to.gate);
    return;
  }
  const int64_t key = c.state_size, value = shape.value_dim() / c.num_key_heads;
  const std::vector<int64_t> parts = {key, key, value, value};
  std::vector<RowRange> qkv;
  for (size_t part = 0; part < 3; ++part) {
    const std::vector<RowRange> rows = rows_of_part(parts, part, c.num_key_heads);
    qkv.insert(qkv.end(), rows.begin(), rows.end());
  }
  load.picked_rows(fused, shape.conv_channels() + shape.value_dim(), c.hidden_dim, std::move(qkv), to.qkv);
  load.picked_rows(fused, shape.conv_channels() + shape.value_dim(), c.hidden_dim,
                   rows_of_part(parts, 3, c.num_key_heads), to.gate);
}

void declare_delta_net(WeightLoader& load, const ModelConfig& c, const std::string& block, LayerWeights& layer) {
  DeltaNetWeights& to = layer.mixer.emplace<DeltaNetWeights>();
  const DeltaNetShape& shape =
      to.shape = {c.state_size, c.num_key_heads, c.num_value_heads, c.conv_taps, c.grouped_heads};
  declare_inputs(load, c, block, to);
  const std::string gates = block + "ssm_ba.weight";
  if (load.has(gates) || (c.grouped_heads && !load.has(block + "ssm_beta.weight"))) {
    const int64_t each = c.num_value_heads / c.num_key_heads;
    load.picked_rows(gates, 2 * c.num_value_heads, c.hidden_dim, rows_of_part({each, each}, 0, c.num_key_heads),
                     to.beta);
    load.picked_rows(gates, 2 * c.num_value_heads, c.hidden_dim, rows_of_part({each, each}, 1, c.num_key_heads),
                     to.alpha);
  } else {
    load.matrix(block + "ssm_beta.weight", c.num_value_heads, c.hidden_dim, to.beta);
    load.matrix(block + "ssm_alpha.weight", c.num_value_heads, c.hidden_dim, to.alpha);
  }
  load.matrix(block + "ssm_out.weight", c.hidden_dim, shape.value_dim(), to.out);
  load.vector(block + "ssm_conv1d.weight", shape.conv_channels() * c.conv_taps, to.conv);
  // Ollama's converter leaves the suffix out.
  load.vector(block + (load.has(block + "ssm_dt") ? "ssm_dt" : "ssm_dt.bias"), c.num_value_heads, to.dt);
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
    declare_attention(load, c, block, HeadNorms::kOwn, to);
  }
  if (c.num_experts > 0) {
    declare_experts(load, c, block, to);
  } else {
    declare_dense_feed_forward(load, c, block, to);
  }
}

}  // namespace

const Family Qwen35Moe::kFamily = {"qwen35moe", /*most_mtp_layers=*/1, read_moe_config, declare_layer};
const Family Qwen3Next::kFamily = {"qwen3next", /*most_mtp_layers=*/1, read_next_config, declare_layer};
const Family Qwen35::kFamily = {"qwen35", /*most_mtp_layers=*/1, read_dense_config, declare_layer};

}  // namespace foretoken
