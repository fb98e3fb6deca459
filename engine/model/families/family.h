#pragma once

#include <string>
#include <string_view>

#include "engine/model/metadata.h"
#include "engine/model/model_config.h"
#include "engine/model/weight_loader.h"
#include "engine/model/weights.h"

namespace foretoken {

/// What the program knows of one family of models: what its files say and hold. How its layers compute stands beside it
/// in the family's own header, families.h lists all of them.
struct Family {
  std::string_view architecture;  // general.architecture
  int most_mtp_layers;
  /// Reads shapes and constants beyond those that every model has.
  void (*read_config)(const Metadata& keys, ModelConfig& config);
  /// Declares the parts of block `index` with their shapes and tensors. An MTP layer's is config.num_layers.
  void (*declare_layer)(WeightLoader& load, const ModelConfig& config, int index, LayerWeights& to);
};

/// The family of an architecture, or nullptr.
[[nodiscard]] const Family* find_family(std::string_view architecture);
/// "qwen35moe, qwen35 and qwen3moe", for messages.
[[nodiscard]] std::string family_names();

/// Whether an attention layer's queries and keys are normed by head.
enum class HeadNorms { kNone, kOwn };

// Parts that several families share.
void read_attention(const Metadata& keys, ModelConfig& config);
/// feed_forward_length, of a dense model.
void read_dense_feed_forward(const Metadata& keys, ModelConfig& config);
/// Counts and widths of routed experts.
void read_experts(const Metadata& keys, ModelConfig& config);
/// Queries, keys and values from matrices of their own or from one of all three, with biases where the file has any.
void declare_attention(WeightLoader& load, const ModelConfig& config, const std::string& block, HeadNorms norms,
                       LayerWeights& to);
/// Router and routed experts, and the shared expert where config.shared_expert_dim says that there is one.
void declare_experts(WeightLoader& load, const ModelConfig& config, const std::string& block, LayerWeights& to);
void declare_dense_feed_forward(WeightLoader& load, const ModelConfig& config, const std::string& block,
                                LayerWeights& to);
/// The MTP layer in block config.num_layers: the family's layer, and the nextn tensors around it.
void declare_mtp(WeightLoader& load, const Family& family, const ModelConfig& config, ModelWeights& weights);

}  // namespace foretoken
