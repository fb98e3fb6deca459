#pragma once

#include <cstdint>

namespace foretoken::cuda {

/// What changes from pass to pass, in device memory: kernels recorded in a graph read it there. Every launch has room
/// for the most rows that a pass of its kind can have; what lies beyond num_rows does nothing.
struct PassScalars {
  int32_t num_rows = 0;  // rows of this pass
  int32_t position = 0;  // of the first row
  // Recurrent state; see RecurrentState (engine/sequence/recurrent_state.h) for what the words mean.
  int32_t old_slot = 0;  // 0 or 1: the slot that holds the rows of the pass before; the running pass fills the other
  int32_t kept = 0;      // rows of the old slot that belong to the sequence
  int32_t replay = 0;    // of them, the last ones that the state still lacks
};

}  // namespace foretoken::cuda
