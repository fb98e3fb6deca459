#pragma once

#include <cstddef>

#include "kernels/formats/matrix.h"

namespace foretoken {

/// Interleaved layout. A group is kInterleave (16) consecutive rows; groups follow each other. Within a group, column
/// block after column block; within a column block the 16 rows' file blocks are transposed in units of four bytes, so
/// that a 64-byte load has the same four bytes of each of the 16 rows, row r in bytes 4r..4r+3. File blocks that are
/// not a multiple of four bytes (a lone half scale, or MXFP4's exponent byte) have those odd bytes gathered first: [16
/// rows] x odd bytes, then the transposed words in file order. The bytes are those of the file, only moved, and the
/// size does not change; but of types with a grid (IQ1, IQ2, IQ3) a block is first brought into another form, which is
/// larger (grid_levels.h).
///
/// Which bytes of a file block are odd, by type:
///   Q8_0 Q4_0 IQ4_NL Q1_0 Q2_0  bytes 0..1 (d);  Q5_0  0..1 (d);  MXFP4  0 (e);
///   Q3_K  108..109 (d);  Q6_K  208..209 (d);  TQ1_0  52..53 (d);  TQ2_0  64..65 (d);
///   of the form of IQ1, IQ2 and IQ3  0..1 (d);
///   Q4_K Q5_K IQ4_XS Q4_1 Q5_1 Q2_K NVFP4: none.

/// True if `type` has an interleaved kernel and a matrix of this shape fits it.
[[nodiscard]] bool can_interleave(WeightType type, int64_t num_rows, int64_t num_cols);

/// Rearranges rows [row_begin, row_end) of `from` (layout kRows) into `to`, the start of the whole interleaved matrix.
/// REQUIRES: can_interleave(from.type, from.num_rows, from.num_cols); row_begin and row_end are multiples of
/// kInterleave.
void interleave_rows(const MatrixView& from, int64_t row_begin, int64_t row_end, std::byte* to);

/// False if a scale of rows [row_begin, row_end) of an interleaved matrix is NaN or infinite: row_is_finite for this
/// layout, which looks at the scales alone. REQUIRES: row_begin and row_end are multiples of kInterleave.
[[nodiscard]] bool interleaved_rows_are_finite(const MatrixView& from, int64_t row_begin, int64_t row_end);

/// The inverse for one row: writes row `row` of an interleaved matrix in the file's layout, as many bytes as a row of the
/// file has. For embedding look-ups.
void extract_row(const MatrixView& from, int64_t row, std::byte* to);

}  // namespace foretoken
