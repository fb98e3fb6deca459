#pragma once

#include <cstdint>

#include "kernels/cuda/cuda_runtime_wrap.h"

namespace foretoken::cuda {

/// to[r] = from[from_rows[r]].
struct GatherRowsDesc {
  const float* from = nullptr;
  const int32_t* from_rows = nullptr;  // [num_rows]
  float* to = nullptr;                 // [num_rows, num_cols]
  int64_t num_cols = 0;
  int num_rows = 0;
};

/// to[to_rows[r]] = from[r]; rows whose number is negative go nowhere.
struct ScatterRowsDesc {
  const float* from = nullptr;       // [num_rows, num_cols]
  const int32_t* to_rows = nullptr;  // [num_rows], all different where they are not negative
  float* to = nullptr;
  int64_t num_cols = 0;
  int num_rows = 0;
};

/// gate[i] = silu(gate[i]) * up[i]: for matrices of two types, which no matmul takes in one pass.
struct SiluMulDesc {
  float* gate = nullptr;
  const float* up = nullptr;
  int64_t num_values = 0;
};

void launch(const GatherRowsDesc& desc, const Stream& stream);
void launch(const ScatterRowsDesc& desc, const Stream& stream);
void launch(const SiluMulDesc& desc, const Stream& stream);

/// The runtime's handle of one of these kernels: to ask whether the program has code for the GPU at hand.
[[nodiscard]] const void* any_kernel();

}  // namespace foretoken::cuda
