#include "kernels/matmul/matmul_cuda.cuh"

// Float matrix x few rows. Rule 2 of the contract laid over a quad of lanes: the 32 strided sums of one output are
// eight in each of four lanes, so a lane reads eight neighbouring weights at once and a warp holds eight outputs. (One
// warp an output, a lane a sum, would read two bytes a lane of an F16 matrix.)

namespace foretoken::cuda {

namespace {

constexpr int kPerLane = kFloatLanes / 4;

template <WeightType kType>
__device__ __forceinline__ float load_weight(const std::byte* row, int64_t column) {
  if constexpr (kType == WeightType::kF32) {
    return reinterpret_cast<const float*>(row)[column];
  } else if constexpr (kType == WeightType::kF16) {
    return half_bits_to_float(reinterpret_cast<const uint16_t*>(row)[column]);
  } else {
    return math::float_from_bits(static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(row)[column]) << 16);
  }
}

__device__ __forceinline__ void load_floats(const float* from, float (&to)[kPerLane]) {
  const float4 a = *reinterpret_cast<const float4*>(from), b = *reinterpret_cast<const float4*>(from + 4);
  to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}

// Eight weights from a column that is a multiple of eight: every row begins at a multiple of 16 bytes.
template <WeightType kType>
__device__ __forceinline__ void load_weights(const std::byte* row, int64_t column, float (&to)[kPerLane]) {
  if constexpr (kType == WeightType::kF32) {
    load_floats(reinterpret_cast<const float*>(row) + column, to);
  } else {
    const uint4 words = *reinterpret_cast<const uint4*>(reinterpret_cast<const uint16_t*>(row) + column);
    for (int i = 0; i < kPerLane; ++i) {
      const auto half = static_cast<uint16_t>(word_of(words, i / 2) >> (16 * (i % 2)));
      to[i] = kType == WeightType::kF16 ? half_bits_to_float(half)
                                        : math::float_from_bits(static_cast<uint32_t>(half) << 16);
    }
  }
}

/// Folds the 32 sums of an output: 32 -> 16 -> 8 between the lanes, the rest within each.
__device__ __forceinline__ float fold_quad(float (&sums)[kPerLane]) {
  for (int half = 2; half > 0; half /= 2) {
    for (int i = 0; i < kPerLane; ++i) sums[i] = sums[i] + __shfl_xor_sync(kAllLanes, sums[i], half);
  }
  for (int half = kPerLane / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] = sums[i] + sums[i + half];
  }
  return sums[0];
}

// blockIdx.y: bucket, blockIdx.z: kRows rows of it.
template <WeightType kType, int kRows>
__global__ void __launch_bounds__(128) cuda_float_matmul(MatmulArguments a) {
  const RowSet rows = rows_of_bucket(a, static_cast<int>(blockIdx.y));
  const int first = static_cast<int>(blockIdx.z) * kRows;
  const int lane = static_cast<int>(threadIdx.x % kWarpSize), t = lane % 4, quad = lane / 4;
  // With `up`, neighbouring quads hold gate and up of one output.
  const bool pair = a.up != nullptr;
  const int64_t num_outputs = outputs_of(a);
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarpSize) + threadIdx.x / kWarpSize;
  if (first >= rows.count || warp * (pair ? 4 : 8) >= num_outputs) return;  // the whole warp
  const int64_t output = pair ? warp * 4 + quad / 2 : warp * 8 + quad;
  const std::byte* w = (pair && quad % 2 == 1 ? rows.up : rows.w) +
                       weight_row(a, output < num_outputs ? output : num_outputs - 1) * a.row_bytes;

  const int count = rows.count - first < kRows ? rows.count - first : kRows;
  const float* x[kRows];
  float sums[kRows][kPerLane] = {};
  FT_UNROLL
  for (int r = 0; r < kRows; ++r) x[r] = a.values + rows.input(first + (r < count ? r : 0)) * a.num_cols;
  const int64_t whole =
      a.num_cols % 8 == 0 ? a.num_cols / kFloatLanes * kFloatLanes : 0;  // where wide loads are aligned
  for (int64_t column = t * kPerLane; column < whole; column += kFloatLanes) {
    float weights[kPerLane];
    load_weights<kType>(w, column, weights);
    FT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (r >= count) break;
      float values[kPerLane];
      load_floats(x[r] + column, values);
      for (int i = 0; i < kPerLane; ++i) sums[r][i] = __fmaf_rn(weights[i], values[i], sums[r][i]);
    }
  }
  for (int64_t column = whole + t * kPerLane; column < a.num_cols; column += kFloatLanes) {
    FT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (r >= count) break;
      for (int i = 0; i < kPerLane; ++i) {
        if (column + i < a.num_cols)
          sums[r][i] = __fmaf_rn(load_weight<kType>(w, column + i), x[r][column + i], sums[r][i]);
      }
    }
  }
  FT_UNROLL
  for (int r = 0; r < kRows; ++r) {
    if (r >= count) break;
    float value = fold_quad(sums[r]) * (pair && quad % 2 == 1 ? rows.up_scale : rows.scale);
    if (pair) value = silu_times(value, __shfl_down_sync(kAllLanes, value, 4));
    const bool stores = t == 0 && output < num_outputs && (!pair || quad % 2 == 0);
    if (stores) a.y[rows.output(first + r) * a.y_stride + output] = value;
  }
}

template <WeightType kType>
void launch_type(const MatmulArguments& a, LaunchShape shape, int rows_at_once, const Stream& stream) {
  shape.grid.z = static_cast<unsigned>((a.num_rows + rows_at_once - 1) / rows_at_once);
  switch (rows_at_once) {
    case 1:
      return launch(stream, shape, "cuda_float_matmul", cuda_float_matmul<kType, 1>, a);
    case 2:
      return launch(stream, shape, "cuda_float_matmul", cuda_float_matmul<kType, 2>, a);
    case 4:
      return launch(stream, shape, "cuda_float_matmul", cuda_float_matmul<kType, 4>, a);
    default:
      return launch(stream, shape, "cuda_float_matmul", cuda_float_matmul<kType, kMaxDotRows>, a);
  }
}

}  // namespace

void launch_float_matmul(const MatmulDesc& desc, const MatmulConfig& config, const Stream& stream) {
  const MatmulArguments a = matmul_arguments(desc);
  const int64_t outputs_per_block = int64_t{config.warps_per_block} * (desc.up.data == nullptr ? 8 : 4);
  const LaunchShape shape{{static_cast<unsigned>((desc.num_outputs + outputs_per_block - 1) / outputs_per_block),
                           static_cast<unsigned>(desc.max_buckets == 0 ? 1 : desc.max_buckets)},
                          {static_cast<unsigned>(config.warps_per_block * kWarpSize)}};
  switch (desc.w.type) {
    case WeightType::kF32:
      return launch_type<WeightType::kF32>(a, shape, config.rows_at_once, stream);
    case WeightType::kF16:
      return launch_type<WeightType::kF16>(a, shape, config.rows_at_once, stream);
    case WeightType::kBF16:
      return launch_type<WeightType::kBF16>(a, shape, config.rows_at_once, stream);
    default:
      refuse_type(desc.w.type, "float kernel");
  }
}

}  // namespace foretoken::cuda
