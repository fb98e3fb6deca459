#pragma once

#include <cstdint>
#include <vector>

#include "engine/cuda/cuda_arena.h"
#include "engine/cuda/cuda_weights.h"
#include "engine/model/shapes.h"
#include "engine/options.h"
#include "kernels/delta_net/delta_net_cuda.h"
#include "kernels/matmul/matmul_cuda.h"

namespace foretoken::cuda {

/// Work memory of a pass over up to pass_rows(options) rows, used by one layer after the other; see PassBuffers.
struct CudaBuffers {
  CudaBuffers(const ModelShapes& shapes, const CudaWeights& weights, const SessionOptions& options);
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
  DeltaSlot chunk;  // of prompt chunks
  DeviceRows delta_out;
  // Feed-forward.
  float *router_logits = nullptr, *weights = nullptr, *shared_weight = nullptr;
  int32_t* experts = nullptr;
  int32_t *bucket_experts = nullptr, *bucket_begins = nullptr, *bucket_slots = nullptr;
  int32_t* num_buckets = nullptr;  // [layers + 1] of each layer's last pass; the MTP layer's is the last
  DeviceRows inner, shared_inner;  // [max_rows * top_k, expert_dim], [max_rows, dim of shared expert or dense part]
  float* up = nullptr;             // gate and up of different types: up's rows before they meet
  float* slots = nullptr;          // [max_rows * top_k, hidden_dim] what each slot adds
  float* shared = nullptr;         // [max_rows, hidden_dim]
  // MTP layer.
  DeviceRows join;                // [2 * hidden_dim] normed embedding, normed hidden
  float* mtp_residual = nullptr;  // [hidden_dim] of the rows that go through the whole layer
  BlasWork blas;                  // its library is set later, if its workspace is wanted (not nullptr)

  DeviceArena memory;
};

/// Forms (RowMemory::kBy32, kBy256) that a matrix's or a part's input needs; 0 for no matrix.
[[nodiscard]] unsigned input_forms(const DeviceMatrix& matrix);
[[nodiscard]] unsigned input_forms(const CudaAttention& weights);
[[nodiscard]] unsigned input_forms(const CudaDeltaNet& weights);
[[nodiscard]] unsigned input_forms(const CudaMoe& weights);
[[nodiscard]] unsigned input_forms(const CudaDense& weights);

}  // namespace foretoken::cuda
