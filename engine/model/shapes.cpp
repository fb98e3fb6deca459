#include "engine/model/shapes.h"

#include <algorithm>

namespace foretoken {

ModelShapes::ModelShapes(const ModelConfig& config) : hidden_dim(config.hidden_dim), vocab_size(config.vocab_size) {
  moe.hidden_dim = hidden_dim;
}

void ModelShapes::add(const AttentionShape& shape) {
  attention.push_back(shape);
  if (std::find(ropes.begin(), ropes.end(), shape.rope) == ropes.end()) ropes.push_back(shape.rope);
  num_heads = std::max(num_heads, shape.num_heads);
  head_dim = std::max(head_dim, shape.head_dim);
  q_rows = std::max(q_rows, shape.q_rows());
  query_dim = std::max(query_dim, shape.query_dim());
  kv_dim = std::max(kv_dim, shape.kv_dim());
}

void ModelShapes::add(const DeltaNetShape& shape) {
  delta_nets.push_back(shape);
  state_size = std::max(state_size, shape.state_size);
  num_value_heads = std::max(num_value_heads, shape.num_value_heads);
  value_dim = std::max(value_dim, shape.value_dim());
  conv_channels = std::max(conv_channels, shape.conv_channels());
}

}  // namespace foretoken
