#include <unistd.h>

#include <cstdlib>
#include <string_view>

#include "kernels/cuda/cuda_runtime_wrap.h"

// What the runtime and its emulation share.

namespace foretoken::cuda {

HostPages pages_around(const void* data, size_t size_bytes) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(data);
  return {begin / page * page, (begin + size_bytes + page - 1) / page * page};
}

bool launches_block() {
  const char* value = std::getenv("CUDA_LAUNCH_BLOCKING");
  return value != nullptr && *value != '\0' && std::string_view(value) != "0";
}

}  // namespace foretoken::cuda
