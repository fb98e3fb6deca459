#pragma once

#include <cstdint>

#include "kernels/cuda/cuda_runtime_wrap.h"
#include "kernels/matmul/matmul_cuda.h"

namespace foretoken::cuda {

/// Router logits -> experts and weights of each row, as route_row; and the shared expert's weight sigmoid(shared_router
/// . x).
struct RouteDesc {
  const float* logits = nullptr;  // [rows, num_experts]
  int num_experts = 0;
  int top_k = 0;
  int32_t* experts = nullptr;            // [rows, top_k] by falling probability; ties: lower index first
  float* weights = nullptr;              // [rows, top_k]
  const float* shared_router = nullptr;  // [num_cols] or nullptr
  const float* x = nullptr;              // [rows, num_cols] what shared_router meets
  int64_t num_cols = 0;
  float* shared_weight = nullptr;  // [rows]
  int max_rows = 0;
  const int32_t* device_num_rows = nullptr;
};

/// Groups the rows of a window by expert: DeviceBuckets in device memory.
struct GroupDesc {
  const int32_t* experts = nullptr;  // [rows, top_k]
  int num_experts = 0;
  int top_k = 0;
  /// [num_experts] where each expert's matrices are among those on the device, or negative: it is not there, and has no
  /// bucket. nullptr: expert e is the e-th.
  const int32_t* places = nullptr;
  int32_t* num_buckets = nullptr;     // [1]
  int32_t* bucket_experts = nullptr;  // [min(num_experts, max_rows * top_k)] places, of rising experts
  int32_t* begins = nullptr;          // [that + 1]
  int32_t* slots = nullptr;           // [max_rows * top_k]
  int max_rows = 0;
  const int32_t* device_num_rows = nullptr;

  [[nodiscard]] int max_buckets() const { return num_experts < max_rows * top_k ? num_experts : max_rows * top_k; }
  [[nodiscard]] DeviceBuckets buckets() const { return {num_buckets, bucket_experts, begins, slots}; }
};

/// num_experts has a kernel: 1 .. kMaxExperts.
inline constexpr int kMaxExperts = 1024;

void launch(const RouteDesc& desc, const Stream& stream);
void launch(const GroupDesc& desc, const Stream& stream);

}  // namespace foretoken::cuda
