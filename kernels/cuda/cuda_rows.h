#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_runtime_wrap.h"

namespace foretoken::cuda {

// Activation rows on the device. The int8 forms are those of quantise_row with the values in the order in which the
// four lanes of a block take them, so that a warp's loads are whole lines.
//
// By 32: byte 8t + i of a block is value 4t + i (i < 4) or 16 + 4t + i - 4; lane t of a block reads eight bytes.
//
// By 256: a block is 16 runs of 16 values; lane t = 2n + u takes runs 8n + u + 2j, j = 0..3 (the natural share in Q4_K,
// Q5_K, Q6_K, Q3_K and Q2_K). Two blocks share 512 bytes: run j of lane t of block b is at
// (b / 2) * 512 + j * 128 + (b % 2) * 64 + t * 16.

/// Value run that lane t of a 256-value block takes as its j-th.
FORETOKEN_HD constexpr int run_of_lane(int t, int j) {
  return 8 * (t / 2) + t % 2 + 2 * j;
}

FORETOKEN_HD constexpr int64_t run_offset(int64_t block, int t, int j) {
  return block / 2 * 512 + j * 128 + block % 2 * 64 + t * 16;
}

/// Rows quantised with one scale per 32 or per 256 values. Owns nothing.
struct QuantRows {
  int8_t* q = nullptr;  // [rows, q_stride]
  float* d = nullptr;   // [rows, num_blocks]
  /// Sums of values of q. By 32: [rows, num_blocks], of the block. By 256: [rows, num_blocks * 16], run j of lane t at
  /// 4t + j.
  int16_t* sums = nullptr;
  int64_t num_blocks = 0;  // of a row

  [[nodiscard]] FORETOKEN_HD bool empty() const { return q == nullptr; }
};

/// Bytes from row to row of QuantRows::q.
FORETOKEN_HD constexpr int64_t q_stride(int block, int64_t num_blocks) {
  return block == 32 ? num_blocks * 32 : (num_blocks + 1) / 2 * 512;
}
/// Values from row to row of QuantRows::sums.
FORETOKEN_HD constexpr int64_t sums_stride(int block, int64_t num_blocks) {
  return block == 32 ? num_blocks : num_blocks * 16;
}

/// Rows [max_rows, num_cols] in device memory in any of their forms. Owns nothing.
struct DeviceRows {
  float* values = nullptr;  // [max_rows, num_cols]
  int64_t num_cols = 0;
  QuantRows by32, by256;
};

/// Memory for rows. `blocks`: bit 0 for the form by 32, bit 1 for the form by 256.
class RowMemory {
 public:
  static constexpr unsigned kBy32 = 1, kBy256 = 2;
  RowMemory() = default;
  /// REQUIRES: num_cols is a multiple of 32 or 256 for the forms asked for.
  RowMemory(int64_t max_rows, int64_t num_cols, unsigned blocks);
  [[nodiscard]] const DeviceRows& rows() const { return rows_; }
  [[nodiscard]] int64_t max_rows() const { return max_rows_; }
  [[nodiscard]] size_t size_bytes() const { return memory_.size_bytes(); }

 private:
  DeviceBuffer memory_;
  DeviceRows rows_;
  int64_t max_rows_ = 0;
};

}  // namespace foretoken::cuda
