#include "engine/cuda/cuda_arena.h"
#include "kernels/base/error.h"

// What an arena needs no device for: declaring, and adding up.

namespace foretoken::cuda {

void DeviceArena::place(int64_t bytes, std::function<void(std::byte*)> set) {
  FT_CHECK(bytes >= 0 && memory_ == nullptr);
  pieces_.push_back({{size_bytes_, static_cast<size_t>(bytes)}, std::move(set)});
  size_bytes_ += static_cast<size_t>(round_up(bytes, kAlignment));
}

void DeviceArena::take_rows(int64_t max_rows, int64_t num_cols, unsigned blocks, DeviceRows& to) {
  to.num_cols = num_cols;
  take(max_rows * num_cols, to.values);
  const auto take_form = [&](int block, QuantRows& form) {
    FT_CHECK_EQ(num_cols % block, 0);
    form.num_blocks = num_cols / block;
    take(max_rows * q_stride(block, form.num_blocks), form.q);
    take(max_rows * form.num_blocks, form.d);
    take(max_rows * sums_stride(block, form.num_blocks), form.sums);
  };
  if (blocks & RowMemory::kBy32) take_form(32, to.by32);
  if (blocks & RowMemory::kBy256) take_form(256, to.by256);
}

DeviceRows rows_from(DeviceRows rows, int64_t row) {
  rows.values += row * rows.num_cols;
  const auto move = [row](int block, QuantRows& form) {
    if (form.empty()) return;
    form.q += row * q_stride(block, form.num_blocks);
    form.d += row * form.num_blocks;
    form.sums += row * sums_stride(block, form.num_blocks);
  };
  move(32, rows.by32);
  move(256, rows.by256);
  return rows;
}

DeviceRows with_cols(DeviceRows rows, int64_t num_cols) {
  FT_CHECK(num_cols <= rows.num_cols);
  rows.num_cols = num_cols;
  rows.by32.num_blocks = num_cols / 32;
  rows.by256.num_blocks = num_cols / 256;
  return rows;
}

DeviceRows with_forms(DeviceRows rows, unsigned blocks) {
  if (!(blocks & RowMemory::kBy32)) rows.by32 = {};
  if (!(blocks & RowMemory::kBy256)) rows.by256 = {};
  return rows;
}

}  // namespace foretoken::cuda
