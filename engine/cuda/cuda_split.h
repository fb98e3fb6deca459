#pragma once

#include <cstdint>
#include <vector>

#include "engine/cuda/cuda_buffers.h"
#include "engine/cuda/cuda_model.h"
#include "engine/cuda/hot_experts.h"
#include "kernels/rows/row_buffer.h"
#include "kernels/threads/thread_team.h"
#include "moe/moe.h"

namespace foretoken::cuda {

/// Host memory of CudaSplit, for a pass of up to pass_rows(options) rows.
struct SplitBuffers {
  SplitBuffers(const ModelShapes& shapes, const SessionOptions& options);
  /// With mapped memory, [max_rows + num_slots, hidden_dim] floats and twice [num_slots] ids, which CudaSplit takes where
  /// there is a device.
  [[nodiscard]] size_t size_bytes() const;

  int64_t num_slots;   // [max_rows * top_k]
  RowBuffer x;         // [max_rows, hidden_dim]
  MoeScratch scratch;  // of routed experts alone
};

/// The host's half of a session whose routed experts are split. While a layer's experts on the device are computed
/// there, this computes the others; each (row, rank) slot's result is a row of its own, so that the device adds them in
/// the router's rank order, whoever made them, and no bit depends on where an expert lies.
///
///   device  ... norm, router | rows and choices leave | experts that are there, shared one | slots arrive | next layer's
///   host                                              | the others, in buckets             |
///
/// Rows and slots lie in memory that both reach, and each side tells the other by flags, so that a pass is one piece of
/// work for the device. Where an expert lies changes between passes (CudaModel::begin_pass), but for those that the device
/// fetches: it and the host take them by the same rule (FetchCandidates), so neither has to ask the other.
class CudaSplit {
 public:
  CudaSplit(const Model& model, const ModelShapes& shapes, const SessionOptions& options, CudaModel& shared,
            CudaBuffers& buffers, const Stream& stream, ThreadTeam& team);
  CudaSplit(const CudaSplit&) = delete;
  CudaSplit& operator=(const CudaSplit&) = delete;

  /// REQUIRES: buffers and tables have their memory.
  void allocate();

  /// Some experts of this layer may be in RAM alone.
  [[nodiscard]] bool splits(int layer_idx) const { return layer_idx < hot_.num_layers() && hot_.is_split(layer_idx); }

  /// Before a pass. REQUIRES: the stream is idle.
  void begin_pass(bool has_chunks);
  /// Work of the device: the rows behind a layer's router and their choices leave for the host.
  void send_rows(int num_rows, int top_k);
  /// Work of the device, behind send_rows(): missing experts come over the bus, if the layer's are fetched.
  void fetch(int layer_idx);
  /// What the launch that groups the layer's rows needs for it.
  void add_fetching(int layer_idx, GroupDesc& group) const;
  /// The host's step: takes these rows, computes its slots of layer `layer_idx` and leaves them for receive_slots(). If it
  /// throws, the device does not wait for this pass's slots any more, and what it computes is nobody's.
  void compute(int layer_idx, int num_rows);
  /// Work of the device, behind its own experts: waits for the host's slots and puts them among the others.
  void receive_slots(int layer_idx, int num_rows, int top_k);

  [[nodiscard]] size_t host_bytes() const { return host_.size_bytes(); }
  /// Distinct experts of the last pass at a split layer.
  [[nodiscard]] int distinct_experts(int layer_idx) const { return distinct_[layer_idx]; }

 private:
  void compute_slots(int layer_idx, int num_rows);
  [[nodiscard]] bool fetches(int layer_idx) const {
    return options_.moe_verify == MoeVerify::kGrouped && shared_.fetches(layer_idx);
  }

  const Model& model_;
  const SessionOptions& options_;
  CudaModel& shared_;
  HotExperts& hot_;
  CudaBuffers& buffers_;
  const Stream& stream_;
  ThreadTeam& team_;
  std::vector<int> distinct_;  // [num_layers]

  SplitBuffers host_;
  MappedBuffer rows_in_;        // [max_rows, hidden_dim] from the device
  MappedBuffer experts_in_;     // [max_rows, top_k]
  MappedBuffer rows_out_;       // [num_slots, hidden_dim] to the device
  MappedBuffer slots_out_;      // [num_slots]
  MappedBuffer num_out_;        // [num_layers] how many of them each layer has
  Flags sent_;                  // [max_rows] by the device: the row of the running layer is there
  Flags ready_;                 // [num_layers] by the host: the layer's slots are
  std::vector<int32_t> slots_;  // the host's of the running layer
  std::vector<uint8_t> seen_;   // [num_experts]
  std::vector<int32_t> used_;   // experts of the running layer, rising
  bool has_chunks_ = false;     // the running pass
};

}  // namespace foretoken::cuda
