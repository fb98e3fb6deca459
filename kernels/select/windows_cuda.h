#pragma once

#include <cstdint>

#include "kernels/cuda/cuda_pass.h"
#include "kernels/cuda/cuda_runtime_wrap.h"

namespace foretoken::cuda {

// Windows of tokens, of which the first is known and the others are proposals: the steps that build them one proposal
// at a time, and the one that says how many of them hold. A window is a span of a pass, its tokens stand at the span's
// rows.

/// Widest window.
inline constexpr int kMaxWindow = 32;

/// Each of the windows [0, num_windows) gets its next proposal: the token that the host has put there, or the choice of
/// the window's sequence where the host has put a negative number. Row r of `steps` stands at the window's last token;
/// it moves on by one position and gets the new one.
struct ExtendWindowsDesc {
  DevicePass windows;
  DevicePass steps;                 // a span of one row for each window
  const int32_t* chosen = nullptr;  // [sequences]
  const float* shares = nullptr;    // [sequences] how sure each choice was
  int32_t* window_ids = nullptr;    // [rows of windows]
  float* window_shares = nullptr;  // [rows of windows] at the row before a proposal: the share of what was chosen there
  int32_t* step_ids = nullptr;     // [rows of steps]
  int num_windows = 0;
};

/// Of each window the longest prefix of proposals that equal the choices of the rows before them. For the windows
/// [0, *num_followed) also what comes next: the choices up to and with the first that no proposal has foretold.
struct AcceptDesc {
  DevicePass windows;                   // of 1 .. kMaxWindow rows each
  const int32_t* window_ids = nullptr;  // [rows]
  const int32_t* choices = nullptr;     // [rows]
  int32_t* num_accepted = nullptr;      // [spans] proposals
  const int32_t* num_followed = nullptr;
  /// The rows whose choices count, at the positions of these choices: span s has the accepted rows of window s and the
  /// one before them, and their numbers; the rows between belong to no span.
  DevicePass counted;
  DevicePass last;               // row s: the last row of span s
  int32_t* last_rows = nullptr;  // [spans] its number among the windows' rows
};

void launch(const ExtendWindowsDesc& desc, const Stream& stream);
void launch(const AcceptDesc& desc, const Stream& stream);

}  // namespace foretoken::cuda
