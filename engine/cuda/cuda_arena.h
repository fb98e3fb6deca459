#pragma once

#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "kernels/cuda/cuda_matrix.h"
#include "kernels/cuda/cuda_rows.h"
#include "kernels/cuda/cuda_runtime_wrap.h"

namespace foretoken::cuda {

/// Device memory for many pieces in one allocation: first everything is declared, so that the size is known and can be
/// checked, then allocate() takes the memory and sets the declared pointers, which have to stay where they are until
/// then. A plan is an arena that nobody allocates: it needs neither a device nor a build with CUDA.
class DeviceArena {
 public:
  template <class T>
  void take(int64_t count, T*& to) {
    place(count * static_cast<int64_t>(sizeof(T)), [&to](std::byte* at) { to = reinterpret_cast<T*>(at); });
  }

  void take_bytes(int64_t size_bytes, void*& to) {
    place(size_bytes, [&to](std::byte* at) { to = at; });
  }

  /// Rows with the forms of `blocks` (RowMemory::kBy32, kBy256).
  void take_rows(int64_t max_rows, int64_t num_cols, unsigned blocks, DeviceRows& to);

  /// A matrix of this shape; `data` is set by allocate().
  void take_matrix(WeightType type, int64_t num_rows, int64_t num_cols, DeviceMatrix& to);

  [[nodiscard]] size_t size_bytes() const { return size_bytes_; }

  void allocate(std::string_view what);
  /// All pieces become zero.
  void clear(const Stream& stream) const;

 private:
  static constexpr int64_t kAlignment = 256;
  void place(int64_t bytes, std::function<void(std::byte*)> set);

  struct Piece {
    BufferPiece place;  // without guards
    std::function<void(std::byte*)> set;
  };
  std::vector<Piece> pieces_;
  size_t size_bytes_ = 0;
  std::shared_ptr<DeviceBuffer> memory_;  // nullptr until allocate()
};

/// A piece of memory that the host and the device both have.
template <class T>
struct Mirrored {
  T* host = nullptr;
  T* device = nullptr;
};

/// Pieces that the host writes and the device reads, or the other way round: pinned memory and device memory of the
/// same shape, copied in one go. Declared and allocated as those of a DeviceArena.
class MirroredArena {
 public:
  template <class T>
  void take(int64_t count, Mirrored<T>& to) {
    const size_t offset = size_bytes_;
    size_bytes_ += static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)), kAlignment));
    pieces_.push_back([&to, offset](std::byte* host, std::byte* device) {
      to = {reinterpret_cast<T*>(host + offset), reinterpret_cast<T*>(device + offset)};
    });
  }

  [[nodiscard]] size_t size_bytes() const { return size_bytes_; }
  /// The host's side is zero then.
  void allocate(std::string_view what);
  /// REQUIRES: the last copy of the arena is over before the host writes again.
  void send(const Stream& stream) const;
  void fetch(const Stream& stream) const;

 private:
  static constexpr int64_t kAlignment = 16;
  std::vector<std::function<void(std::byte*, std::byte*)>> pieces_;
  size_t size_bytes_ = 0;
  std::shared_ptr<PinnedBuffer> host_;  // nullptr until allocate()
  std::shared_ptr<DeviceBuffer> device_;
};

/// Rows [row, ...) of `rows`, in all its forms.
[[nodiscard]] DeviceRows rows_from(DeviceRows rows, int64_t row);

/// The same memory for rows of `num_cols` values. REQUIRES: at most as many as were taken.
[[nodiscard]] DeviceRows with_cols(DeviceRows rows, int64_t num_cols);

/// `rows` with only those int8 forms that `blocks` names.
[[nodiscard]] DeviceRows with_forms(DeviceRows rows, unsigned blocks);

}  // namespace foretoken::cuda
