#include "kernels/cuda/cuda_faults.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "kernels/base/error.h"

namespace foretoken::cuda {

namespace {

double mebibytes(size_t size_bytes) {
  return static_cast<double>(size_bytes) / (1 << 20);
}

}  // namespace

void refuse_memory(size_t size_bytes, std::string_view what, size_t free_bytes, size_t total_bytes) {
  throw InputError(
      fmt::format("CUDA: {:.1f} MiB for {} do not fit: {:.1f} of {:.1f} MiB are free on the device; choose a smaller "
                  "--ctx-size, --device split with fewer --gpu-experts, or --device cpu",
                  mebibytes(size_bytes), what, mebibytes(free_bytes), mebibytes(total_bytes)));
}

bool is_lost(std::string_view name) {
  static constexpr std::array<std::string_view, 9> kLost = {
      "cudaErrorLaunchFailure",      "cudaErrorIllegalAddress",     "cudaErrorIllegalInstruction",
      "cudaErrorMisalignedAddress",  "cudaErrorLaunchTimeout",      "cudaErrorECCUncorrectable",
      "cudaErrorHardwareStackError", "cudaErrorDevicesUnavailable", "cudaErrorDeviceUninitialized"};
  return std::find(kLost.begin(), kLost.end(), name) != kLost.end();
}

void fail_call(std::string_view what, std::string_view reason, std::string_view name) {
  throw InputError(
      fmt::format("CUDA: {}: {} ({}){}", what, reason, name,
                  is_lost(name) ? "; the device is lost to this run: start again, or run with --device cpu" : ""));
}

void fail_blas(std::string_view what, std::string_view reason, std::string_view name) {
  throw InputError(fmt::format("cuBLAS: {}: {} ({}); run without --cublas", what, reason, name));
}

}  // namespace foretoken::cuda
