#pragma once

#include <cstdint>

#include "engine/cuda/cuda_arena.h"
#include "engine/cuda/cuda_buffers.h"
#include "engine/cuda/cuda_state.h"
#include "engine/device_cycle.h"
#include "engine/model/shapes.h"
#include "engine/options.h"
#include "engine/session_memory.h"
#include "kernels/select/choose_cuda.h"

namespace foretoken::cuda {

/// What the host tells the device before a pass of the trunk; recorded work reads it in device memory.
struct TrunkInput {
  MirroredArena memory;
  CudaPassTable pass;
  Mirrored<int32_t> ids;  // [rows] of a cycle: known tokens, and drafts, negative where the MTP layer's own are to be
};

/// What a cycle tells the device beside that, in the memory of its windows. The cycle puts the windows with the most
/// drafts of the MTP layer first, so that those that go on are always the first ones.
struct CycleInput {
  CudaPassTable steps;              // a span of one row for each window that drafts: its last token so far
  Mirrored<int32_t> step_ids;       // [sequences]
  Mirrored<int32_t> sequences;      // [sequences] the slot of each window's sequence
  Mirrored<int32_t> deferred_rows;  // [rows] where the hidden row of a window that does not draft is kept, or negative
  Mirrored<int32_t> num_drafting;   // [1] windows that draft
};

/// What a cycle tells the host.
struct CycleResult {
  MirroredArena memory;
  Mirrored<int32_t> num_accepted;  // [sequences] of each window
  Mirrored<int32_t> choices;       // [rows] the target's own after each row
  Mirrored<float> shares;          // [rows] how sure the MTP layer was of the draft behind each row
  Mirrored<int32_t> next_draft;    // [sequences] by slot: first draft of the sequence's next window
  Mirrored<float> next_share;      // [sequences]
};

/// The rows that the MTP layer takes in, and those of them that go through the whole layer. Told by the host, or left
/// behind by a cycle's decision.
struct MtpInput {
  MirroredArena memory;
  CudaPassTable rows;             // [pass_rows]
  CudaPassTable outputs;          // [pass_rows]
  Mirrored<int32_t> output_rows;  // [pass_rows] the row of each output
  Mirrored<int32_t> ids;          // [pass_rows]
  Mirrored<int32_t> hidden_rows;  // [pass_rows] where kept hidden rows are
};

/// What passes get and leave: tables and tokens in both memories, hidden rows and logits in the device's.
struct CudaIo {
  CudaIo(const ModelShapes& shapes, const BasicModelWeights<MatrixView>& weights, const SessionOptions& options);
  CudaIo(const CudaIo&) = delete;
  CudaIo& operator=(const CudaIo&) = delete;

  /// Of what the host and the device exchange: as much on either side.
  [[nodiscard]] size_t pinned_bytes() const;
  void allocate();

  // Tables and tokens; written by the host only while the stream is idle.
  TrunkInput windows;  // of passes that are all windows; room for parallel * max_window rows
  TrunkInput chunks;   // of the others; room for pass_rows
  CycleInput cycle;
  CycleResult result;
  MtpInput mtp;
  struct {
    MirroredArena memory;
    Mirrored<int32_t> rows;  // [logits_rows]
  } gather;

  // In device memory.
  float* mtp_input = nullptr;        // [pass_rows, hidden_dim] what the MTP layer takes in, if it has to be gathered
  float* deferred_hidden = nullptr;  // [sequences, deferred_capacity(), hidden_dim] of tokens that wait
  float* draft_hidden = nullptr;     // [sequences, hidden_dim] where a sequence's chain of drafts goes on; nullptr: one
  SamplingScalars* sampling = nullptr;  // [sequences]
  DeviceRows hidden, mtp_hidden;        // [pass_rows, hidden_dim] after the final norm, after shared_head_norm
  DeviceRows gathered;                  // [logits_rows, hidden_dim] rows of either, side by side
  float* logits = nullptr;              // [logits_rows, vocab_size]
  float* draft_logits = nullptr;        // [logits_rows, 16 * vocab_groups]
  int32_t* draft_groups = nullptr;      // [vocab_groups + 1] their number, then the groups
  float* choose_work = nullptr;

  DeviceArena memory;
};

/// What these take together; weights aside.
[[nodiscard]] SessionMemory session_memory(const CudaState& state, const CudaBuffers& buffers, const CudaIo& io);
/// The same before there are any.
[[nodiscard]] SessionMemory device_session_memory(const ModelShapes& shapes,
                                                  const BasicModelWeights<MatrixView>& weights,
                                                  const SessionOptions& options);

/// Hidden rows that are kept for a sequence.
[[nodiscard]] inline int64_t deferred_capacity(const SessionOptions& options) {
  return DeviceCycle::kMaxDeferred + options.max_window;
}

}  // namespace foretoken::cuda
