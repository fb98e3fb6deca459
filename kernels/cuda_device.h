#pragma once

#include <cstddef>
#include <optional>
#include <string>

namespace foretoken::cuda {

/// What kernels are configured by.
struct DeviceProperties {
  std::string name;    // "NVIDIA H200"
  int capability = 0;  // 10 * major + minor: 90
  int num_multiprocessors = 0;
  size_t shared_bytes_per_block = 0;  // that a kernel may ask for
  size_t memory_bytes = 0;
};

/// The GPU, or why there is none, in one line that says what to do.
struct DeviceQuery {
  std::optional<DeviceProperties> device;
  std::string reason;
};

/// Looks for the first CUDA device (CUDA_VISIBLE_DEVICES chooses another). Never throws: a build without CUDA, a
/// machine without a GPU, a driver that is too old and a GPU that is too old (below 8.0: no m16n8k32 int8 tensor
/// instructions) are reasons.
[[nodiscard]] DeviceQuery query_device();

/// The device, or an InputError with the reason.
[[nodiscard]] const DeviceProperties& require_device();

/// Oldest compute capability that the kernels run on.
inline constexpr int kOldestCapability = 80;

/// Memory of the device that is free now. REQUIRES: there is a device.
[[nodiscard]] size_t free_memory_bytes();

}  // namespace foretoken::cuda
