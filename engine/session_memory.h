#pragma once

#include <cstddef>

namespace foretoken {

/// Device memory that stays free: for kernels, graphs, the allocator's rounding.
inline constexpr size_t kDeviceReserveBytes = size_t{256} << 20;

/// Bytes that a session needs beside the model's own memory: of the host for the CPU, of the device for CUDA.
struct SessionMemory {
  size_t kv_bytes = 0;         // trunk and MTP layer
  size_t recurrent_bytes = 0;  // delta-net states and what a window keeps for its replay
  size_t work_bytes = 0;       // activations, logits, partial results
  size_t weight_bytes = 0;     // a device's copy of the weights; 0 on the CPU, which reads the model's own
  [[nodiscard]] size_t total() const { return kv_bytes + recurrent_bytes + work_bytes + weight_bytes; }
};

}  // namespace foretoken
