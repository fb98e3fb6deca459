#pragma once

#include <cstdint>

#include "kernels/cuda/cuda_matrix.h"
#include "kernels/cuda/cuda_runtime_wrap.h"

namespace foretoken::cuda {

/// to[r] = the float values of row ids[r] of `matrix`, as decode_row. REQUIRES: num_cols is a multiple of 4, `to` aligned to
/// 16 bytes.
struct EmbedDesc {
  DeviceMatrix matrix;
  const int32_t* ids = nullptr;  // [rows] in device memory, each in [0, matrix.num_rows)
  float* to = nullptr;           // [rows, num_cols]
  int max_rows = 0;
  const int32_t* device_num_rows = nullptr;
};

void launch(const EmbedDesc& desc, const Stream& stream);

}  // namespace foretoken::cuda
