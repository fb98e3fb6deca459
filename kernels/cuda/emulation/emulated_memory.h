#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

// The memory of the emulated GPU: an address range of its own, so that it is known of every address whether it is the
// device's. Host code that touches device memory outside a copy gets a segmentation fault, as on a machine with a GPU.
// Every allocation, every piece of one and every shared array has room around it that belongs to nobody. For each word
// of four bytes a state byte says whether it is allocated, which of its bytes have been written, and whether a kernel has
// stored to it since it was last copied to or filled; access_checker.h looks at it in every access of a kernel.
//
// Under the address and thread sanitizers there is no such range (FORETOKEN_ACCESS_CHECKS is not defined): device memory
// is then the sanitizers' own, each allocation apart, and they look for themselves.

namespace foretoken::cuda::emulation {

inline constexpr uint8_t kAllocated = 0x80, kSplit = 0x40, kStored = 0x20, kWrittenBytes = 0x0f;

/// All zero-based: offsets from `begin`. The first kSharedBytes are the shared memory of the block that runs.
struct DeviceMemory {
  static constexpr size_t kBytes = size_t{12} << 30, kSharedBytes = size_t{1} << 20;
  static constexpr size_t kMappedBytes = size_t{1} << 30;  // the last ones: host memory that is mapped
  static constexpr size_t kGuardBytes = 256;

  std::byte* begin = nullptr;
  uint8_t* states = nullptr;  // [kBytes / 4]

  [[nodiscard]] bool contains(const void* address) const {
    return static_cast<size_t>(static_cast<const std::byte*>(address) - begin) < kBytes;
  }
};

/// Reserved at the first call. FT_CHECKs that the address space is there.
const DeviceMemory& device_memory();

/// Aligned to 256 bytes and no more, filled with 0xff, guards around it. Each piece [offset, offset + size) is allocated; what
/// lies between pieces belongs to nobody. The same memory is not given out again soon.
struct Piece {
  size_t offset, size_bytes;
};
std::byte* allocate_device_memory(size_t size_bytes, std::span<const Piece> pieces);
void free_device_memory(std::byte* data);

/// Mapped host memory: open to host and kernels at any time; counts as written.
std::byte* allocate_mapped_memory(size_t size_bytes);
void free_mapped_memory(std::byte* data);

/// Host memory that kernels may load from: from now on, and no longer.
void register_host_memory(const void* data, size_t size_bytes);
void unregister_host_memory(const void* data);
[[nodiscard]] bool is_registered(const void* address);

/// Throws EmulationError where a range of device memory leaves an allocation. Host memory passes.
void check_allocated(const void* data, size_t size_bytes);
/// What a copy, a fill or a library's kernel has written, where it is the device's.
enum class Writer { kCopy, kKernel };
void mark_written(const void* data, size_t size_bytes, Writer writer = Writer::kCopy);

/// While one of these lives, device memory may be touched: around kernels and copies.
class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;
};

/// Shared arrays of the running block. take gives memory of 128-byte alignment, filled with 0xff; clear ends the block.
std::byte* take_shared(size_t size_bytes);
void clear_shared();

}  // namespace foretoken::cuda::emulation
