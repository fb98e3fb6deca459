#pragma once

#include <cstdint>

#include "kernels/base/isa.h"
#include "kernels/formats/matrix.h"
#include "kernels/rows/row_buffer.h"

namespace foretoken {

/// y[r][o - row_begin] = scale * (W[o] . x[r]) for output rows o in [row_begin, row_end) and activation rows r in [0, num_rows).
/// The bits of an output depend on W[o] and x[r] alone: not on num_rows, the range, the layout or the instruction set.
/// Quantised types follow rule 1 of the contract, float types rule 2 (docs/exactness.md); W's scale multiplies the
/// finished sum, in one float32 product.
/// One call reads each weight of the range from memory once, for any num_rows.
///
/// REQUIRES: each x[r] has the form that W's type needs (weight_type_info(type).activation_block). For an interleaved
/// W, row_begin and row_end are multiples of kInterleave. y[r] does not overlap anything read.
void matmul_rows(Isa isa, const MatrixView& w, int64_t row_begin, int64_t row_end, const RowView* x, int num_rows,
                 float* const* y);

/// Partial sums that a quantised dot product is spread over: block b adds to partial b mod kPartialSums, and at the end
/// they fold 8 -> 4 -> 2 -> 1 (partial i adds partial i + half).
inline constexpr int kPartialSums = 8;

/// Lanes of a float dot product: lane l takes elements l, l+32, l+64 ... by fma in rising order, then lanes fold
/// 32 -> 16 -> 8 -> 4 -> 2 -> 1 (lane i adds lane i + half).
inline constexpr int kFloatLanes = 32;

}  // namespace foretoken
