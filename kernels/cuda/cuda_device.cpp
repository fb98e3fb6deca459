#include "kernels/cuda/cuda_device.h"

#include <fmt/format.h>

#include "kernels/base/error.h"

#ifdef FORETOKEN_HAVE_CUDA
#include <cuda_runtime_api.h>

#include "kernels/rows/rows_cuda.h"
#endif

namespace foretoken::cuda {

namespace {

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

}  // namespace

std::string reason_for(const DeviceFailure& failure) {
  if (failure.driver_version == 0) return "no CUDA device: no NVIDIA driver is loaded; install one, or run on the CPU";
  switch (failure.kind) {
    case DeviceFailure::Kind::kDriverTooOld:
      return fmt::format(
          "no usable CUDA device: the driver is for CUDA {}, this program needs {}; update the driver, or run on the "
          "CPU",
          version_text(failure.driver_version), version_text(failure.runtime_version));
    case DeviceFailure::Kind::kNoDevice:
      return "no CUDA device: the driver sees no GPU (is CUDA_VISIBLE_DEVICES set?); run on the CPU";
    case DeviceFailure::Kind::kOther:
      break;
  }
  return fmt::format("no usable CUDA device: {}; run on the CPU", failure.text);
}

std::string reason_for_capability(const std::string& name, int capability) {
  return fmt::format(
      "no usable CUDA device: {} has compute capability {}.{}, the kernels need {}.{} or newer; run on the CPU", name,
      capability / 10, capability % 10, kOldestCapability / 10, kOldestCapability % 10);
}

std::string reason_for_image(const std::string& name, int capability, const std::string& built_for) {
  return fmt::format(
      "no usable CUDA device: {} has compute capability {}.{}, this program was built for {}; configure with "
      "-DFORETOKEN_CUDA_ARCHITECTURES={} and build again, or run on the CPU",
      name, capability / 10, capability % 10, built_for, capability);
}

#ifdef FORETOKEN_HAVE_CUDA

namespace {

std::string reason_for(cudaError_t status) {
  static_cast<void>(cudaGetLastError());
  DeviceFailure failure;
  static_cast<void>(cudaDriverGetVersion(&failure.driver_version));
  static_cast<void>(cudaRuntimeGetVersion(&failure.runtime_version));
  failure.kind = status == cudaErrorInsufficientDriver                  ? DeviceFailure::Kind::kDriverTooOld
                 : status == cudaErrorNoDevice || status == cudaSuccess ? DeviceFailure::Kind::kNoDevice
                                                                        : DeviceFailure::Kind::kOther;
  failure.text = fmt::format("{} ({})", cudaGetErrorString(status), cudaGetErrorName(status));
  return cuda::reason_for(failure);
}

}  // namespace

DeviceQuery query_device() {
  int count = 0;
  if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess || count == 0)
    return {{}, reason_for(status)};
  cudaDeviceProp properties;
  if (const cudaError_t status = cudaGetDeviceProperties(&properties, 0); status != cudaSuccess)
    return {{}, reason_for(status)};
  const int capability = 10 * properties.major + properties.minor;
  if (capability < kOldestCapability) return {{}, reason_for_capability(properties.name, capability)};
  // The first call that needs a context; here so that a device in use by others alone, or out of memory, is one clear
  // line too.
  if (const cudaError_t status = cudaFree(nullptr); status != cudaSuccess) return {{}, reason_for(status)};
  cudaFuncAttributes attributes;
  if (cudaFuncGetAttributes(&attributes, any_kernel()) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return {{}, reason_for_image(properties.name, capability, FORETOKEN_CUDA_BUILT_FOR)};
  }
  // Kernels that were compiled for an older GPU have no waits in them.
  const bool dependent_launch =
      capability >= kDependentLaunchCapability && attributes.ptxVersion >= kDependentLaunchCapability;
  return {DeviceProperties{properties.name, capability, properties.multiProcessorCount,
                           properties.sharedMemPerBlockOptin, properties.totalGlobalMem, dependent_launch},
          {}};
}

size_t free_memory_bytes() {
  size_t free_bytes = 0, total_bytes = 0;
  const cudaError_t status = cudaMemGetInfo(&free_bytes, &total_bytes);
  if (status != cudaSuccess)
    throw InputError(fmt::format("CUDA: asking for the free memory: {}", cudaGetErrorString(status)));
  return free_bytes;
}

#else

DeviceQuery query_device() {
  return {{}, "no CUDA device: this program was built without CUDA (-DFORETOKEN_CUDA=ON builds it in); run on the CPU"};
}

size_t free_memory_bytes() {
  throw InputError(query_device().reason);
}

void require_blas() {
  throw InputError(query_device().reason);
}

DeviceBandwidth measure_bandwidth(size_t) {
  throw InputError(query_device().reason);
}

#endif

const DeviceProperties& require_device() {
  static const DeviceQuery query = query_device();
  if (!query.device) throw InputError(query.reason);
  return *query.device;
}

}  // namespace foretoken::cuda
