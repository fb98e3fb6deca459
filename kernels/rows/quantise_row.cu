#include "kernels/cuda/cuda_matrix.h"
#include "kernels/cuda/cuda_rows.cuh"
#include "kernels/rows/quantise_row_cuda.h"

namespace foretoken::cuda {

namespace {

// A warp takes 256 values of one row: blockIdx.x is the row, of which there can be more than a grid's y.
__global__ void cuda_quantise_rows(DeviceRows rows, const int32_t* num_rows) {
  start_next_kernel();
  wait_for_kernels_ahead();
  const int64_t row = blockIdx.x;
  if (num_rows != nullptr && row >= *num_rows) return;
  const int64_t chunk = static_cast<int64_t>(blockIdx.y) * (blockDim.x / kWarpSize) + threadIdx.x / kWarpSize;
  if (chunk * 256 >= rows.num_cols) return;
  quantise_chunk(rows.values + row * rows.num_cols + chunk * 256, rows.num_cols, chunk,
                 static_cast<int>(threadIdx.x % kWarpSize), rows.by32, rows.by256, row);
}

}  // namespace

QuantiseConfig choose_config(const QuantiseDesc& desc) {
  const int64_t chunks = (desc.rows.num_cols + 255) / 256;
  return {static_cast<int>(chunks < 4 ? chunks : 4)};
}

void launch(const QuantiseDesc& desc, const QuantiseConfig& config, const Stream& stream) {
  const int64_t chunks = (desc.rows.num_cols + 255) / 256;
  const int64_t blocks = (chunks + config.warps_per_block - 1) / config.warps_per_block;
  launch(stream,
         {{static_cast<unsigned>(desc.num_rows), static_cast<unsigned>(blocks)},
          {static_cast<unsigned>(config.warps_per_block * kWarpSize)}},
         "cuda_quantise_rows", cuda_quantise_rows, desc.rows, desc.device_num_rows);
}

}  // namespace foretoken::cuda
