#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/model/model_config.h"
#include "engine/model/weights.h"
#include "moe/moe.h"

namespace foretoken {

/// What memory has to be taken for, from the weights' description alone: they need not be in memory.
struct ModelShapes {
  int64_t hidden_dim = 0;
  int64_t vocab_size = 0;
  int64_t head_rows = 0;  // of the head that this process has: vocab_size where it has all

  // Of the layers that remember something, by LayerWeights::mixer_idx.
  std::vector<AttentionShape> attention;  // the MTP layer's, if it is used, is the last
  std::vector<DeltaNetShape> delta_nets;

  /// The rotations of all layers, each once.
  std::vector<RopeShape> ropes;

  // Widths of work buffers, which one layer uses after the other: the largest of all layers.
  // Heads are those that this process has; the output matrices read those of all.
  int num_heads = 0;         // query heads
  int head_dim = 0;          // of attention
  int64_t q_rows = 0;        // AttentionShape::q_rows()
  int64_t query_dim = 0;     // AttentionShape::query_dim()
  int64_t attended_dim = 0;  // what attention's output matrix reads
  int64_t kv_dim = 0;        // AttentionShape::kv_dim()
  int state_size = 0;        // 0: no delta nets
  int num_value_heads = 0;
  int64_t value_dim = 0;
  int64_t delta_out_dim = 0;  // what the delta net's output matrix reads
  int64_t conv_channels = 0;
  MoeShape moe;

  /// with_mtp: the MTP layer is used.
  template <class Matrix>
  [[nodiscard]] static ModelShapes of(const BasicModelWeights<Matrix>& weights, const ModelConfig& config,
                                      bool with_mtp) {
    ModelShapes shapes(config);
    shapes.head_rows = weights.head.num_rows;
    for (const auto& layer : weights.layers) shapes.add_layer(layer);
    if (with_mtp) shapes.add_layer(weights.mtp.layer);
    return shapes;
  }

 private:
  explicit ModelShapes(const ModelConfig& config);
  void add(const AttentionShape& shape);
  void add(const DeltaNetShape& shape);

  template <class Matrix>
  void add_layer(const BasicLayerWeights<Matrix>& layer) {
    if (layer.is_elsewhere) return;
    std::visit([this](const auto& mixer) { add(mixer.shape); }, layer.mixer);
    if (layer.is_recurrent()) {
      delta_out_dim = std::max(delta_out_dim, layer.delta_net().out.num_cols);
    } else {
      attended_dim = std::max(attended_dim, layer.attention().output.num_cols);
    }
    if (layer.is_dense()) return moe.add_dense(layer.dense().dim());
    moe.add(layer.moe());
  }
};

}  // namespace foretoken
