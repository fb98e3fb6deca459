#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/cuda/cuda_pass.h"
#include "kernels/cuda/cuda_rows.h"
#include "kernels/cuda/cuda_runtime_wrap.h"

namespace foretoken::cuda {

/// The keys and values of one layer in pages of kAttentionSplit positions: [num_kv_heads][keys,
/// values][kAttentionSplit] [head_dim] from value page * page_stride on. Positions [256 i, 256 (i + 1)) of sequence s
/// are in page pages[s * pages_per_sequence + i].
struct DeviceKv {
  void* data = nullptr;  // of page 0
  int64_t page_stride = 0;
  const int32_t* pages = nullptr;  // [sequences, pages_per_sequence] in device memory
  int64_t pages_per_sequence = 0;
  KvType type = KvType::kF16;
};

/// Norm of queries and keys by head where there are weights for it, rotation, and the cache's new rows: query head h of
/// row r is at q + r * q_stride + h * q_head_stride (gates may stand between the heads). Any of q and k, v may be
/// nullptr: not wanted.
struct PrepareAttentionDesc {
  const float* q = nullptr;
  int64_t q_stride = 0, q_head_stride = 0;
  const float* k = nullptr;       // [rows, num_kv_heads * head_dim]
  const float* v = nullptr;       // [rows, num_kv_heads * head_dim]
  const float* q_norm = nullptr;  // [head_dim], or nullptr
  const float* k_norm = nullptr;  // [head_dim], or nullptr
  // Added first; nullptr: none. The queries' stands as q does: head h at q_bias + h * q_head_stride.
  const float *q_bias = nullptr, *k_bias = nullptr, *v_bias = nullptr;
  float eps = 0;
  const float* rope = nullptr;  // [positions][cos rope_dim/2 | sin rope_dim/2], as RopeTable
  int rope_dim = 0;
  bool adjacent_pairs = false;  // RopePairs::kAdjacent
  int num_heads = 0, num_kv_heads = 0, head_dim = 0;
  float* queries = nullptr;  // [rows, num_heads * head_dim]
  DeviceKv kv;
  int max_rows = 0;
  DevicePass pass;
};

/// Causal attention of every row over the positions of its sequence up to its own, then out *= sigmoid(gate) where
/// there is a gate: splits of kAttentionSplit positions and their merge as attention_split, attention_merge,
/// attention_finish.
struct AttentionDesc {
  const float* queries = nullptr;  // [rows, num_heads * head_dim]
  DeviceKv kv;
  int num_heads = 0, num_kv_heads = 0, head_dim = 0;  // head_dim <= 256
  float scale = 0;
  const float* gate = nullptr;  // gate of head h of row r: gate + r * gate_stride + h * gate_head_stride; nullptr: none
  int64_t gate_stride = 0, gate_head_stride = 0;
  const float* gate_bias = nullptr;  // added to it: of head h at gate_bias + h * gate_head_stride; nullptr: none
  float* out = nullptr;              // [rows, num_heads * head_dim]
  int max_rows = 0;
  DevicePass pass;
  int max_window_rows = 0;  // rows of windows, at most
  /// part_floats() of work memory, for splits of windows that are computed apart; nullptr: a block walks all splits. A
  /// prompt chunk's blocks always do.
  float* parts = nullptr;
  /// The int8 forms of out: of windows that are computed apart, where their splits are merged. Empty: not wanted.
  QuantRows by32, by256;

  /// Floats of `parts`: of each split of each query its values, its largest score and its sum.
  [[nodiscard]] int64_t part_floats() const {
    return int64_t{max_window_rows} * num_heads * kv.pages_per_sequence * (head_dim + 2);
  }
};

struct AttentionConfig {
  bool apart = false;        // windows: splits by different blocks, then merged; otherwise each block walks its splits
  int blocks_of_splits = 1;  // apart: blocks that share the splits of a group of queries
};

[[nodiscard]] AttentionConfig choose_config(const AttentionDesc& desc);
void launch(const PrepareAttentionDesc& desc, const Stream& stream);
void launch(const AttentionDesc& desc, const AttentionConfig& config, const Stream& stream);

}  // namespace foretoken::cuda
