#pragma once

#include <cstdint>

#include "kernels/cuda/cuda_runtime_wrap.h"

namespace foretoken::cuda {

/// What a choice depends on beside the logits; in device memory, so that a recorded graph serves every request.
struct SamplingScalars {
  float temperature = 0.0f;  // 0: greedy
  uint64_t seed = 0;
};

/// The choice at each row, as choose_token without top-k, top-p and min-p (those need the host), and how sure it was:
/// the share of the chosen id in softmax(logits), to some 1e-5.
struct ChooseDesc {
  const float* logits = nullptr;  // [rows, logits_stride]
  int64_t logits_stride = 0;
  int64_t num_logits = 0;
  // With groups (draft head), logit i is of id 16 * groups[i / 16] + i % 16; groups rise, and of the last one only ids
  // below num_ids have a logit.
  const int32_t* groups = nullptr;
  const int32_t* device_num_groups = nullptr;
  int64_t num_ids = 0;
  const SamplingScalars* sampling = nullptr;
  const int32_t* device_position = nullptr;  // [1]; row r's choice will stand at *device_position + position_offset + r
  int position_offset = 0;
  int32_t* ids = nullptr;   // [rows]
  float* shares = nullptr;  // [rows] or nullptr
  float* work = nullptr;    // work_floats()
  int max_rows = 0;
  const int32_t* device_num_rows = nullptr;

  static constexpr int kBlocks = 64;  // blocks of threads a row
  [[nodiscard]] static int64_t work_floats(int max_rows) { return int64_t{max_rows} * kBlocks * 5; }
};

void launch(const ChooseDesc& desc, const Stream& stream);

}  // namespace foretoken::cuda
