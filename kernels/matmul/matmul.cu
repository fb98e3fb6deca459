#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/matmul/matmul_cuda.cuh"

namespace foretoken::cuda {

MatmulArguments matmul_arguments(const MatmulDesc& desc) {
  const WeightTypeInfo& info = weight_type_info(desc.w.type);
  FT_CHECK_EQ(desc.x.num_cols, desc.w.num_cols);
  FT_CHECK_EQ(desc.w.row_bytes, device_row_bytes(desc.w.type, desc.w.num_cols));
  FT_CHECK(desc.max_rows > 0 && desc.num_outputs > 0 && desc.y != nullptr);
  FT_CHECK(desc.up.data == nullptr || (desc.up.type == desc.w.type && desc.up.num_cols == desc.w.num_cols));
  FT_CHECK((desc.max_buckets == 0) == (desc.buckets.num_buckets == nullptr));
  FT_CHECK(desc.groups == nullptr || desc.num_outputs % kInterleave == 0);
  FT_CHECK((desc.scales == nullptr && desc.up_scales == nullptr) || desc.max_buckets > 0);
  const QuantRows rows = info.activation_block == 32    ? desc.x.by32
                         : info.activation_block == 256 ? desc.x.by256
                                                        : QuantRows{};
  FT_CHECK(info.is_float() ? desc.x.values != nullptr : !rows.empty());
  return {desc.w.data,
          desc.up.data,
          desc.w.row_bytes,
          desc.num_outputs,
          desc.w.num_cols,
          rows,
          desc.x.values,
          desc.max_rows,
          desc.device_num_rows,
          desc.y,
          desc.y_stride,
          desc.buckets,
          desc.expert_stride * desc.w.row_bytes,
          desc.slots_per_input,
          desc.groups,
          desc.device_num_groups,
          desc.w.num_rows,
          desc.w.scale,
          desc.up.scale,
          desc.scales,
          desc.up_scales};
}

void refuse_type(WeightType type, const char* kernel) {
  check_failed(__FILE__, __LINE__, "the type has this kernel",
               std::string(weight_type_info(type).name) + " in the " + kernel);
}

MatmulConfig choose_config(const MatmulDesc& desc) {
  const WeightTypeInfo& info = weight_type_info(desc.w.type);
  MatmulConfig config;
  config.rows_at_once = desc.max_rows <= 2 ? desc.max_rows : desc.max_rows <= 4 ? 4 : kMaxDotRows;
  const int64_t num_blocks = desc.w.num_cols / std::max(1, info.activation_block);
  const bool whole = desc.max_buckets == 0 && desc.groups == nullptr;
  if (desc.blas != nullptr && desc.blas->library != nullptr && whole && blas_takes(desc.w)) {
    config.kernel = MatmulConfig::Kernel::kBlas;
  } else if (info.is_float()) {
    config.kernel = MatmulConfig::Kernel::kFloat;
  } else if (desc.max_rows > kMaxDotRows) {
    config.kernel = MatmulConfig::Kernel::kTiles;
  }
  config.log2_slots = num_blocks >= 5 ? 3 : num_blocks >= 3 ? 2 : num_blocks >= 2 ? 1 : 0;
  return config;
}

void launch(const MatmulDesc& desc, const MatmulConfig& config, const Stream& stream) {
  switch (config.kernel) {
    case MatmulConfig::Kernel::kDot:
      return launch_quant_dot(desc, config, stream);
    case MatmulConfig::Kernel::kTiles:
      return launch_quant_tiles(desc, config, stream);
    case MatmulConfig::Kernel::kFloat:
      return launch_float_matmul(desc, config, stream);
    case MatmulConfig::Kernel::kBlas:
      return launch_blas_matmul(desc, config, stream);
  }
}

}  // namespace foretoken::cuda
