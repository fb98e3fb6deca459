#include "kernels/rows/embed_cuda.h"

#include "kernels/base/error.h"
#include "kernels/formats/quant_blocks_cuda.cuh"

namespace foretoken::cuda {

namespace {

constexpr int kThreads = 128;

// blockIdx.x: row, of which a prompt chunk can have more than a grid's y. Quantised: four lanes a block; float: a lane
// a value.
template <WeightType kType>
__global__ void __launch_bounds__(kThreads) cuda_embed(EmbedDesc a) {
  const int64_t row = blockIdx.x, item = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (a.device_num_rows != nullptr && row >= *a.device_num_rows) return;
  const std::byte* from = a.matrix.data + a.ids[row] * a.matrix.row_bytes;
  float* to = a.to + row * a.matrix.num_cols;
  if constexpr (kType == WeightType::kF32 || kType == WeightType::kF16 || kType == WeightType::kBF16) {
    if (item >= a.matrix.num_cols) return;
    if constexpr (kType == WeightType::kF32) {
      to[item] = reinterpret_cast<const float*>(from)[item];
    } else {
      const uint16_t half = reinterpret_cast<const uint16_t*>(from)[item];
      to[item] = kType == WeightType::kF16 ? half_bits_to_float(half)
                                           : math::float_from_bits(static_cast<uint32_t>(half) << 16);
    }
  } else {
    constexpr int kBlock = block_size_of<kType>();
    const int64_t num_blocks = a.matrix.num_cols / kBlock, b = item / 4;
    const int t = static_cast<int>(item % 4);
    if (b >= num_blocks) return;
    LaneBlock<kType> block;
    block.load(from, num_blocks, b, t);
    // (d * scale) * q - dmin * min, as decode_row.
    if constexpr (kBlock == 256) {
      for (int j = 0; j < 4; ++j) {
        const float scale = block.d * static_cast<float>(block.scale[j]);
        const float min =
            has_lane_mins<kType>() ? block.dmin * static_cast<float>(block.mins >> (8 * j) & 0xffu) : 0.0f;
        for (int i = 0; i < 16; ++i) {
          const auto q = static_cast<int8_t>(block.q[j][i / 4] >> (8 * (i % 4)));
          to[b * 256 + run_of_lane(t, j) * 16 + i] = scale * static_cast<float>(q) - min;
        }
      }
    } else {
      const float min = has_lane_mins<kType>() ? block.dmin : 0.0f;
      for (int i = 0; i < 8; ++i) {
        const auto q = static_cast<int8_t>(block.q[i / 4] >> (8 * (i % 4)));
        const float scale = has_float_runs<kType>() && i >= 4 ? block.second_d : block.d;
        to[b * 32 + i / 4 * 16 + 4 * t + i % 4] = scale * static_cast<float>(q) - min;
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
  const WeightTypeInfo& info = weight_type_info(desc.matrix.type);
  const int64_t items = info.is_float() ? desc.matrix.num_cols : desc.matrix.num_cols / info.activation_block * 4;
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
