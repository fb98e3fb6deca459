#include "engine/cuda/cuda_arena.h"

#include <cstring>

#include "kernels/base/error.h"

namespace foretoken::cuda {

void DeviceArena::take_matrix(WeightType type, int64_t num_rows, int64_t num_cols, DeviceMatrix& to) {
  to = {nullptr, num_rows, num_cols, device_row_bytes(type, num_cols), type, 1.0f};
  take(num_rows * to.row_bytes, to.data);
}

void DeviceArena::allocate(std::string_view what) {
  std::vector<BufferPiece> pieces;
  for (const Piece& piece : pieces_)
    pieces.push_back({piece.place.offset + pieces.size() * guard_bytes(), piece.place.size_bytes});
  memory_ = std::make_shared<DeviceBuffer>(size_bytes_ + pieces.size() * guard_bytes(), what, pieces);
  for (size_t i = 0; i < pieces.size(); ++i) pieces_[i].set(memory_->data() + pieces[i].offset);
  pieces_.clear();
}

void DeviceArena::clear(const Stream& stream) const {
  if (size_bytes_ > 0) fill_zero(stream, memory_->data(), memory_->size_bytes());
}

void MirroredArena::allocate(std::string_view what) {
  host_ = std::make_shared<PinnedBuffer>(size_bytes_);
  device_ = std::make_shared<DeviceBuffer>(size_bytes_, what);
  if (size_bytes_ > 0) std::memset(host_->data(), 0, size_bytes_);
  for (const auto& set : pieces_) set(host_->data(), device_->data());
  pieces_.clear();
}

void MirroredArena::send(const Stream& stream) const {
  copy_to_device(stream, device_->data(), host_->data(), size_bytes_);
}

void MirroredArena::fetch(const Stream& stream) const {
  copy_to_host(stream, host_->data(), device_->data(), size_bytes_);
}

}  // namespace foretoken::cuda
