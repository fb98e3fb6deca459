#include "engine/cuda/cuda_arena.h"

#include <cstring>

#include "kernels/base/error.h"

namespace foretoken::cuda {

void DeviceArena::place(int64_t bytes, std::function<void(std::byte*)> set) {
  FT_CHECK(bytes >= 0 && memory_.size_bytes() == 0);
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

void DeviceArena::take_matrix(WeightType type, int64_t num_rows, int64_t num_cols, DeviceMatrix& to) {
  to = {nullptr, num_rows, num_cols, device_row_bytes(type, num_cols), type};
  take(num_rows * to.row_bytes, to.data);
}

void DeviceArena::allocate(std::string_view what) {
  std::vector<BufferPiece> pieces;
  for (const Piece& piece : pieces_)
    pieces.push_back({piece.place.offset + pieces.size() * guard_bytes(), piece.place.size_bytes});
  memory_ = DeviceBuffer(size_bytes_ + pieces.size() * guard_bytes(), what, pieces);
  for (size_t i = 0; i < pieces.size(); ++i) pieces_[i].set(memory_.data() + pieces[i].offset);
  pieces_.clear();
}

void DeviceArena::clear(const Stream& stream) const {
  if (memory_.size_bytes() > 0) fill_zero(stream, memory_.data(), memory_.size_bytes());
}

void MirroredArena::allocate(std::string_view what) {
  host_ = PinnedBuffer(size_bytes_);
  device_ = DeviceBuffer(size_bytes_, what);
  if (size_bytes_ > 0) std::memset(host_.data(), 0, size_bytes_);
  for (const auto& set : pieces_) set(host_.data(), device_.data());
  pieces_.clear();
}

void MirroredArena::send(const Stream& stream) const {
  copy_to_device(stream, device_.data(), host_.data(), size_bytes_);
}

void MirroredArena::fetch(const Stream& stream) const {
  copy_to_host(stream, host_.data(), device_.data(), size_bytes_);
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
