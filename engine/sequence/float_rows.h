#pragma once

#include <cstdint>

#include "kernels/base/aligned_buffer.h"

namespace foretoken {

/// A block of float rows [max_rows, num_cols] that no matrix reads: no quantised forms.
class FloatRows {
 public:
  FloatRows() = default;
  FloatRows(int64_t max_rows, int64_t num_cols)
      : values_(static_cast<size_t>(max_rows * num_cols) * sizeof(float)), num_cols_(num_cols) {}
  [[nodiscard]] float* row(int64_t r) { return values_.data<float>() + r * num_cols_; }
  [[nodiscard]] const float* row(int64_t r) const { return values_.data<float>() + r * num_cols_; }
  [[nodiscard]] int64_t num_cols() const { return num_cols_; }
  [[nodiscard]] size_t size_bytes() const { return values_.size_bytes(); }

 private:
  AlignedBuffer values_;
  int64_t num_cols_ = 0;
};

}  // namespace foretoken
