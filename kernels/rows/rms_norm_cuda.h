#pragma once

#include <cstdint>

#include "kernels/cuda/cuda_rows.h"
#include "kernels/cuda/cuda_runtime_wrap.h"

namespace foretoken::cuda {

/// What the experts of a layer add to a row: the slots' outputs by falling weight, in rank order, then the shared
/// expert.
struct ExpertSums {
  const float* slots = nullptr;    // [rows * top_k, num_cols]
  const float* weights = nullptr;  // [rows * top_k]
  int top_k = 0;
  const float* shared = nullptr;         // [rows, num_cols] or nullptr
  const float* shared_weight = nullptr;  // [rows]; nullptr: 1
};

/// One step between matrices, for rows [0, num_rows): the residual takes in what a layer's part computed, is
/// normalised, and gets the int8 forms that the next matrices read.
///   residual += add          (nullptr: nothing), or += experts, as moe_forward adds them
///   out = rms_norm(residual) * weight     (weight nullptr: no norm, only the addition)
struct NormRowsDesc {
  float* residual = nullptr;  // [rows, num_cols]
  int64_t num_cols = 0;
  const float* add = nullptr;
  ExpertSums experts;  // slots nullptr: none
  const float* weight = nullptr;
  float eps = 0;
  float* out = nullptr;  // [rows, out_stride]
  int64_t out_stride = 0;
  QuantRows by32, by256;  // empty: not wanted
  int max_rows = 0;
  const int32_t* device_num_rows = nullptr;
};

/// Norm and gate of the delta net's heads: row r, head h: out = rms_norm(x) * weight * silu(z), over head_dim values,
/// as rms_norm_gated; then the int8 forms of the whole row. out may be x.
struct GatedNormRowsDesc {
  const float* x = nullptr;  // [rows, num_heads * head_dim]
  const float* z = nullptr;
  const float* weight = nullptr;  // [head_dim]
  float eps = 0;
  int num_heads = 0;
  int head_dim = 0;
  float* out = nullptr;
  QuantRows by32, by256;
  int max_rows = 0;
  const int32_t* device_num_rows = nullptr;
};

struct NormConfig {
  int threads = 256;  // one block of threads a row
};

[[nodiscard]] NormConfig choose_config(const NormRowsDesc& desc);
void launch(const NormRowsDesc& desc, const NormConfig& config, const Stream& stream);
[[nodiscard]] NormConfig choose_config(const GatedNormRowsDesc& desc);
void launch(const GatedNormRowsDesc& desc, const NormConfig& config, const Stream& stream);

}  // namespace foretoken::cuda
