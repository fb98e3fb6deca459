#pragma once

#include <cstdint>

#include "kernels/cuda/cuda_pass.h"
#include "kernels/cuda/cuda_runtime_wrap.h"

namespace foretoken::cuda {

/// What a delta-net layer keeps of rows.
struct DeltaBank {
  float* raw = nullptr;    // [rows, conv_channels] before the convolution
  float* mixed = nullptr;  // [rows, conv_channels] after convolution, SiLU and normalisation: q, k, v
  float* beta = nullptr;   // [rows, num_value_heads]
  float* decay = nullptr;  // [rows, num_value_heads]
};

/// Where the spans of a pass take the rows before them from, and leave their own. Two banks of each sequence take turns
/// (DeviceSpan::old_bank). A window reads the old one and fills the other, and applies only its first row to the state;
/// the rest is replayed by the sequence's next pass. A prompt chunk leaves its rows in `chunk`, and all of them are
/// applied at once; it needs no raw rows.
struct DeltaBanks {
  DeltaBank banks[2];   // [sequences, window_rows, ...]
  int window_rows = 0;  // of the widest window
  DeltaBank chunk;      // [rows of the pass, ...]; nullptr: the pass has only windows
};

/// Convolution with SiLU, normalisation of the query and key heads, gates, and the history moved to where the next pass
/// needs it: before a window's new bank, or behind the last row of a chunk.
struct ConvolveDesc {
  DeltaBanks banks;
  const float* raw = nullptr;     // [rows, conv_channels] of this pass
  const float* weight = nullptr;  // [conv_channels, taps]
  int taps = 0;
  float* history = nullptr;  // [sequences, taps - 1, conv_channels] the raw rows before the old bank, oldest first
  int state_size = 0, num_key_heads = 0, num_value_heads = 0;
  float eps = 0;                 // of the normalisation
  const float* b = nullptr;      // [rows, num_value_heads]
  const float* alpha = nullptr;  // [rows, num_value_heads]
  const float* a = nullptr;      // [num_value_heads]
  const float* dt = nullptr;     // [num_value_heads]
  DevicePass pass;
};

/// The recurrence of each span: rows of the old bank that the state lacks are replayed, then the rows of the pass,
/// whose outputs go to `out`.
struct DeltaNetDesc {
  DeltaBanks banks;
  float* state = nullptr;  // [sequences][num_value_heads][state_size (key)][state_size (value)]
  int state_size = 0, num_key_heads = 0, num_value_heads = 0;
  bool grouped_heads = false;  // the value heads of a key head follow each other; otherwise they take turns
  float* out = nullptr;        // [rows, num_value_heads * state_size]
  DevicePass pass;
};

/// state_size has kernels of its own: 16, 32, 64 or 128.
[[nodiscard]] bool delta_net_supports(int state_size);

void launch(const ConvolveDesc& desc, const Stream& stream);
void launch(const DeltaNetDesc& desc, const Stream& stream);

}  // namespace foretoken::cuda
