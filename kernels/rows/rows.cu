#include "kernels/rows/rows_cuda.h"

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_language.h"

namespace foretoken::cuda {

namespace {

constexpr int kThreads = 256;

// blockIdx.x: row, of which a prompt chunk can have more than a grid's y.
__global__ void __launch_bounds__(kThreads) cuda_gather_rows(GatherRowsDesc a) {
  const int64_t i = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x, row = blockIdx.x;
  if (i < a.num_cols) a.to[row * a.num_cols + i] = a.from[a.from_rows[row] * a.num_cols + i];
}

// blockIdx.x: row.
__global__ void __launch_bounds__(kThreads) cuda_scatter_rows(ScatterRowsDesc a) {
  const int64_t i = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x, row = blockIdx.x, to = a.to_rows[row];
  if (i < a.num_cols && to >= 0) a.to[to * a.num_cols + i] = a.from[row * a.num_cols + i];
}

__global__ void __launch_bounds__(kThreads) cuda_silu_mul(SiluMulDesc a) {
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

void launch(const SiluMulDesc& desc, const Stream& stream) {
  launch(stream, {{blocks_of(desc.num_values)}, {kThreads}}, "cuda_silu_mul", cuda_silu_mul, desc);
}

const void* any_kernel() {
  return reinterpret_cast<const void*>(&cuda_silu_mul);
}

}  // namespace foretoken::cuda
