#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/cuda/cuda_pass.h"
#include "kernels/cuda/cuda_runtime_wrap.h"

namespace foretoken::cuda {

/// The keys and values of one layer: [num_kv_heads][ctx_size][head_dim].
struct DeviceKv {
  void* keys = nullptr;
  void* values = nullptr;
  int64_t ctx_size = 0;
  KvType type = KvType::kF16;
};

/// Norm of queries and keys by head, rotation, and the cache's new rows: query head h of row r is at q + r * q_stride +
/// h * q_head_stride (gates may stand between the heads). Any of q and k, v may be nullptr: not wanted. Rows stand at
/// positions pass->position + r.
struct PrepareAttentionDesc {
  const float* q = nullptr;
  int64_t q_stride = 0, q_head_stride = 0;
  const float* k = nullptr;       // [rows, num_kv_heads * head_dim]
  const float* v = nullptr;       // [rows, num_kv_heads * head_dim]
  const float* q_norm = nullptr;  // [head_dim]
  const float* k_norm = nullptr;  // [head_dim]
  float eps = 0;
  const float* rope = nullptr;  // [positions][cos rope_dim/2 | sin rope_dim/2], as RopeTable
  int rope_dim = 0;
  int num_heads = 0, num_kv_heads = 0, head_dim = 0;
  float* queries = nullptr;  // [rows, num_heads * head_dim]
  DeviceKv kv;
  int max_rows = 0;
  const PassScalars* pass = nullptr;  // in device memory
};

/// Causal attention of every row over positions [0, pass->position + row], then out *= sigmoid(gate) where there is a
/// gate: splits of kAttentionSplit positions and their merge as attention_split, attention_merge, attention_finish.
struct AttentionDesc {
  const float* queries = nullptr;  // [rows, num_heads * head_dim]
  DeviceKv kv;
  int num_heads = 0, num_kv_heads = 0, head_dim = 0;  // head_dim <= 256
  float scale = 0;
  const float* gate = nullptr;  // gate of head h of row r: gate + r * gate_stride + h * gate_head_stride; nullptr: none
  int64_t gate_stride = 0, gate_head_stride = 0;
  float* out = nullptr;  // [rows, num_heads * head_dim]
  int max_rows = 0;
  const PassScalars* pass = nullptr;
  float* parts =
      nullptr;  // part_floats() of work memory, for splits computed apart; nullptr: one block walks all splits

  /// Floats of `parts`: of each split of each query its values, its largest score and its sum.
  [[nodiscard]] int64_t part_floats() const {
    const int64_t splits = (kv.ctx_size + kAttentionSplit - 1) / kAttentionSplit;
    return int64_t{max_rows} * num_heads * splits * (head_dim + 2);
  }
};

struct AttentionConfig {
  bool apart = false;        // splits by different blocks, then merged; otherwise each block walks its splits
  int blocks_of_splits = 1;  // apart: blocks that share the splits of a group of queries
};

[[nodiscard]] AttentionConfig choose_config(const AttentionDesc& desc);
void launch(const PrepareAttentionDesc& desc, const Stream& stream);
void launch(const AttentionDesc& desc, const AttentionConfig& config, const Stream& stream);

}  // namespace foretoken::cuda
