#pragma once

#include <cstdint>

#include "kernels/cuda/cuda_pass.h"
#include "kernels/cuda/cuda_runtime_wrap.h"

namespace foretoken::cuda {

/// What a sequence's choices depend on beside the logits; in device memory, so that a recorded graph serves every
/// request.
struct SamplingScalars {
  float temperature = 0.0f;  // 0: greedy
  uint64_t seed = 0;
};

/// The choice behind each row of a pass, as choose_token without top-k, top-p and min-p (those need the host), and how
/// sure it was: the share of the chosen id in softmax(logits), to some 1e-5.
struct ChooseDesc {
  const float* logits = nullptr;  // [rows, logits_stride]
  int64_t logits_stride = 0;
  int64_t num_logits = 0;
  // With groups (of a head of which some rows count), logit i is of id 16 * groups[i / 16] + i % 16; groups rise, and of the last one only ids
  // below num_ids have a logit.
  const int32_t* groups = nullptr;
  const int32_t* device_num_groups = nullptr;
  int64_t num_ids = 0;
  DevicePass pass;                            // row r's choice will stand one position behind row r
  const SamplingScalars* sampling = nullptr;  // [sequences]
  bool by_sequence = false;                   // results stand at the number of a row's sequence, not of the row
  int32_t* ids = nullptr;                     // [rows], or [sequences]
  float* shares = nullptr;                    // the same; nullptr: not wanted
  float* work = nullptr;                      // work_floats()
  int max_rows = 0;

  static constexpr int kBlocks = 64;  // blocks of threads a row
  [[nodiscard]] static int64_t work_floats(int max_rows) { return int64_t{max_rows} * kBlocks * 5; }
};

void launch(const ChooseDesc& desc, const Stream& stream);

}  // namespace foretoken::cuda
