#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/model/model_config.h"
#include "engine/model/weights.h"
#include "engine/options.h"
#include "engine/session_memory.h"

namespace foretoken {

/// A layer's parts as they lie on the device.
struct LayerSizes {
  size_t dense_bytes = 0;   // everything but the routed experts
  size_t expert_bytes = 0;  // one routed expert; 0 for a dense layer
  int num_experts = 0;
};

/// A model's parts as they lie on the device, where every plane of a row begins at a multiple of 16 bytes (see
/// kernels/cuda/cuda_matrix.h).
struct ModelSizes {
  std::vector<LayerSizes> layers;  // the trunk's
  std::optional<LayerSizes> mtp;   // the MTP layer with its join, without its head
  size_t embed_bytes = 0;          // of the trunk and, where it has its own, of the MTP layer
  size_t head_bytes = 0;           // 0: the embedding is the head
  size_t draft_head_bytes = 0;     // 0: drafts read the trunk's head
  int experts_per_token = 0;
  int64_t hidden_dim = 0;

  /// From shapes and types alone: the weights need not be in memory (see Model::outline).
  [[nodiscard]] static ModelSizes of(const BasicModelWeights<MatrixView>& weights, const ModelConfig& config);
};

/// Bytes a second, as measured on this machine; nothing where they are not known.
struct MachineSpeed {
  std::optional<double> device;  // the device reading its own memory
  std::optional<double> bus;     // host to device, from pinned memory
  std::optional<double> host;    // the host reading its memory
};

struct PlacementRequest {
  size_t free_bytes = 0;             // of the device's memory, now
  size_t reserve_bytes = 0;          // of them, to be left alone (at least; 5% are in any case)
  bool whole_model = false;          // --device cuda: everything on the device, or an error
  std::optional<int> gpu_experts;    // routed experts of each layer on the device; nothing: as many as fit
  std::optional<int> gpu_layers;     // layers whose routed experts may lie there; nothing: all
  std::optional<int> cache_entries;  // hot experts of each other layer; nothing: as many as fit
  bool with_mtp = false;             // the MTP layer is used
  int64_t ctx_size = 0;              // that `session` is for
  SessionMemory session;             // what a session takes on the device
};

/// What lies where.
///
///   device  trunk without its routed experts, embedding, head, MTP layer with its experts and head, caches and work
///           buffers; of trunk layer l the routed experts [0, experts[l]); cache_entries entries for others of them
///   RAM     all routed experts of the trunk (those on the device are not computed here)
struct Placement {
  std::vector<int> experts;  // [num_layers] routed experts on the device
  int cache_entries = 0;     // entries for hot experts in each layer that is not whole on the device

  size_t free_bytes = 0;     // of the device when the plan was made
  size_t budget_bytes = 0;   // of them, what may be used
  size_t dense_bytes = 0;    // trunk without routed experts, embedding and head
  size_t mtp_bytes = 0;      // MTP layer with experts and draft head
  size_t session_bytes = 0;  // KV, recurrent state, work buffers
  size_t expert_bytes = 0;   // routed experts of the trunk that have their place
  size_t cache_bytes = 0;    // the entries
  size_t host_bytes = 0;     // routed experts of the trunk that lie in RAM alone

  [[nodiscard]] size_t device_bytes() const {
    return dense_bytes + mtp_bytes + session_bytes + expert_bytes + cache_bytes;
  }
  /// All routed experts of the trunk are on the device.
  [[nodiscard]] bool whole_model() const { return host_bytes == 0; }

  // What one token makes each side read, at a full context and if all experts are equally likely.
  double device_bytes_per_token = 0;
  double host_bytes_per_token = 0;
  double bus_bytes_per_token = 0;  // rows to the host and partial results back
};

/// Makes the plan: at most 95% of the free memory; what every token uses first, then routed experts: whole layers from
/// the first on, since a layer that is whole on the device needs no word with the host, and hot-expert entries for the
/// other layers. Throws InputError with one line that says what would fit.
[[nodiscard]] Placement plan_placement(const ModelSizes& sizes, const PlacementRequest& request);

/// Time of one token, from bytes and speeds alone (no launches, no waiting): the device's dense parts, then, of the
/// experts, the slower of the two sides. Nothing where a speed that matters is not known.
struct TokenTime {
  std::optional<double> device_ms, host_ms, bus_ms, token_ms;
};
[[nodiscard]] TokenTime expected_time(const Placement& plan, const ModelSizes& sizes, const MachineSpeed& speed);

/// The plan for a person, some lines.
[[nodiscard]] std::string describe(const Placement& plan, const ModelSizes& sizes, const MachineSpeed& speed);

}  // namespace foretoken
