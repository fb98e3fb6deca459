#pragma once

#include <cstddef>

#include "engine/model/model_config.h"
#include "engine/model/weights.h"
#include "engine/options.h"

namespace foretoken {

/// Device memory that stays free: for kernels, graphs, the allocator's rounding.
inline constexpr size_t kDeviceReserveBytes = size_t{256} << 20;

/// Bytes that a session needs beside the model's own memory: of the host for the CPU, of the device for CUDA, where
/// host_bytes stand beside them.
struct SessionMemory {
  size_t kv_bytes = 0;         // trunk and MTP layer
  size_t recurrent_bytes = 0;  // delta-net states and what a window keeps for its replay
  size_t work_bytes = 0;       // activations, logits, partial results, rotation tables
  size_t weight_bytes = 0;     // a device's copy of the weights; 0 on the CPU, which reads the model's own
  size_t host_bytes = 0;       // of a device's session: what the host exchanges with it, and of a split its half
  /// On the side that the session runs on.
  [[nodiscard]] size_t total() const { return kv_bytes + recurrent_bytes + work_bytes + weight_bytes; }
};

/// What an Engine of these options will take, weights aside, on the side that SessionOptions::device names. From the
/// weights' description alone, before any are loaded: engines allocate what the same declarations add up to.
[[nodiscard]] SessionMemory session_memory(const BasicModelWeights<MatrixView>& weights, const ModelConfig& config,
                                           const SessionOptions& options);

/// The options as an engine completes them: context, threads, a prompt chunk within the context.
[[nodiscard]] SessionOptions with_defaults(const ModelConfig& config, SessionOptions options);

}  // namespace foretoken
