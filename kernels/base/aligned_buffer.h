#pragma once

#include <cstddef>
#include <string_view>

namespace foretoken {

/// Zeroed memory of its own mapping, page-aligned, with huge pages asked for where the size is worth it. Move-only.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  /// Throws InputError naming `what` and the size if the system refuses.
  explicit AlignedBuffer(size_t size_bytes, std::string_view what = "a work buffer");
  ~AlignedBuffer();
  AlignedBuffer(AlignedBuffer&& other) noexcept;
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept;
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  /// What stands around `offset` gets pages of ordinary size: for a place at which different nodes of memory meet.
  /// REQUIRES: before anything there is touched; offset <= size_bytes().
  void refuse_huge_page(size_t offset);

  template <class T = std::byte>
  [[nodiscard]] T* data() {
    return static_cast<T*>(data_);
  }
  template <class T = std::byte>
  [[nodiscard]] const T* data() const {
    return static_cast<const T*>(data_);
  }
  [[nodiscard]] size_t size_bytes() const { return size_bytes_; }

  /// Of all buffers that there are in the program.
  [[nodiscard]] static size_t all_bytes();

 private:
  void* data_ = nullptr;
  size_t size_bytes_ = 0;
};

}  // namespace foretoken
