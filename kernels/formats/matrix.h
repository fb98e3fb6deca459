#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/formats/weight_type.h"

namespace foretoken {

/// Output rows that stand side by side in an interleaved matrix.
inline constexpr int kInterleave = 16;

/// How a matrix lies in memory. `kRows` is the file's own layout: row after row, block after block.
/// `kInterleaved` has groups of kInterleave rows; see interleave.h.
enum class Layout : uint8_t { kRows, kInterleaved };

/// Bytes that one block takes in this layout.
[[nodiscard]] inline int block_bytes_in(Layout layout, WeightType type) {
  return layout == Layout::kRows ? weight_type_info(type).block_bytes : interleaved_block_bytes(type);
}

/// A weight matrix W [num_rows, num_cols] as kernels read it: y = W x, num_rows outputs from num_cols inputs. Owns
/// nothing. INVARIANT: num_cols is a multiple of the type's block size; an interleaved matrix has num_rows a multiple
/// of kInterleave.
struct MatrixView {
  const std::byte* data = nullptr;
  int64_t num_rows = 0;
  int64_t num_cols = 0;
  WeightType type = WeightType::kF32;
  Layout layout = Layout::kRows;
  float scale = 1.0f;  // what every finished product with the matrix is multiplied by

  [[nodiscard]] size_t row_bytes() const {
    return static_cast<size_t>(num_cols / weight_type_info(type).block_size) *
           static_cast<size_t>(block_bytes_in(layout, type));
  }
  [[nodiscard]] size_t size_bytes() const { return static_cast<size_t>(num_rows) * row_bytes(); }

  /// Rows [begin, end) as a matrix of their own. REQUIRES: of an interleaved matrix, begin is a multiple of kInterleave
  /// and end too.
  [[nodiscard]] MatrixView slice_rows(int64_t begin, int64_t end) const {
    return {data + static_cast<size_t>(begin) * row_bytes(), end - begin, num_cols, type, layout, scale};
  }
};

/// A small tensor, decoded to floats. Owns nothing.
struct VectorView {
  const float* data = nullptr;
  int64_t count = 0;

  // Kernels take the values alone.
  operator const float*() const { return data; }  // NOLINT(google-explicit-constructor)
};

}  // namespace foretoken
