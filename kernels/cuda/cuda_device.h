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
  bool dependent_launch = false;  // it is 9.0 or newer, and so is what the kernels were compiled for
};

/// The GPU, or why there is none, in one line that says what to do.
struct DeviceQuery {
  std::optional<DeviceProperties> device;
  std::string reason;
};

/// Looks for the first CUDA device (CUDA_VISIBLE_DEVICES chooses another). Never throws: a build without CUDA, a
/// machine without a GPU, a driver that is too old, a GPU that is too old (below 8.0: no m16n8k32 int8 tensor
/// instructions) and one that the kernels were not built for are reasons.
[[nodiscard]] DeviceQuery query_device();

/// The device, or an InputError with the reason.
[[nodiscard]] const DeviceProperties& require_device();

/// Oldest compute capability that the kernels run on.
inline constexpr int kOldestCapability = 80;
/// Oldest one with programmatic dependent launch (Launches::kDependent).
inline constexpr int kDependentLaunchCapability = 90;

/// What the runtime says where it finds no device, and why that is in a user's words. For query_device().
struct DeviceFailure {
  enum class Kind { kNoDevice, kDriverTooOld, kOther };
  Kind kind = Kind::kNoDevice;
  int driver_version = 0;   // CUDA version that the driver is for, 1000 * major + 10 * minor; 0: no driver
  int runtime_version = 0;  // that this program was built with
  std::string text;         // CUDA's own, for kOther
};
[[nodiscard]] std::string reason_for(const DeviceFailure& failure);
/// Of a GPU that the program was not built for. `built_for` is CMake's list.
[[nodiscard]] std::string reason_for_image(const std::string& name, int capability, const std::string& built_for);
/// Of a GPU that is too old.
[[nodiscard]] std::string reason_for_capability(const std::string& name, int capability);

/// Memory of the device that is free now. REQUIRES: there is a device.
[[nodiscard]] size_t free_memory_bytes();

/// Throws InputError where cuBLAS (cuda_blas.h) is not installed. REQUIRES: there is a device.
void require_blas();

/// Bytes a second, the best of some copies of up to `bytes`: about a fifth of a second.
struct DeviceBandwidth {
  double device = 0;  // the device's own memory, read and written
  double bus = 0;     // host to device, from pinned memory
};
/// REQUIRES: there is a device.
[[nodiscard]] DeviceBandwidth measure_bandwidth(size_t bytes = size_t{256} << 20);

}  // namespace foretoken::cuda
