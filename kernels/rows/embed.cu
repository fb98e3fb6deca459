#include "kernels/rows/embed_cuda.h"

#include "kernels/base/error.h"
#include "kernels/formats/quant_blocks_cuda.cuh"

namespace foretoken::cuda {

namespace {

constexpr int kThreads = 128;

constexpr int kAtOnce = 4;  // values of a store

// (d * scale) * q - dmin * min of four values, as decode_row.
__device__ __forceinline__ float4 decode_four(uint32_t q, float scale, float min) {
  const auto value = [&](int i) { return scale * static_cast<float>(static_cast<int8_t>(q >> (8 * i))) - min; };
  return {value(0), value(1), value(2), value(3)};
}

// One lane's share of a block of 256: four runs of 16 values. Two lanes have neighbouring runs; by turns both store to
// the run of one of them, side by side, so that no sector of 32 bytes is left half written.
template <WeightType kType>
__device__ __forceinline__ void store_runs(const LaneBlock<kType>& block, float* to, int t, bool inside) {
  const bool is_odd = t % 2 != 0;
  FT_UNROLL
  for (int j = 0; j < 4; ++j) {
    const uint32_t(&own)[4] = block.q[j];
    const float scale = block.d * static_cast<float>(block.scale[j]);
    const float min = has_lane_mins<kType>() ? block.dmin * static_cast<float>(block.mins >> (8 * j) & 0xffu) : 0.0f;
    const float other_scale = __shfl_xor_sync(kAllLanes, scale, 1);
    const float other_min = has_lane_mins<kType>() ? __shfl_xor_sync(kAllLanes, min, 1) : 0.0f;
    FT_UNROLL
    for (int half = 0; half < 2; ++half) {
      // Of each eight values the even lane takes the first four, of its own run and of the odd lane's.
      const uint32_t front = own[2 * half], back = own[2 * half + 1];
      const uint32_t other = __shfl_xor_sync(kAllLanes, is_odd ? front : back, 1);
      const float4 first = decode_four(is_odd ? other : front, is_odd ? other_scale : scale, is_odd ? other_min : min);
      const float4 second = decode_four(is_odd ? back : other, is_odd ? scale : other_scale, is_odd ? min : other_min);
      if (!inside) continue;
      float* at = to + run_of_lane(t - t % 2, j) * 16 + 8 * half + kAtOnce * (t % 2);
      *reinterpret_cast<float4*>(at) = first;
      *reinterpret_cast<float4*>(at + 16) = second;
    }
  }
}

// blockIdx.x: row, of which a prompt chunk can have more than a grid's y. Quantised: four lanes a block; float: a lane
// four values.
template <WeightType kType>
__global__ void __launch_bounds__(kThreads) cuda_embed(EmbedDesc a) {
  start_next_kernel();
  wait_for_kernels_ahead();
  const int64_t row = blockIdx.x, item = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (a.device_num_rows != nullptr && row >= *a.device_num_rows) return;
  const std::byte* from = a.matrix.data + a.ids[row] * a.matrix.row_bytes;
  float* to = a.to + row * a.matrix.num_cols;
  if constexpr (kType == WeightType::kF32) {
    if (item * kAtOnce >= a.matrix.num_cols) return;
    reinterpret_cast<float4*>(to)[item] = load_constant(reinterpret_cast<const float4*>(from) + item);
  } else if constexpr (kType == WeightType::kF16 || kType == WeightType::kBF16) {
    if (item * kAtOnce >= a.matrix.num_cols) return;
    const uint2 halves = load_constant(reinterpret_cast<const uint2*>(from) + item);
    const auto value = [](uint32_t half) {
      return kType == WeightType::kF16 ? half_bits_to_float(static_cast<uint16_t>(half))
                                       : math::float_from_bits(half << 16);
    };
    reinterpret_cast<float4*>(to)[item] = {value(halves.x & 0xffffu), value(halves.x >> 16), value(halves.y & 0xffffu),
                                           value(halves.y >> 16)};
  } else {
    constexpr int kBlock = block_size_of<kType>();
    const int64_t num_blocks = a.matrix.num_cols / kBlock, b = item / 4;
    const int t = static_cast<int>(item % 4);
    const bool inside = b < num_blocks;  // lanes beyond the row read its last block and store nothing
    LaneBlock<kType> block;
    block.load(from, num_blocks, inside ? b : num_blocks - 1, t);
    if constexpr (kBlock == 256) {
      store_runs<kType>(block, to + b * 256, t, inside);
    } else if (inside) {
      const float min = has_lane_mins<kType>() ? block.dmin : 0.0f;
      FT_UNROLL
      for (int run = 0; run < 2; ++run) {
        const float scale = has_float_runs<kType>() && run == 1 ? block.second_d : block.d;
        *reinterpret_cast<float4*>(to + b * 32 + run * 16 + kAtOnce * t) = decode_four(block.q[run], scale, min);
      }
    }
  }
}

template <WeightType kType>
void launch_type(const EmbedDesc& desc, int64_t items, const Stream& stream) {
  launch(stream,
         {{static_cast<unsigned>(desc.max_rows), static_cast<unsigned>((items + kThreads - 1) / kThreads)}, {kThreads}},
         "cuda_embed", cuda_embed<kType>, desc);
}

}  // namespace

void launch(const EmbedDesc& desc, const Stream& stream) {
  FT_CHECK_EQ(desc.matrix.num_cols % kAtOnce, 0);
  const WeightTypeInfo& info = weight_type_info(desc.matrix.type);
  const int64_t items =
      info.is_float() ? desc.matrix.num_cols / kAtOnce : desc.matrix.num_cols / info.activation_block * 4;
  switch (desc.matrix.type) {
    case WeightType::kF32:
      return launch_type<WeightType::kF32>(desc, items, stream);
    case WeightType::kF16:
      return launch_type<WeightType::kF16>(desc, items, stream);
    case WeightType::kBF16:
      return launch_type<WeightType::kBF16>(desc, items, stream);
    case WeightType::kQ4_0:
      return launch_type<WeightType::kQ4_0>(desc, items, stream);
    case WeightType::kQ4_1:
      return launch_type<WeightType::kQ4_1>(desc, items, stream);
    case WeightType::kQ5_0:
      return launch_type<WeightType::kQ5_0>(desc, items, stream);
    case WeightType::kQ5_1:
      return launch_type<WeightType::kQ5_1>(desc, items, stream);
    case WeightType::kQ8_0:
      return launch_type<WeightType::kQ8_0>(desc, items, stream);
    case WeightType::kQ2_K:
      return launch_type<WeightType::kQ2_K>(desc, items, stream);
    case WeightType::kQ3_K:
      return launch_type<WeightType::kQ3_K>(desc, items, stream);
    case WeightType::kQ4_K:
      return launch_type<WeightType::kQ4_K>(desc, items, stream);
    case WeightType::kQ5_K:
      return launch_type<WeightType::kQ5_K>(desc, items, stream);
    case WeightType::kQ6_K:
      return launch_type<WeightType::kQ6_K>(desc, items, stream);
    case WeightType::kIQ4_NL:
      return launch_type<WeightType::kIQ4_NL>(desc, items, stream);
    case WeightType::kIQ4_XS:
      return launch_type<WeightType::kIQ4_XS>(desc, items, stream);
    case WeightType::kMXFP4:
      return launch_type<WeightType::kMXFP4>(desc, items, stream);
    case WeightType::kTQ1_0:
      return launch_type<WeightType::kTQ1_0>(desc, items, stream);
    case WeightType::kTQ2_0:
      return launch_type<WeightType::kTQ2_0>(desc, items, stream);
    case WeightType::kNVFP4:
      return launch_type<WeightType::kNVFP4>(desc, items, stream);
    case WeightType::kQ1_0:
      return launch_type<WeightType::kQ1_0>(desc, items, stream);
    case WeightType::kQ2_0:
      return launch_type<WeightType::kQ2_0>(desc, items, stream);
    case WeightType::kIQ3_S:
      return launch_type<WeightType::kIQ3_S>(desc, items, stream);
    case WeightType::kIQ3_XXS:
      return launch_type<WeightType::kIQ3_XXS>(desc, items, stream);
    case WeightType::kIQ2_S:
      return launch_type<WeightType::kIQ2_S>(desc, items, stream);
    case WeightType::kIQ2_XS:
      return launch_type<WeightType::kIQ2_XS>(desc, items, stream);
    case WeightType::kIQ2_XXS:
      return launch_type<WeightType::kIQ2_XXS>(desc, items, stream);
    case WeightType::kIQ1_S:
      return launch_type<WeightType::kIQ1_S>(desc, items, stream);
    case WeightType::kIQ1_M:
      return launch_type<WeightType::kIQ1_M>(desc, items, stream);
  }
}

}  // namespace foretoken::cuda
