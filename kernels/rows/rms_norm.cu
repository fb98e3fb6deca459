#include "kernels/rows/rms_norm_cuda.h"

#include "kernels/base/error.h"
#include "kernels/cuda/cuda_rows.cuh"
#include "kernels/matmul/float_dot_cuda.cuh"

namespace foretoken::cuda {

namespace {

constexpr int kRanksAhead = 8;  // slots whose values are asked for at once

/// What the experts add to value i of row `row`.
__device__ __forceinline__ float expert_sum(const ExpertSums& e, int64_t row, int64_t num_cols, int64_t i) {
  float sum = 0.0f;
  const float shared = e.shared == nullptr ? 0.0f : load_constant(e.shared + row * num_cols + i);
  for (int first = 0; first < e.top_k; first += kRanksAhead) {
    float weights[kRanksAhead], values[kRanksAhead];
    FT_UNROLL
    for (int r = 0; r < kRanksAhead; ++r) {
      const int64_t slot = row * e.top_k + (first + r < e.top_k ? first + r : first);
      weights[r] = load_constant(e.weights + slot);
      values[r] = load_constant(e.slots + slot * num_cols + i);
    }
    FT_UNROLL
    for (int r = 0; r < kRanksAhead; ++r) {
      if (first + r < e.top_k) sum = __fmaf_rn(weights[r], values[r], sum);
    }
  }
  if (e.shared != nullptr)
    sum = __fmaf_rn(e.shared_weight == nullptr ? 1.0f : load_constant(e.shared_weight + row), shared, sum);
  return sum;
}

/// All warps of the block quantise the row in shared memory, 256 values at a time.
__device__ __forceinline__ void quantise_shared_row(const float* values, int64_t num_cols, const QuantRows& by32,
                                                    const QuantRows& by256, int64_t row) {
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  if (by32.empty() && by256.empty()) return;
  for (int64_t chunk = threadIdx.x / kWarpSize; chunk * 256 < num_cols; chunk += blockDim.x / kWarpSize) {
    quantise_chunk(values + chunk * 256, num_cols, chunk, lane, by32, by256, row);
  }
}

// A block of threads a row. The sum of squares is one warp's: the contract has 32 sums, so more could not help.
__global__ void __launch_bounds__(1024) cuda_rms_norm_rows(NormRowsDesc a) {
  FT_DYNAMIC_SHARED(float, values);  // [num_cols]
  FT_SHARED(float, inverse, 1);
  const int64_t row = blockIdx.x;
  if (a.device_num_rows != nullptr && row >= *a.device_num_rows) return;
  float* residual = a.residual + row * a.num_cols;
  const bool changes = a.add != nullptr || a.experts.slots != nullptr;
  for (int64_t i = threadIdx.x; i < a.num_cols; i += blockDim.x) {
    float x = residual[i];
    if (a.add != nullptr) x = x + a.add[row * a.num_cols + i];
    if (a.experts.slots != nullptr) x = x + expert_sum(a.experts, row, a.num_cols, i);
    if (changes) residual[i] = x;
    values[i] = x;
  }
  if (a.weight == nullptr) return;
  __syncthreads();
  if (threadIdx.x < kWarpSize) {
    const float sum = warp_dot(values, values, a.num_cols, static_cast<int>(threadIdx.x));
    if (threadIdx.x == 0) inverse[0] = rms_inverse(sum, a.num_cols, a.eps);
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < a.num_cols; i += blockDim.x) {
    const float y = (values[i] * inverse[0]) * a.weight[i];
    values[i] = y;
    if (a.out != nullptr) a.out[row * a.out_stride + i] = y;
  }
  __syncthreads();
  quantise_shared_row(values, a.num_cols, a.by32, a.by256, row);
}

// A block of threads a row, a warp a head.
__global__ void __launch_bounds__(1024) cuda_gated_norm_rows(GatedNormRowsDesc a) {
  FT_DYNAMIC_SHARED(float, values);  // [num_heads * head_dim]
  const int64_t row = blockIdx.x, num_cols = int64_t{a.num_heads} * a.head_dim;
  if (a.device_num_rows != nullptr && row >= *a.device_num_rows) return;
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  for (int head = static_cast<int>(threadIdx.x / kWarpSize); head < a.num_heads;
       head += static_cast<int>(blockDim.x / kWarpSize)) {
    const int64_t begin = row * num_cols + int64_t{head} * a.head_dim;
    const float inverse = rms_inverse(warp_dot(a.x + begin, a.x + begin, a.head_dim, lane), a.head_dim, a.eps);
    for (int i = lane; i < a.head_dim; i += kWarpSize) {
      const float y = ((a.x[begin + i] * inverse) * a.weight[i]) * math::silu(a.z[begin + i]);
      values[head * a.head_dim + i] = y;
      a.out[begin + i] = y;
    }
  }
  __syncthreads();
  quantise_shared_row(values, num_cols, a.by32, a.by256, row);
}

}  // namespace

NormConfig choose_config(const NormRowsDesc& desc) {
  return {desc.num_cols >= 4096 ? 512 : 256};
}
NormConfig choose_config(const GatedNormRowsDesc& desc) {
  return {desc.num_heads >= 16 ? 512 : 256};
}

void launch(const NormRowsDesc& desc, const NormConfig& config, const Stream& stream) {
  FT_CHECK(desc.max_rows > 0 && config.threads % kWarpSize == 0);
  FT_CHECK(desc.by32.empty() || desc.by32.num_blocks * 32 == desc.num_cols);
  FT_CHECK(desc.by256.empty() || desc.by256.num_blocks * 256 == desc.num_cols);
  launch(stream,
         {{static_cast<unsigned>(desc.max_rows)},
          {static_cast<unsigned>(config.threads)},
          static_cast<size_t>(desc.num_cols) * sizeof(float)},
         "cuda_rms_norm_rows", cuda_rms_norm_rows, desc);
}

void launch(const GatedNormRowsDesc& desc, const NormConfig& config, const Stream& stream) {
  const int64_t num_cols = int64_t{desc.num_heads} * desc.head_dim;
  FT_CHECK(desc.max_rows > 0 && config.threads % kWarpSize == 0);
  FT_CHECK(desc.by32.empty() || desc.by32.num_blocks * 32 == num_cols);
  FT_CHECK(desc.by256.empty() || desc.by256.num_blocks * 256 == num_cols);
  launch(stream,
         {{static_cast<unsigned>(desc.max_rows)},
          {static_cast<unsigned>(config.threads)},
          static_cast<size_t>(num_cols) * sizeof(float)},
         "cuda_gated_norm_rows", cuda_gated_norm_rows, desc);
}

}  // namespace foretoken::cuda
