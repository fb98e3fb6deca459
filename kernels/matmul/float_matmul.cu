#include "kernels/base/error.h"
#include "kernels/matmul/matmul_cuda.cuh"

// Float matrix x few rows. Rule 2 of the contract has 32 strided sums an output. A warp has them for one output, a lane
// a sum: so few outputs (a router's) still make many warps. Or, of matrices with many outputs, for eight: four lanes an
// output with eight neighbouring sums each, so that a load of half floats has 16 bytes. In both a lane asks for many
// steps' weights before it needs the first; rows beyond the last are the first again, computed and not stored, so that
// no branch stands between the loads.

namespace foretoken::cuda {

namespace {

/// Weight `column` of a row, as the type holds it.
template <WeightType kType>
__device__ __forceinline__ float load_weight(const std::byte* row, int64_t column) {
  if constexpr (kType == WeightType::kF32) {
    return load_constant(reinterpret_cast<const float*>(row) + column);
  } else {
    const uint16_t half = load_constant(reinterpret_cast<const uint16_t*>(row) + column);
    return kType == WeightType::kF16 ? half_bits_to_float(half)
                                     : math::float_from_bits(static_cast<uint32_t>(half) << 16);
  }
}

__device__ __forceinline__ void put_floats(const float4& a, const float4& b, float (&to)[8]) {
  to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}

/// What a lane asks for at once of a row of weights: one, or eight from a column that is a multiple of eight (every row
/// begins at a multiple of 16 bytes). Kept as loaded: half floats take half the registers.
template <WeightType kType, int kSums>
struct LaneWeights {
  float values[kSums];
  __device__ __forceinline__ void load(const std::byte* row, int64_t column) {
    if constexpr (kSums == 1) {
      values[0] = load_weight<kType>(row, column);
    } else {
      const auto* from = reinterpret_cast<const float4*>(reinterpret_cast<const float*>(row) + column);
      put_floats(load_constant(from), load_constant(from + 1), values);
    }
  }
  [[nodiscard]] __device__ __forceinline__ float value(int i) const { return values[i]; }
};
template <WeightType kType>
requires(kType != WeightType::kF32) struct LaneWeights<kType, 8> {
  uint4 words;
  __device__ __forceinline__ void load(const std::byte* row, int64_t column) {
    words = load_constant(reinterpret_cast<const uint4*>(reinterpret_cast<const uint16_t*>(row) + column));
  }
  [[nodiscard]] __device__ __forceinline__ float value(int i) const {
    const auto half = static_cast<uint16_t>(word_of(words, i / 2) >> (16 * (i % 2)));
    return kType == WeightType::kF16 ? half_bits_to_float(half)
                                     : math::float_from_bits(static_cast<uint32_t>(half) << 16);
  }
};

/// The sums of one output and kRows rows that a lane has.
template <WeightType kType, int kRows, int kSums>
struct LaneSums {
  float sums[kRows][kSums] = {};

  /// kSteps times 32 columns, of which the lane takes kSums from `column` on.
  template <int kSteps>
  __device__ __forceinline__ void add(const std::byte* w, const float* const (&x)[kRows], int64_t column) {
    LaneWeights<kType, kSums> weights[kSteps];
    FT_UNROLL
    for (int s = 0; s < kSteps; ++s) weights[s].load(w, column + s * kFloatLanes);
    FT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      float values[kSteps][kSums];
      FT_UNROLL
      for (int s = 0; s < kSteps; ++s) {
        if constexpr (kSums == 1) {
          values[s][0] = load_global(x[r] + column + s * kFloatLanes);
        } else {
          const auto* from = reinterpret_cast<const float4*>(x[r] + column + s * kFloatLanes);
          put_floats(load_global(from), load_global(from + 1), values[s]);
        }
      }
      FT_UNROLL
      for (int s = 0; s < kSteps; ++s) {
        FT_UNROLL
        for (int i = 0; i < kSums; ++i) sums[r][i] = __fmaf_rn(weights[s].value(i), values[s][i], sums[r][i]);
      }
    }
  }
  /// The columns from `column` on that are there.
  __device__ __forceinline__ void add_tail(const std::byte* w, const float* const (&x)[kRows], int64_t column,
                                           int64_t num_cols) {
    FT_UNROLL
    for (int i = 0; i < kSums; ++i) {
      const bool inside = column + i < num_cols;
      const int64_t at = inside ? column + i : 0;
      const float weight = load_weight<kType>(w, at);
      FT_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const float sum = __fmaf_rn(weight, load_global(x[r] + at), sums[r][i]);
        sums[r][i] = inside ? sum : sums[r][i];
      }
    }
  }
  /// Folds the 32 sums of an output: as far as they lie in different lanes by exchange, the rest within each.
  __device__ __forceinline__ float folded(int r) {
    FT_UNROLL
    for (int half = kFloatLanes / kSums / 2; half > 0; half /= 2) {
      FT_UNROLL
      for (int i = 0; i < kSums; ++i) sums[r][i] = sums[r][i] + __shfl_xor_sync(kAllLanes, sums[r][i], half);
    }
    FT_UNROLL
    for (int half = kSums / 2; half > 0; half /= 2) {
      FT_UNROLL
      for (int i = 0; i < half; ++i) sums[r][i] = sums[r][i] + sums[r][i + half];
    }
    return sums[r][0];
  }
};

/// Steps of 32 columns that a lane asks for at once.
FORETOKEN_HD constexpr int steps_ahead(int num_rows, int lane_sums) {
  if (lane_sums > 1) return num_rows == 1 ? 4 : num_rows <= 8 ? 2 : 1;
  return num_rows == 1 ? 32 : num_rows <= 4 ? 16 : 8;
}

/// Blocks that a multiprocessor is to hold: without a number the compiler saves registers where loads need them.
FORETOKEN_HD constexpr int blocks_at_once(int num_rows, int lane_sums) {
  if (num_rows > 4) return 2;
  return num_rows > 1 && lane_sums > 1 ? 3 : 4;
}

// blockIdx.x: part and its outputs, blockIdx.y: bucket, blockIdx.z: kRows rows of it.
template <WeightType kType, int kRows, int kSums>
__global__ void __launch_bounds__(128, blocks_at_once(kRows, kSums))
    cuda_float_matmul(const __grid_constant__ MatmulArguments a) {
  constexpr int kLanes = kFloatLanes / kSums, kOutputs = kWarpSize / kLanes;  // of an output; of a warp
  constexpr int kAhead = steps_ahead(kRows, kSums), kFew = kAhead > 8 ? 8 : 1;
  const MatmulPart& part = a.parts[part_of_block(a)];
  const int first = static_cast<int>(blockIdx.z) * kRows;
  const int lane = static_cast<int>(threadIdx.x % kWarpSize), t = lane % kLanes, group = lane / kLanes;
  // With `up`, neighbouring groups of lanes hold gate and up of one output.
  const bool pair = kSums > 1 && a.up != nullptr;
  const int64_t warp =
      static_cast<int64_t>(blockIdx.x - part.first_block) * (blockDim.x / kWarpSize) + threadIdx.x / kWarpSize;
  const int outputs_of_warp = pair ? kOutputs / 2 : kOutputs;
  start_next_kernel();
  prefetch_weights(a, part, warp * outputs_of_warp, outputs_of_warp);
  wait_for_kernels_ahead();
  const RowSet rows = rows_of_bucket(a, part, static_cast<int>(blockIdx.y));
  const int64_t num_outputs = outputs_of(a, part);
  if (first >= rows.count || warp * outputs_of_warp >= num_outputs) return;  // the whole warp
  const int64_t output = pair ? warp * (kOutputs / 2) + group / 2 : warp * kOutputs + group;
  const std::byte* w = (pair && group % 2 == 1 ? rows.up : rows.w) +
                       weight_row(a, output < num_outputs ? output : num_outputs - 1) * a.row_bytes;

  const int count = rows.count - first < kRows ? rows.count - first : kRows;
  const float* x[kRows];
  FT_UNROLL
  for (int r = 0; r < kRows; ++r) x[r] = a.values + rows.input(first + (r < count ? r : 0)) * a.num_cols;

  LaneSums<kType, kRows, kSums> sums;
  // Rows of x begin where their length says: loads of four values need it to be a multiple of eight.
  const int64_t whole = kSums == 1 || a.num_cols % 8 == 0 ? a.num_cols / kFloatLanes * kFloatLanes : 0;
  int64_t column = 0;
  for (; column + kAhead * kFloatLanes <= whole; column += kAhead * kFloatLanes)
    sums.template add<kAhead>(w, x, column + t * kSums);
  for (; column + kFew * kFloatLanes <= whole; column += kFew * kFloatLanes)
    sums.template add<kFew>(w, x, column + t * kSums);
  for (; column < whole; column += kFloatLanes) sums.template add<1>(w, x, column + t * kSums);
  for (; column < a.num_cols; column += kFloatLanes) sums.add_tail(w, x, column + t * kSums, a.num_cols);

  FT_UNROLL
  for (int r = 0; r < kRows; ++r) {
    if (r >= count) break;
    float value = sums.folded(r) * (pair && group % 2 == 1 ? rows.up_scale : rows.scale);
    if constexpr (kSums > 1) {
      if (pair) value = silu_times(value, __shfl_down_sync(kAllLanes, value, kLanes));
    }
    const bool stores = t == 0 && output < num_outputs && (!pair || group % 2 == 0);
    if (stores) part.y[rows.output(first + r) * part.y_stride + output] = value;
  }
}

template <WeightType kType, int kSums>
void launch_sums(const MatmulArguments& a, LaunchShape shape, int rows_at_once, const Stream& stream) {
  shape.grid.z = static_cast<unsigned>((a.num_rows + rows_at_once - 1) / rows_at_once);
  switch (rows_at_once) {
    case 1:
      return launch(stream, shape, "cuda_float_matmul", cuda_float_matmul<kType, 1, kSums>, a);
    case 2:
      return launch(stream, shape, "cuda_float_matmul", cuda_float_matmul<kType, 2, kSums>, a);
    case 4:
      return launch(stream, shape, "cuda_float_matmul", cuda_float_matmul<kType, 4, kSums>, a);
    case 8:
      return launch(stream, shape, "cuda_float_matmul", cuda_float_matmul<kType, 8, kSums>, a);
    default:
      return launch(stream, shape, "cuda_float_matmul", cuda_float_matmul<kType, kMaxDotRows, kSums>, a);
  }
}

template <WeightType kType>
void launch_type(const MatmulArguments& a, const LaunchShape& shape, const MatmulConfig& config, const Stream& stream) {
  if (config.lane_sums == 1) return launch_sums<kType, 1>(a, shape, config.rows_at_once, stream);
  launch_sums<kType, 8>(a, shape, config.rows_at_once, stream);
}

}  // namespace

void launch_float_matmul(const MatmulDesc& desc, const MatmulConfig& config, const Stream& stream) {
  FT_CHECK(config.lane_sums == 8 || (config.lane_sums == 1 && desc.up.data == nullptr));
  MatmulArguments a = matmul_arguments(desc);
  const int64_t outputs_per_block =
      int64_t{config.warps_per_block} * config.lane_sums / (desc.up.data == nullptr ? 1 : 2);
  const LaunchShape shape{{share_out_blocks(a, outputs_per_block), bucket_blocks(desc)},
                          {static_cast<unsigned>(config.warps_per_block * kWarpSize)}};
  switch (desc.w.type) {
    case WeightType::kF32:
      return launch_type<WeightType::kF32>(a, shape, config, stream);
    case WeightType::kF16:
      return launch_type<WeightType::kF16>(a, shape, config, stream);
    case WeightType::kBF16:
      return launch_type<WeightType::kBF16>(a, shape, config, stream);
    default:
      refuse_type(desc.w.type, "float kernel");
  }
}

}  // namespace foretoken::cuda
