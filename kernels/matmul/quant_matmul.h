#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/simd_intrinsics.h"
#include "kernels/formats/weight_type.h"
#include "kernels/rows/row_buffer.h"

// Private: the per-ISA entry points behind matmul_rows and quantise_row. Arguments are plain, because inline functions
// of the contract headers would link as one copy for all instruction sets.

namespace foretoken {

/// One call of matmul_rows on quantised weights, checked. y[r][o] = row o of weights . x[r].
struct QuantMatmul {
  WeightType type;
  const std::byte* weights;  // the first output's row, or its group where the weights are interleaved
  int64_t num_outputs;       // interleaved: a multiple of kInterleave
  int64_t num_blocks;        // blocks of weights in one row of the matrix
  const RowView* x;          // [num_rows]
  int num_rows;
  float* const* y;  // [num_rows][num_outputs]
};

// Layout::kRows.
void scalar_quant_matmul(const QuantMatmul& m);
void avx2_quant_matmul(const QuantMatmul& m);

// Layout::kInterleaved.
void scalar_interleaved_matmul(const QuantMatmul& m);
void avx2_interleaved_matmul(const QuantMatmul& m);
void FT_KERNEL(avx2vnni_interleaved_matmul)(const QuantMatmul& m);
void FT_KERNEL(avx512_interleaved_matmul)(const QuantMatmul& m);
void FT_KERNEL(avx512vnni_interleaved_matmul)(const QuantMatmul& m);

// As quantise_row (row_buffer.h), checked.
void scalar_quantise_row(const float* values, int64_t num_cols, int block, int8_t* q, float* d, int16_t* sums);
void avx2_quantise_row(const float* values, int64_t num_cols, int block, int8_t* q, float* d, int16_t* sums);
void FT_KERNEL(avx512_quantise_row)(const float* values, int64_t num_cols, int block, int8_t* q, float* d,
                                    int16_t* sums);

}  // namespace foretoken
