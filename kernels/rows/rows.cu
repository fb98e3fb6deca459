#include "kernels/rows/rows_cuda.h"

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_language.h"

namespace foretoken::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kBlocksAtOnce = 4;  // of rows: told nothing, the compiler spills rather than to take more registers

// blockIdx.x: row, of which a prompt chunk can have more than a grid's y.
__global__ void __launch_bounds__(kThreads) cuda_gather_rows(GatherRowsDesc a) {
  start_next_kernel();
  wait_for_kernels_ahead();
  const int64_t i = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x, row = blockIdx.x;
  if (i < a.num_cols) a.to[row * a.num_cols + i] = a.from[a.from_rows[row] * a.num_cols + i];
}

// blockIdx.x: row.
__global__ void __launch_bounds__(kThreads) cuda_scatter_rows(ScatterRowsDesc a) {
  start_next_kernel();
  wait_for_kernels_ahead();
  const int64_t i = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x, row = blockIdx.x, to = a.to_rows[row];
  if (i < a.num_cols && to >= 0) a.to[to * a.num_cols + i] = a.from[row * a.num_cols + i];
}

// A block's threads together; 16 bytes at a time where the rows are aligned to it.
__device__ __forceinline__ void copy_row(const float* from, float* to, int64_t num_cols) {
  const int thread = static_cast<int>(threadIdx.x);
  if (num_cols % 4 == 0) {
    for (int64_t i = thread; i < num_cols / 4; i += kThreads) {
      reinterpret_cast<float4*>(to)[i] = reinterpret_cast<const float4*>(from)[i];
    }
  } else {
    for (int64_t i = thread; i < num_cols; i += kThreads) to[i] = from[i];
  }
}

// A block a row, so that the host can be told without the blocks waiting for each other.
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce) cuda_send_rows(SendRowsDesc a) {
  start_next_kernel();
  wait_for_kernels_ahead();
  const int64_t row = blockIdx.x;
  copy_row(a.from + row * a.num_cols, a.to + row * a.num_cols, a.num_cols);
  for (int k = static_cast<int>(threadIdx.x); k < a.top_k; k += kThreads) {
    a.to_experts[row * a.top_k + k] = a.experts[row * a.top_k + k];
  }
  __syncthreads();
  if (threadIdx.x == 0) raise_flag(a.flags + row);
}

// A block a row. How many there are only the host knows.
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce) cuda_receive_rows(ReceiveRowsDesc a) {
  start_next_kernel();
  wait_for_kernels_ahead();
  if (threadIdx.x == 0) wait_for_flag(a.flag);
  __syncthreads();
  const int64_t row = blockIdx.x;
  if (row < *a.num_rows) copy_row(a.from + row * a.num_cols, a.to + a.to_rows[row] * a.num_cols, a.num_cols);
}

__global__ void __launch_bounds__(kThreads) cuda_silu_mul(SiluMulDesc a) {
  start_next_kernel();
  wait_for_kernels_ahead();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < a.num_values) a.gate[i] = math::silu(a.gate[i]) * a.up[i];
}

unsigned blocks_of(int64_t values) {
  return static_cast<unsigned>((values + kThreads - 1) / kThreads);
}

}  // namespace

void launch(const GatherRowsDesc& desc, const Stream& stream) {
  if (desc.num_rows == 0) return;
  launch(stream, {{static_cast<unsigned>(desc.num_rows), blocks_of(desc.num_cols)}, {kThreads}}, "cuda_gather_rows",
         cuda_gather_rows, desc);
}

void launch(const ScatterRowsDesc& desc, const Stream& stream) {
  if (desc.num_rows == 0) return;
  launch(stream, {{static_cast<unsigned>(desc.num_rows), blocks_of(desc.num_cols)}, {kThreads}}, "cuda_scatter_rows",
         cuda_scatter_rows, desc);
}

void launch(const SendRowsDesc& desc, const Stream& stream) {
  launch(stream, {{static_cast<unsigned>(desc.num_rows)}, {kThreads}}, "cuda_send_rows", cuda_send_rows, desc);
}

void launch(const ReceiveRowsDesc& desc, const Stream& stream) {
  LaunchShape shape{{static_cast<unsigned>(desc.max_rows)}, {kThreads}};
  shape.waits_for = desc.flag;
  launch(stream, shape, "cuda_receive_rows", cuda_receive_rows, desc);
}

void launch(const SiluMulDesc& desc, const Stream& stream) {
  launch(stream, {{blocks_of(desc.num_values)}, {kThreads}}, "cuda_silu_mul", cuda_silu_mul, desc);
}

const void* any_kernel() {
  return reinterpret_cast<const void*>(&cuda_silu_mul);
}

}  // namespace foretoken::cuda
