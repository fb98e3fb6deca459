#pragma once

#include "kernels/cuda/cuda_language.h"
#include "kernels/formats/quant_blocks_cuda.cuh"
#include "kernels/matmul/matmul.h"
#include "kernels/matmul/matmul_cuda.h"

// What the matrix kernels share: which rows a block of threads works on, and the folds of rule 1.

namespace foretoken::cuda {

inline constexpr int kMaxParts = 1 + kMaxMoreOutputs;

/// One of the matrices of a launch, and where its products go. The launch's blocks of outputs are shared out part after
/// part.
struct MatmulPart {
  const std::byte* w;
  float* y;
  int64_t y_stride;
  int64_t num_outputs;
  float scale;
  unsigned first_block;  // along the grid's x; of a part that is not there: beyond any grid
};

/// What a kernel needs of a MatmulDesc. As __grid_constant__ a kernel may choose a part by its number: without, the
/// compiler would copy all of this to local memory first.
struct MatmulArguments {
  MatmulPart parts[kMaxParts];
  const std::byte* up;  // or nullptr
  int64_t row_bytes;
  int64_t num_cols;
  QuantRows rows;       // quantised matrices
  const float* values;  // float matrices
  int num_rows;
  const int32_t* device_num_rows;
  DeviceBuckets buckets;
  int64_t expert_bytes;
  int slots_per_input;
  const int32_t* groups;
  const int32_t* device_num_groups;
  int64_t num_rows_of_w;
  float up_scale;
  const float* scales;  // of each expert, or nullptr
  const float* up_scales;
  SharedBucket shared;
};

/// Number of the part that this block of threads works on.
__device__ __forceinline__ int part_of_block(const MatmulArguments& a) {
  int part = 0;
  FT_UNROLL
  for (int i = 1; i < kMaxParts; ++i) part += blockIdx.x >= a.parts[i].first_block ? 1 : 0;
  return part;
}

/// Asks for the beginning of `size_bytes` of weights, as far as a warp is to ask at once. One thread.
__device__ __forceinline__ void prefetch_rows(const std::byte* rows, int64_t size_bytes) {
  // Of a matrix. With 16 warps each, 132 multiprocessors ask for 9 MB then, of a cache of 50.
  constexpr int64_t kMostBytes = 4096;
  prefetch_constant(rows, static_cast<unsigned>(size_bytes < kMostBytes ? size_bytes : kMostBytes));
}

/// Before the wait for the kernels ahead: asks for the rows of weights that this warp will read, those of outputs
/// [first, first + count), which lie side by side. Only where the launch's parameters alone say which they are: buckets
/// and groups are tables in device memory.
__device__ __forceinline__ void prefetch_weights(const MatmulArguments& a, const MatmulPart& part, int64_t first,
                                                 int64_t count) {
  if (a.buckets.num_buckets != nullptr || a.groups != nullptr || first >= part.num_outputs) return;
  const int64_t left = part.num_outputs - first, size_bytes = (count < left ? count : left) * a.row_bytes;
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  if (lane == 0) prefetch_rows(part.w + first * a.row_bytes, size_bytes);
  if (lane == 1 && a.up != nullptr) prefetch_rows(a.up + first * a.row_bytes, size_bytes);
}

/// The rows that one block of threads serves, and their matrix.
struct RowSet {
  int count;
  const int32_t* slots;  // nullptr: row i is row first_input + i of x, first_output + i of y
  int slots_per_input;
  const std::byte* w;
  const std::byte* up;
  float scale, up_scale;  // what their products are multiplied by
  int32_t first_input = 0, first_output = 0;

  [[nodiscard]] __device__ __forceinline__ int64_t input(int i) const {
    return slots == nullptr ? first_input + i : slots[i] / slots_per_input;
  }
  [[nodiscard]] __device__ __forceinline__ int64_t output(int i) const {
    return slots == nullptr ? first_output + i : slots[i];
  }
};

/// The rows of bucket `bucket` (0 without buckets); count 0 if there is no such bucket. The shared one comes first: it has
/// the most rows.
__device__ __forceinline__ RowSet rows_of_bucket(const MatmulArguments& a, const MatmulPart& part, int bucket) {
  if (a.buckets.num_buckets == nullptr) {
    const int count = a.device_num_rows == nullptr ? a.num_rows : *a.device_num_rows;
    return {count < a.num_rows ? count : a.num_rows, nullptr, 1, part.w, a.up, part.scale, a.up_scale};
  }
  if (a.shared.w.data != nullptr && bucket-- == 0) {
    return {a.num_rows,
            nullptr,
            1,
            a.shared.w.data,
            a.shared.up.data,
            a.shared.w.scale,
            a.shared.up.scale,
            a.shared.first_input,
            a.shared.first_output};
  }
  if (bucket >= *a.buckets.num_buckets) return {0, nullptr, 1, nullptr, nullptr, 1.0f, 1.0f};
  const int begin = a.buckets.begins[bucket], end = a.buckets.begins[bucket + 1];
  const int64_t expert = a.buckets.experts[bucket], offset = expert * a.expert_bytes;
  return {end - begin,
          a.buckets.slots + begin,
          a.slots_per_input,
          part.w + offset,
          a.up == nullptr ? nullptr : a.up + offset,
          a.scales == nullptr ? part.scale : a.scales[expert],
          a.up_scales == nullptr ? a.up_scale : a.up_scales[expert]};
}

/// Row of w that gives output o.
__device__ __forceinline__ int64_t weight_row(const MatmulArguments& a, int64_t o) {
  return a.groups == nullptr ? o : int64_t{a.groups[o / kInterleave]} * kInterleave + o % kInterleave;
}

/// Outputs there are; with groups, as many as the device knows of. The last group may reach beyond the matrix.
__device__ __forceinline__ int64_t outputs_of(const MatmulArguments& a, const MatmulPart& part) {
  if (a.device_num_groups == nullptr) return part.num_outputs;
  const int64_t groups = *a.device_num_groups;
  const int64_t beyond = (int64_t{a.groups[groups - 1]} + 1) * kInterleave - a.num_rows_of_w;
  const int64_t count = groups * kInterleave - (beyond > 0 ? beyond : 0);
  return count < part.num_outputs ? count : part.num_outputs;
}

/// Gives each part its blocks of `outputs_per_block` outputs; returns how many there are together.
inline unsigned share_out_blocks(MatmulArguments& a, int64_t outputs_per_block) {
  unsigned blocks = 0;
  for (MatmulPart& part : a.parts) {
    if (part.w == nullptr) continue;
    part.first_block = blocks;
    blocks += static_cast<unsigned>((part.num_outputs + outputs_per_block - 1) / outputs_per_block);
  }
  return blocks;
}

/// Blocks along the grid's y.
inline unsigned bucket_blocks(const MatmulDesc& desc) {
  if (desc.max_buckets == 0) return 1;
  return static_cast<unsigned>(desc.max_buckets + (desc.shared.w.data == nullptr ? 0 : 1));
}

/// silu(gate) * up, as silu_mul.
__device__ __forceinline__ float silu_times(float gate, float up) {
  return math::silu(gate) * up;
}

}  // namespace foretoken::cuda
