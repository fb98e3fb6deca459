#pragma once

#include <cstdint>

#include "kernels/cuda/cuda_pass.h"
#include "kernels/cuda/cuda_runtime_wrap.h"

namespace foretoken::cuda {

// The small steps between the passes of a decoding cycle, and what they leave in device memory for the next one.

/// The rows that the MTP layer takes in, of which those from first_output on go through the whole layer.
struct FollowScalars {
  PassScalars rows;
  PassScalars outputs;  // the last rows.num_rows - first_output of them
  int32_t first_output = 0;
};

/// to[*to_row + r] = from[*from_row + r]; a row number that is nullptr is 0.
struct CopyRowsDesc {
  const float* from = nullptr;
  const int32_t* from_row = nullptr;
  float* to = nullptr;
  const int32_t* to_row = nullptr;
  int64_t num_cols = 0;
  int num_rows = 0;
};

/// to[to_rows[r]] = from[r]: what the host has computed joins what the device has.
struct ScatterRowsDesc {
  const float* from = nullptr;       // [num_rows, num_cols]
  const int32_t* to_rows = nullptr;  // [num_rows], all different
  float* to = nullptr;
  int64_t num_cols = 0;
  int num_rows = 0;
};

/// gate[i] = silu(gate[i]) * up[i]: for matrices of two types, which no matmul takes in one pass.
struct SiluMulDesc {
  float* gate = nullptr;
  const float* up = nullptr;
  int64_t num_values = 0;
};

/// One draft joins the window: window_ids[index + 1] = forced[index], or `chosen` where that is negative; its id and
/// share are kept for the host.
struct TakeDraftDesc {
  const int32_t* chosen = nullptr;  // [1]
  const float* share = nullptr;     // [1]
  const int32_t* forced = nullptr;  // [most drafts]
  int32_t* window_ids = nullptr;    // [most drafts + 1]: the known token, then the drafts
  float* shares = nullptr;          // [most drafts]
  int index = 0;
};

/// The longest prefix of the drafts that equals the target's choices, and the rows that the MTP layer has to follow:
/// the choices up to and with the first that is no draft.
struct AcceptDesc {
  const int32_t* window_ids = nullptr;  // [num_rows]
  const int32_t* choices = nullptr;     // [num_rows]
  int num_rows = 0;                     // 1 .. 32
  const PassScalars* window = nullptr;
  int32_t* num_accepted = nullptr;
  FollowScalars* follow = nullptr;  // nullptr: not wanted
};

void launch(const CopyRowsDesc& desc, const Stream& stream);
void launch(const ScatterRowsDesc& desc, const Stream& stream);
void launch(const SiluMulDesc& desc, const Stream& stream);
void launch(const TakeDraftDesc& desc, const Stream& stream);
void launch(const AcceptDesc& desc, const Stream& stream);

}  // namespace foretoken::cuda
