#pragma once

#include <cstdint>

#include "kernels/cuda/cuda_pass.h"
#include "kernels/cuda/cuda_runtime_wrap.h"

namespace foretoken::cuda {

/// What one delta-net layer keeps of the rows of a window; two of them take turns (PassScalars::old_slot).
struct DeltaSlot {
  float* raw = nullptr;    // [max_rows, conv_channels] before the convolution
  float* mixed = nullptr;  // [max_rows, conv_channels] after convolution, SiLU and normalisation: q, k, v
  float* beta = nullptr;   // [max_rows, num_value_heads]
  float* decay = nullptr;  // [max_rows, num_value_heads]
};

/// Where the running pass takes the rows before it from, and leaves its own. A window (chunk.mixed == nullptr) reads
/// slots[old_slot] and fills the other, and applies only its first row to the state; the rest is replayed by the next
/// pass. A prompt chunk has a slot of its own, and all of its rows are applied at once; it needs no raw rows.
struct DeltaSlots {
  DeltaSlot slots[2];
  DeltaSlot chunk;
};

/// Convolution with SiLU, normalisation of the query and key heads, gates, and the history moved to where the next pass
/// needs it: before the new slot, or behind the last row of a chunk.
struct ConvolveDesc {
  DeltaSlots slots;
  const float* raw = nullptr;     // [rows, conv_channels] of this pass
  const float* weight = nullptr;  // [conv_channels, taps]
  int taps = 0;
  float* history = nullptr;  // [taps - 1, conv_channels] the raw rows before the old slot, oldest first
  int state_size = 0, num_key_heads = 0, num_value_heads = 0;
  float eps = 0;                 // of the normalisation
  const float* b = nullptr;      // [rows, num_value_heads]
  const float* alpha = nullptr;  // [rows, num_value_heads]
  const float* a = nullptr;      // [num_value_heads]
  const float* dt = nullptr;     // [num_value_heads]
  const PassScalars* pass = nullptr;
};

/// The recurrence: rows of the old slot that the state lacks are replayed, then the rows of the pass, whose outputs go
/// to `out`.
struct DeltaNetDesc {
  DeltaSlots slots;
  float* state = nullptr;  // [num_value_heads][state_size (key)][state_size (value)]
  int state_size = 0, num_key_heads = 0, num_value_heads = 0;
  float* out = nullptr;  // [rows, num_value_heads * state_size]
  const PassScalars* pass = nullptr;
};

/// state_size has kernels of its own: 16, 32, 64 or 128.
[[nodiscard]] bool delta_net_supports(int state_size);

void launch(const ConvolveDesc& desc, const Stream& stream);
void launch(const DeltaNetDesc& desc, const Stream& stream);

}  // namespace foretoken::cuda
