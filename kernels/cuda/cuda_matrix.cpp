#include "kernels/cuda/cuda_matrix.h"

#include <cstring>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/formats/interleave.h"

namespace foretoken::cuda {

namespace {

// Nibbles of IQ4_XS in pairs 32 values apart instead of 16.
void pair_like_q4_k(const uint8_t* from, uint8_t* to) {
  const auto value = [from](int i) { return from[i / 32 * 16 + i % 16] >> (i % 32 < 16 ? 0 : 4) & 15; };
  for (int c = 0; c < 4; ++c) {
    for (int l = 0; l < 32; ++l) to[32 * c + l] = static_cast<uint8_t>(value(64 * c + l) | value(64 * c + 32 + l) << 4);
  }
}

void deal_to_lanes(const uint8_t* from, uint8_t* to) {
  for (int t = 0; t < 4; ++t) {
    std::memcpy(to + 8 * t, from + 4 * t, 4);
    std::memcpy(to + 8 * t + 4, from + 16 + 4 * t, 4);
  }
}

void pack_row(WeightType type, const std::byte* from, int64_t num_blocks, std::byte* to) {
  const WeightTypeInfo& info = weight_type_info(type);
  const Planes planes = planes_of(type);
  for (int p = 0; p < planes.count; ++p) {
    const Plane plane = planes.planes[p];
    std::byte* begin = to + plane_offset(type, p, num_blocks * info.num_parts());
    for (int64_t b = 0; b < num_blocks; ++b) {
      const auto* field = reinterpret_cast<const uint8_t*>(from + b * info.block_bytes + plane.file_offset);
      auto* out = reinterpret_cast<uint8_t*>(begin + b * plane.bytes);
      if (type == WeightType::kIQ4_XS && p == 0) {
        pair_like_q4_k(field, out);
      } else if (type == WeightType::kQ8_0 && p == 0) {
        deal_to_lanes(field, out);
      } else {
        std::memcpy(out, field, static_cast<size_t>(plane.bytes));
      }
    }
    const int64_t used = plane.bytes * num_blocks;
    std::memset(begin + used, 0, static_cast<size_t>(round_up(used, 16) - used));
  }
}

}  // namespace

int64_t device_row_bytes(WeightType type, int64_t num_cols) {
  const WeightTypeInfo& info = weight_type_info(type);
  FT_CHECK_EQ(num_cols % info.block_size, 0);
  return plane_offset(type, planes_of(type).count, num_cols / info.block_size * info.num_parts());
}

void pack_device_rows(const MatrixView& from, int64_t row_begin, int64_t row_end, std::byte* to) {
  FT_CHECK(0 <= row_begin && row_begin <= row_end && row_end <= from.num_rows);
  const int64_t row_bytes = device_row_bytes(from.type, from.num_cols);
  const WeightTypeInfo& info = weight_type_info(from.type);
  const int64_t num_blocks = from.num_cols / info.block_size;
  std::vector<std::byte> row(from.layout == Layout::kInterleaved ? static_cast<size_t>(num_blocks * info.block_bytes)
                                                                 : 0);
  for (int64_t r = row_begin; r < row_end; ++r) {
    const std::byte* blocks = from.data + static_cast<size_t>(r) * from.row_bytes();
    if (from.layout == Layout::kInterleaved) {
      extract_row(from, r, row.data());
      blocks = row.data();
    }
    pack_row(from.type, blocks, num_blocks, to + (r - row_begin) * row_bytes);
  }
}

}  // namespace foretoken::cuda
