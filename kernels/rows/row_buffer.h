#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/aligned_buffer.h"
#include "kernels/base/isa.h"
#include "kernels/formats/weight_type.h"

namespace foretoken {

/// One row quantised to int8 (DESIGN: rule 1 of the contract). For blocks of B = 32 or 256 values: d = amax/127,
/// q = rint(x * (127/amax)) with ties to even, all zero where amax is 0.
struct QuantisedRow {
  const int8_t* q = nullptr;      // [num_cols], 64-byte aligned
  const float* d = nullptr;       // [num_cols / B]
  const int16_t* sums = nullptr;  // [num_cols / 16] sum of each 16 values of q, in order
};

/// One row as matrix kernels read it. Only the form that the matrix's type needs has to be there.
struct RowView {
  const float* values = nullptr;  // [num_cols], for float matrices
  QuantisedRow by32;              // for types with activation_block 32
  QuantisedRow by256;             // for types with activation_block 256
};

/// Quantises one row. REQUIRES: num_cols is a multiple of `block` (32 or 256); q, d, sums sized as in QuantisedRow.
void quantise_row(Isa isa, const float* values, int64_t num_cols, int block, int8_t* q, float* d, int16_t* sums);

/// A block of rows [max_rows, num_cols] with room for their quantised forms. Memory is taken once, in the constructor.
/// Not thread-safe as a whole; different threads may write and quantise different rows.
class RowBuffer {
 public:
  RowBuffer() = default;
  RowBuffer(int64_t max_rows, int64_t num_cols);

  [[nodiscard]] int64_t max_rows() const { return max_rows_; }
  [[nodiscard]] int64_t num_cols() const { return num_cols_; }
  /// The same memory for rows of another width; what they held is lost. REQUIRES: at most the constructor's.
  void set_num_cols(int64_t num_cols);
  [[nodiscard]] float* row(int64_t r) { return values_.data<float>() + r * num_cols_; }
  [[nodiscard]] const float* row(int64_t r) const { return values_.data<float>() + r * num_cols_; }

  /// Makes the form with scales per `block` values (32 or 256) of row r; nothing for block 0 (float matrices).
  /// A block that does not divide num_cols is our own bug.
  void quantise(Isa isa, int64_t r, int block);

  /// Row r with all its forms (those never made hold old values).
  [[nodiscard]] RowView view(int64_t r) const;

  [[nodiscard]] size_t size_bytes() const;

 private:
  int64_t max_rows_ = 0;
  int64_t num_cols_ = 0;
  int64_t most_cols_ = 0;
  AlignedBuffer values_;            // float [max_rows, num_cols]
  AlignedBuffer q32_, q256_;        // int8  [max_rows, num_cols]
  AlignedBuffer d32_, d256_;        // float [max_rows, num_cols / B]
  AlignedBuffer sums32_, sums256_;  // int16 [max_rows, num_cols / 16]
};

}  // namespace foretoken
