#include "kernels/cuda_device.h"

#include <fmt/format.h>

#include "kernels/error.h"

#ifdef FORETOKEN_HAVE_CUDA
#include <cuda_runtime_api.h>
#endif

namespace foretoken::cuda {

#ifdef FORETOKEN_HAVE_CUDA

namespace {

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

std::string reason_for(cudaError_t status) {
  static_cast<void>(cudaGetLastError());
  int driver = 0, runtime = 0;
  static_cast<void>(cudaDriverGetVersion(&driver));
  static_cast<void>(cudaRuntimeGetVersion(&runtime));
  if (driver == 0) return "no CUDA device: no NVIDIA driver is loaded; install one, or run on the CPU";
  if (status == cudaErrorInsufficientDriver) {
    return fmt::format(
        "no usable CUDA device: the driver is for CUDA {}, this program needs {}; update the driver, or run on the CPU",
        version_text(driver), version_text(runtime));
  }
  if (status == cudaErrorNoDevice || status == cudaSuccess) {
    return "no CUDA device: the driver sees no GPU (is CUDA_VISIBLE_DEVICES set?); run on the CPU";
  }
  return fmt::format("no usable CUDA device: {} ({}); run on the CPU", cudaGetErrorString(status),
                     cudaGetErrorName(status));
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
  if (capability < kOldestCapability) {
    return {
        {},
        fmt::format(
            "no usable CUDA device: {} has compute capability {}.{}, the kernels need {}.{} or newer; run on the CPU",
            properties.name, properties.major, properties.minor, kOldestCapability / 10, kOldestCapability % 10)};
  }
  // The first call that needs a context; here so that a device in use by others alone, or out of memory, is one clear
  // line too.
  if (const cudaError_t status = cudaFree(nullptr); status != cudaSuccess) return {{}, reason_for(status)};
  return {DeviceProperties{properties.name, capability, properties.multiProcessorCount,
                           properties.sharedMemPerBlockOptin, properties.totalGlobalMem},
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

#endif

const DeviceProperties& require_device() {
  static const DeviceQuery query = query_device();
  if (!query.device) throw InputError(query.reason);
  return *query.device;
}

}  // namespace foretoken::cuda
