#pragma once

#include <cstdint>

#include "kernels/base/isa.h"
#include "kernels/formats/matrix.h"
#include "kernels/rows/row_buffer.h"

namespace foretoken {

/// matmul_rows (matmul.h) for weights of F32, F16 or BF16: y[r][o - row_begin] = W[o] . x[r] for o in [row_begin,
/// row_end), r in [0, num_rows), by rule 2 of the contract: 32 strided fma lanes, folded 32 -> 16 -> 8 -> 4 -> 2 -> 1.
/// Each weight of the range is read from memory once for all rows.
/// REQUIRES: w.layout is kRows, x[r].values is set, 0 <= row_begin <= row_end <= w.num_rows; y[r] overlaps nothing
/// read.
void float_matmul_rows(Isa isa, const MatrixView& w, int64_t row_begin, int64_t row_end, const RowView* x, int num_rows,
                       float* const* y);

}  // namespace foretoken
