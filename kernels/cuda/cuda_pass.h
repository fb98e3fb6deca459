#pragma once

#include <cstdint>

namespace foretoken::cuda {

/// Rows of one sequence in one pass.
struct DeviceSpan {
  int32_t first_row = 0;  // of the pass
  int32_t num_rows = 0;
  int32_t position = 0;    // of the first row
  int32_t sequence = 0;    // its place in memory that has a part for each sequence
  int32_t is_window = 1;   // a window, of which any number of rows may be kept; 0: a prompt chunk, which is kept whole
  int32_t window_row = 0;  // rows of windows in the spans before this one
  // Recurrent state; see RecurrentState (engine/sequence/recurrent_state.h) for what the words mean.
  int32_t old_bank = 0;  // 0 or 1: the bank that holds the rows of the pass before; a window fills the other
  int32_t kept = 0;      // rows of the old bank that belong to the sequence
  int32_t replay = 0;    // of them, the last ones that the state still lacks
};

struct PassCounts {
  int32_t num_rows = 0;
  int32_t num_spans = 0;
};

/// What changes from pass to pass, in device memory: kernels recorded in a graph read it there. Every launch has room
/// for the most rows and spans that a pass of its kind can have; what lies beyond the counts does nothing. Owns
/// nothing.
struct DevicePass {
  PassCounts* counts = nullptr;    // [1]
  DeviceSpan* spans = nullptr;     // [max_spans]
  int32_t* span_of_row = nullptr;  // [rows] negative: the row belongs to no span, and leaves nothing behind
  int max_spans = 0;
};

}  // namespace foretoken::cuda
