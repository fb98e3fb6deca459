#pragma once

#include <cstdint>

#include "kernels/cuda/cuda_rows.h"
#include "kernels/cuda/cuda_runtime_wrap.h"

namespace foretoken::cuda {

/// Makes the int8 forms of rows [0, num_rows): those that `rows` has memory for. The numbers are those of quantise_row.
struct QuantiseDesc {
  DeviceRows rows;
  int num_rows = 0;                          // at most
  const int32_t* device_num_rows = nullptr;  // [1] in device memory, if fewer are known only there
};

struct QuantiseConfig {
  int warps_per_block = 4;
};

[[nodiscard]] QuantiseConfig choose_config(const QuantiseDesc& desc);
void launch(const QuantiseDesc& desc, const QuantiseConfig& config, const Stream& stream);

}  // namespace foretoken::cuda
