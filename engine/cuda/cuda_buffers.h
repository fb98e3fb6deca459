#pragma once

#include <cstdint>
#include <vector>

#include "engine/cuda/cuda_arena.h"
#include "engine/model/shapes.h"
#include "engine/model/weights.h"
#include "engine/options.h"
#include "kernels/delta_net/delta_net_cuda.h"
#include "kernels/matmul/matmul_cuda.h"

namespace foretoken::cuda {

/// Work memory of a pass over up to pass_rows(options) rows, used by one layer after the other; see PassBuffers.
/// Declared from the weights' description alone: their types say which forms of rows are read.
struct CudaBuffers {
  CudaBuffers(const ModelShapes& shapes, const BasicModelWeights<MatrixView>& weights, const SessionOptions& options);
  CudaBuffers(const CudaBuffers&) = delete;
  CudaBuffers& operator=(const CudaBuffers&) = delete;

  /// The table of a layer's rotation: [ctx_size][cos dim/2 | sin dim/2].
  [[nodiscard]] const float* rope(const RopeShape& shape) const;

  float* residual = nullptr;      // [hidden_dim]
  DeviceRows normed;              // [hidden_dim]
  float* mixed = nullptr;         // [hidden_dim]
  std::vector<RopeShape> ropes;   // of all layers
  std::vector<float*> rope_data;  // [ropes]
  // Attention.
  float *q = nullptr, *k = nullptr, *v = nullptr, *queries = nullptr;
  float* parts = nullptr;  // of the rows of all windows
  DeviceRows attended;
  // Delta net.
  float *raw = nullptr, *z = nullptr, *b = nullptr, *alpha = nullptr;
  DeltaBank chunk;  // of prompt chunks
  DeviceRows delta_out;
  // Feed-forward.
  float *router_logits = nullptr, *weights = nullptr, *shared_weight = nullptr;
  int32_t* experts = nullptr;
  int32_t *bucket_experts = nullptr, *bucket_begins = nullptr, *bucket_slots = nullptr;
  int32_t* num_tiles = nullptr;               // [kTileSizes]
  BucketTile* bucket_tiles[kTileSizes] = {};  // as GroupDesc::tiles
  int32_t* num_buckets = nullptr;             // [layers + 1] of each layer's last pass; the MTP layer's is the last
  // [max_rows * top_k + max_rows, expert_dim], of the slots and of the shared expert where it is a bucket beside them;
  // [max_rows, dim of shared expert or dense part]
  DeviceRows inner, shared_inner;
  float* up = nullptr;      // gate and up of different types: up's rows before they meet
  float* slots = nullptr;   // [max_rows * top_k + max_rows, hidden_dim] what each slot adds, then the shared expert
  float* shared = nullptr;  // [max_rows, hidden_dim]
  // MTP layer.
  DeviceRows join;                // [2 * hidden_dim] normed embedding, normed hidden
  float* mtp_residual = nullptr;  // [hidden_dim] of the rows that go through the whole layer
  BlasWork blas;                  // its library is set later, if its workspace is wanted (not nullptr)

  DeviceArena memory;
};

/// Forms (RowMemory::kBy32, kBy256) that the input of a matrix of this type and of so many rows needs; 0 for no matrix.
[[nodiscard]] inline unsigned input_forms(WeightType type, int64_t num_rows) {
  if (num_rows == 0) return 0;
  const int block = weight_type_info(type).activation_block;
  return block == 0 ? 0u : block == 32 ? RowMemory::kBy32 : RowMemory::kBy256;
}

// Of a matrix, and of a layer's part, in the memory of either side.

[[nodiscard]] inline unsigned input_forms(const DeviceMatrix& matrix) {
  return input_forms(matrix.type, matrix.num_rows);
}
[[nodiscard]] inline unsigned input_forms(const MatrixView& matrix) {
  return input_forms(matrix.type, matrix.num_rows);
}
template <class Matrix>
[[nodiscard]] unsigned input_forms(const BasicAttentionWeights<Matrix>& weights) {
  return input_forms(weights.q) | input_forms(weights.k) | input_forms(weights.v);
}
template <class Matrix>
[[nodiscard]] unsigned input_forms(const BasicDeltaNetWeights<Matrix>& weights) {
  return input_forms(weights.qkv) | input_forms(weights.gate) | input_forms(weights.beta) | input_forms(weights.alpha);
}
template <class Matrix>
[[nodiscard]] unsigned input_forms(const BasicDenseWeights<Matrix>& weights) {
  return input_forms(weights.gate) | input_forms(weights.up);
}
template <class Matrix>
[[nodiscard]] unsigned input_forms(const BasicMoeWeights<Matrix>& weights) {
  return input_forms(weights.router) | input_forms(weights.gate.all) | input_forms(weights.up.all) |
         input_forms(weights.shared);
}

}  // namespace foretoken::cuda
