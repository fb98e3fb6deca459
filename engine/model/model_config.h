#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/model/rope_shape.h"

namespace foretoken {

class GgufFile;

/// Shapes and constants of a model, read from a file's metadata and checked. Names follow the models' papers; the GGUF
/// keys stand behind. What each layer is made of, a family says in its weights (weights.h).
struct ModelConfig {
  // Upper limits that no real model reaches and that keep every product of two of them inside int64.
  static constexpr int64_t kMaxDim = int64_t{1} << 24;
  static constexpr int64_t kMaxHeads = 65536;
  static constexpr int64_t kMaxExperts = 65536;
  static constexpr int64_t kMaxContext = int64_t{1} << 31;

  std::string architecture;    // general.architecture, of a family in families/families.h
  std::string name;            // general.name, may be empty
  int num_layers = 0;          // trunk layers: block_count - nextn_predict_layers
  int num_mtp_layers = 0;      // 1: the file has the MTP layer that nextn_predict_layers declares
  std::string mtp_absence;     // why there is none; empty if there is one
  int64_t hidden_dim = 0;      // embedding_length
  int64_t vocab_size = 0;      // from token_embd.weight
  int64_t context_length = 0;  // context_length
  float norm_eps = 0;          // attention.layer_norm_rms_epsilon

  int num_heads = 0;           // attention.head_count
  int num_kv_heads = 0;        // attention.head_count_kv
  int head_dim = 0;            // attention.key_length = value_length
  int rope_dim = 0;            // rope.dimension_count, default head_dim
  double rope_base = 10000.0;  // rope.freq_base
  RopePairs rope_pairs = RopePairs::kHalves;
  RopeScaling rope_scaling;      // rope.scaling.*
  bool gated_attention = false;  // attn_q holds query and gate per head

  int num_experts = 0;            // expert_count; 0: dense feed-forward
  int experts_per_token = 0;      // expert_used_count (top-k)
  int64_t expert_dim = 0;         // expert_feed_forward_length
  int64_t shared_expert_dim = 0;  // expert_shared_feed_forward_length; 0: no shared expert
  int64_t dense_dim = 0;          // feed_forward_length of dense layers; 0: there are none

  std::vector<bool> recurrent;  // [num_layers]: true for gated delta net layers
  int state_size = 0;           // ssm.state_size
  int num_key_heads = 0;        // ssm.group_count
  int num_value_heads = 0;      // ssm.time_step_rank
  int conv_taps = 0;            // ssm.conv_kernel
  bool grouped_heads = false;   // as in DeltaNetShape

  /// Layer `index` is a gated delta net; false for an MTP layer.
  [[nodiscard]] bool is_recurrent(int index) const {
    return static_cast<size_t>(index) < recurrent.size() && recurrent[index];
  }

  /// Throws InputError naming file, key, value and limit.
  [[nodiscard]] static ModelConfig read(const GgufFile& file);
};

}  // namespace foretoken
