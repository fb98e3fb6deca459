#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/math.h"
#include "kernels/formats/matrix.h"

namespace foretoken::cuda {

/// Where the blocks of one matrix row lie on the device. The fields of a file block go to planes: one field of every
/// block of the row, side by side, so that neighbouring lanes read neighbouring, aligned words (a Q6_K block has 210
/// bytes: no load wider than two is aligned in a file). Every plane and every row starts at a multiple of 16 bytes.
/// Bytes are those of the file, but for two types whose order inside the field changes too, so that each of the four
/// lanes of a block finds its share in one piece:
///   IQ4_XS qs  byte 32c + l holds values 64c + l (low nibble) and 64c + 32 + l (high), as in Q4_K;
///   Q8_0 qs    bytes 8t .. 8t+7 hold values 4t .. 4t+3 and 16+4t .. 16+4t+3, as the nibbles of the other 32-value
///   formats do.
struct Plane {
  int file_offset;  // of the field in a file block
  int bytes;        // of the field
};

struct Planes {
  int count;
  Plane planes[4];
};

FORETOKEN_HD constexpr Planes planes_of(WeightType type) {
  switch (type) {
    case WeightType::kF32:
      return {1, {{0, 4}}};
    case WeightType::kF16:
    case WeightType::kBF16:
      return {1, {{0, 2}}};
    case WeightType::kQ4_0:
    case WeightType::kIQ4_NL:
      return {2, {{2, 16}, {0, 2}}};  // qs, d
    case WeightType::kQ4_1:
      return {2, {{4, 16}, {0, 4}}};  // qs, d m
    case WeightType::kQ5_0:
      return {3, {{6, 16}, {2, 4}, {0, 2}}};  // qs, qh, d
    case WeightType::kQ5_1:
      return {3, {{8, 16}, {4, 4}, {0, 4}}};  // qs, qh, d m
    case WeightType::kQ8_0:
      return {2, {{2, 32}, {0, 2}}};  // qs, d
    case WeightType::kMXFP4:
      return {2, {{1, 16}, {0, 1}}};  // qs, e
    case WeightType::kQ2_K:
      return {3, {{16, 64}, {0, 16}, {80, 4}}};  // qs, scales, d dmin
    case WeightType::kQ3_K:
      return {4, {{32, 64}, {0, 32}, {96, 12}, {108, 2}}};  // qs, hmask, scales, d
    case WeightType::kQ4_K:
      return {2, {{16, 128}, {0, 16}}};  // qs, d dmin scales
    case WeightType::kQ5_K:
      return {3, {{48, 128}, {16, 32}, {0, 16}}};  // qs, qh, d dmin scales
    case WeightType::kQ6_K:
      return {4, {{0, 128}, {128, 64}, {192, 16}, {208, 2}}};  // ql, qh, scales, d
    case WeightType::kIQ4_XS:
      return {2, {{8, 128}, {0, 8}}};  // qs, d scales_h scales_l
    case WeightType::kTQ1_0:
      return {3, {{0, 48}, {48, 4}, {52, 2}}};  // qs, qh, d
    case WeightType::kTQ2_0:
      return {2, {{0, 64}, {64, 2}}};  // qs, d
    case WeightType::kNVFP4:
      return {2, {{4, 32}, {0, 4}}};  // qs, e
    case WeightType::kQ1_0:
    case WeightType::kQ2_0:
      return {2, {{2, 16}, {0, 2}}};  // qs, d
    case WeightType::kIQ3_S:
      return {3, {{2, 64}, {66, 44}, {0, 2}}};  // qs, qh signs scales, d
    case WeightType::kIQ3_XXS:
      return {2, {{2, 96}, {0, 2}}};  // qs gas, d
    case WeightType::kIQ2_S:
      return {3, {{2, 64}, {66, 16}, {0, 2}}};  // qs signs, qh scales, d
    case WeightType::kIQ2_XS:
      return {3, {{2, 64}, {66, 8}, {0, 2}}};  // qs, scales, d
    case WeightType::kIQ2_XXS:
      return {2, {{2, 64}, {0, 2}}};  // qs, d
    case WeightType::kIQ1_S:
      return {3, {{2, 32}, {34, 16}, {0, 2}}};  // qs, qh, d
    case WeightType::kIQ1_M:
      return {2, {{0, 48}, {48, 8}}};  // qs qh, scales
  }
  return {0, {}};
}

/// Blocks of a row of activations that one file block meets: WeightTypeInfo::num_parts().
FORETOKEN_HD constexpr int parts_of(WeightType type) {
  return type == WeightType::kQ1_0 ? 4 : type == WeightType::kQ2_0 || type == WeightType::kNVFP4 ? 2 : 1;
}

FORETOKEN_HD constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

/// Byte where plane `index` of a row of num_blocks blocks of activations begins; for index == count: bytes of the row.
FORETOKEN_HD constexpr int64_t plane_offset(WeightType type, int index, int64_t num_blocks) {
  const Planes planes = planes_of(type);
  int64_t offset = 0;
  for (int i = 0; i < index; ++i) offset += round_up(planes.planes[i].bytes * (num_blocks / parts_of(type)), 16);
  return offset;
}

/// A matrix in device memory. Owns nothing.
struct DeviceMatrix {
  const std::byte* data = nullptr;
  int64_t num_rows = 0;
  int64_t num_cols = 0;
  int64_t row_bytes = 0;  // from row to row: device_row_bytes(type, num_cols)
  WeightType type = WeightType::kF32;
  float scale = 1.0f;  // what every finished product with the matrix is multiplied by

  [[nodiscard]] size_t size_bytes() const { return static_cast<size_t>(num_rows * row_bytes); }
  [[nodiscard]] DeviceMatrix slice_rows(int64_t begin, int64_t end) const {
    return {data + begin * row_bytes, end - begin, num_cols, row_bytes, type, scale};
  }
};

/// REQUIRES: num_cols is a multiple of the type's block size.
[[nodiscard]] int64_t device_row_bytes(WeightType type, int64_t num_cols);

/// Rearranges rows [row_begin, row_end) of a host matrix, in the file's layout or interleaved, into `to`, where row
/// row_begin goes; rows follow each other at device_row_bytes. Gaps become zero. Different threads may pack different
/// rows.
void pack_device_rows(const MatrixView& from, int64_t row_begin, int64_t row_end, std::byte* to);

}  // namespace foretoken::cuda
