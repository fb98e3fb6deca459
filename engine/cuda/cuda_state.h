#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/cuda/cuda_arena.h"
#include "engine/model/shapes.h"
#include "engine/options.h"
#include "engine/sequence/kv_pages.h"
#include "engine/sequence/sequence_state.h"
#include "engine/session_memory.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/cuda/cuda_pass.h"
#include "kernels/delta_net/delta_net_cuda.h"

namespace foretoken::cuda {

/// What the device remembers of all sequences: pages of keys and values, and for each sequence its table of pages,
/// recurrent states and what windows keep for their replay. The words are those of KvPages and RecurrentState.
class CudaState {
 public:
  CudaState(const ModelShapes& shapes, const SessionOptions& options);
  CudaState(const CudaState&) = delete;
  CudaState& operator=(const CudaState&) = delete;

  [[nodiscard]] size_t kv_bytes() const { return kv_memory_.size_bytes() + tables_.size_bytes(); }
  [[nodiscard]] size_t recurrent_bytes() const { return recurrent_memory_.size_bytes(); }
  void allocate(const Stream& stream);

  struct Recurrent {
    DeltaNetShape shape;
    float* state = nullptr;    // [sequences][num_value_heads][state_size (key)][state_size (value)]
    float* history = nullptr;  // [sequences, conv_taps - 1, conv_channels]
    DeltaBanks banks;          // without `chunk`
  };
  std::vector<DeviceKv> kv;          // of each attention layer; the MTP layer's is the last
  std::vector<Recurrent> recurrent;  // of each delta-net layer

  /// The pages that `sequence` has now, on the host's side.
  void set_pages(const SequenceState& sequence);
  /// What was set since the last time goes to the device. REQUIRES: the stream is idle.
  void send_pages(const Stream& stream);

  void reset(const Stream& stream, int slot);
  [[nodiscard]] int num_pages() const { return num_pages_; }
  [[nodiscard]] size_t page_bytes() const { return static_cast<size_t>(shape_.page_bytes()); }
  [[nodiscard]] std::byte* page(int32_t page) const { return pages_ + static_cast<size_t>(page) * page_bytes(); }

  /// A part of a sequence's recurrent states, as RecurrentState::read has them one behind the other.
  struct Piece {
    float* data = nullptr;
    size_t size_bytes = 0;
  };
  [[nodiscard]] std::vector<Piece> state_pieces(int slot) const;
  [[nodiscard]] size_t state_bytes() const;

 private:
  const KvShape shape_;
  const int num_pages_;
  const int64_t pages_per_sequence_;
  const int parallel_;
  std::byte* pages_ = nullptr;
  Mirrored<int32_t> table_;  // [sequences, pages_per_sequence_]
  bool table_changed_ = true;
  DeviceArena kv_memory_, recurrent_memory_;
  MirroredArena tables_;
};

/// A pass's table: the host's side, which it fills in, and the device's.
struct CudaPassTable {
  Mirrored<PassCounts> counts;
  Mirrored<DeviceSpan> spans;
  Mirrored<int32_t> span_of_row;

  void declare(MirroredArena& arena, int64_t max_rows, int64_t max_spans);
  void clear() { *counts.host = {}; }
  /// One span more: its rows follow those before.
  void add(DeviceSpan span);
  [[nodiscard]] DevicePass on_device(int max_spans) const {
    return {counts.device, spans.device, span_of_row.device, max_spans};
  }
};

/// The span of a pass that stands at `position`; its rows' place is not set.
[[nodiscard]] DeviceSpan device_span(const SequenceState& sequence, int num_rows, int64_t position, bool is_window);

}  // namespace foretoken::cuda
