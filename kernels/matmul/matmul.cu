#include <algorithm>
#include <vector>

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
  if (const SharedBucket& shared = desc.shared; shared.w.data != nullptr) {
    FT_CHECK(desc.max_buckets > 0 && shared.w.type == desc.w.type && shared.w.num_cols == desc.w.num_cols);
    FT_CHECK_EQ(shared.w.num_rows, desc.num_outputs);
    FT_CHECK((shared.up.data == nullptr) == (desc.up.data == nullptr) &&
             (shared.up.data == nullptr || (shared.up.type == desc.w.type && shared.up.num_cols == desc.w.num_cols)));
  }
  FT_CHECK(desc.num_more >= 0 && desc.num_more <= kMaxMoreOutputs);
  FT_CHECK(desc.num_more == 0 || (desc.up.data == nullptr && desc.max_buckets == 0 && desc.groups == nullptr));
  constexpr unsigned kNowhere = 0xffffffffu;
  MatmulArguments a{{},
                    desc.up.data,
                    desc.w.row_bytes,
                    desc.w.num_cols,
                    rows,
                    desc.x.values,
                    desc.max_rows,
                    desc.device_num_rows,
                    desc.buckets,
                    desc.expert_stride * desc.w.row_bytes,
                    desc.slots_per_input,
                    desc.groups,
                    desc.device_num_groups,
                    desc.w.num_rows,
                    desc.up.scale,
                    desc.scales,
                    desc.up_scales,
                    desc.shared};
  for (MatmulPart& part : a.parts) part = {nullptr, nullptr, 0, 0, 1.0f, kNowhere};
  a.parts[0] = {desc.w.data, desc.y, desc.y_stride, desc.num_outputs, desc.w.scale, 0};
  for (int i = 0; i < desc.num_more; ++i) {
    const MatmulOutput& more = desc.more[i];
    FT_CHECK(more.w.type == desc.w.type && more.w.num_cols == desc.w.num_cols && more.w.num_rows > 0);
    a.parts[1 + i] = {more.w.data, more.y, more.w.num_rows, more.w.num_rows, more.w.scale, kNowhere};
  }
  return a;
}

void refuse_type(WeightType type, const char* kernel) {
  check_failed(__FILE__, __LINE__, "the type has this kernel",
               std::string(weight_type_info(type).name) + " in the " + kernel);
}

MatmulConfig choose_config(const MatmulDesc& desc) {
  const WeightTypeInfo& info = weight_type_info(desc.w.type);
  MatmulConfig config;
  const int64_t num_blocks = desc.w.num_cols / std::max(1, info.activation_block);
  const bool whole = desc.max_buckets == 0 && desc.groups == nullptr;
  if (desc.blas != nullptr && desc.blas->library != nullptr && whole && blas_takes(desc.w)) {
    config.kernel = MatmulConfig::Kernel::kBlas;
  } else if (info.is_float()) {
    config.kernel = MatmulConfig::Kernel::kFloat;
    const int rows = desc.max_rows;
    config.rows_at_once = rows <= 2 ? rows : rows <= 4 ? 4 : rows <= 8 ? 8 : kMaxDotRows;
    config.lane_sums = desc.up.data != nullptr || desc.all_outputs() >= kManyFloatOutputs ? 8 : 1;
  } else if (desc.max_rows > kMaxDotRows) {
    config.kernel = MatmulConfig::Kernel::kTiles;
    const int64_t blocks_of_outputs = desc.num_outputs / (desc.up.data == nullptr ? 64 : 32);
    const int64_t tiles = (desc.max_rows + tile_rows(kLargeTile) - 1) / tile_rows(kLargeTile);
    config.large_tiles = desc.max_buckets > 0
                             ? desc.max_slots > int64_t{kFewTileRows} * desc.max_buckets
                             : desc.max_rows > kFewTileRows && tiles * blocks_of_outputs >= kFewLargeTiles;
  } else {
    config.counts_rows = desc.max_buckets > 0 || (desc.max_rows > 1 && desc.device_num_rows != nullptr);
    const int most_exact = config.counts_rows ? 2 : kMostExactDotRows;
    config.rows_at_once = desc.max_rows <= most_exact ? desc.max_rows : kMaxDotRows;
    if (desc.max_buckets > 0)
      config.held_blocks = require_device().num_multiprocessors * dot_blocks_held(config.rows_at_once);
  }
  config.log2_slots = num_blocks >= 5 ? 3 : num_blocks >= 3 ? 2 : num_blocks >= 2 ? 1 : 0;
  return config;
}

namespace {

bool can_join(const MatmulDesc& desc, const MatmulConfig& config) {
  return (config.kernel == MatmulConfig::Kernel::kDot || config.kernel == MatmulConfig::Kernel::kFloat) &&
         desc.up.data == nullptr && desc.max_buckets == 0 && desc.groups == nullptr && desc.num_more == 0;
}

}  // namespace

void launch_together(std::span<const MatmulDesc> descs, const Stream& stream) {
  std::vector<bool> done(descs.size(), false);
  for (size_t i = 0; i < descs.size(); ++i) {
    if (done[i]) continue;
    MatmulDesc desc = descs[i];
    const bool joins = can_join(desc, choose_config(desc));
    for (size_t j = i + 1; j < descs.size() && joins; ++j) {
      const MatmulDesc& other = descs[j];
      FT_CHECK(other.max_rows == desc.max_rows && other.device_num_rows == desc.device_num_rows);
      if (done[j] || desc.num_more == kMaxMoreOutputs || other.w.type != desc.w.type ||
          other.w.num_cols != desc.w.num_cols || !can_join(other, choose_config(other)))
        continue;
      FT_CHECK(other.num_outputs == other.w.num_rows && other.y_stride == other.w.num_rows);
      desc.more[desc.num_more++] = {other.w, other.y};
      done[j] = true;
    }
    launch(desc, choose_config(desc), stream);
  }
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
