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

/// Rows and the experts that were chosen for them, to the host, which is told of each row by its flag.
struct SendRowsDesc {
  const float* from = nullptr;       // [num_rows, num_cols]
  const int32_t* experts = nullptr;  // [num_rows, top_k]
  float* to = nullptr;               // the same of the host
  int32_t* to_experts = nullptr;
  uint32_t* flags = nullptr;  // [num_rows] of Flags
  int64_t num_cols = 0;
  int top_k = 0;
  int num_rows = 0;
};

/// ScatterRowsDesc of rows that the host makes meanwhile: waits until it has raised a flag, and takes as many as it says.
struct ReceiveRowsDesc {
  const uint32_t* flag = nullptr;     // of Flags
  const int32_t* num_rows = nullptr;  // [1] of the host, as from and to_rows
  const float* from = nullptr;        // [max_rows, num_cols]
  const int32_t* to_rows = nullptr;   // [max_rows], all different
  float* to = nullptr;
  int64_t num_cols = 0;
  int max_rows = 0;
};

/// gate[i] = silu(gate[i]) * up[i]: for matrices of two types, which no matmul takes in one pass.
struct SiluMulDesc {
  float* gate = nullptr;
  const float* up = nullptr;
  int64_t num_values = 0;
};

void launch(const GatherRowsDesc& desc, const Stream& stream);
void launch(const ScatterRowsDesc& desc, const Stream& stream);
void launch(const SendRowsDesc& desc, const Stream& stream);
void launch(const ReceiveRowsDesc& desc, const Stream& stream);
void launch(const SiluMulDesc& desc, const Stream& stream);

/// The runtime's handle of one of these kernels: to ask whether the program has code for the GPU at hand.
[[nodiscard]] const void* any_kernel();

}  // namespace foretoken::cuda
