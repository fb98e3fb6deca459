#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/matmul/matmul_cuda.cuh"

// Quantised matrix x few rows by dp4a. Rule 1 of the contract laid over a warp: the four lanes of a quad share a block,
// the eight quads hold the eight partial sums (block b belongs to quad b mod 8) of one output. Where a row has fewer
// than eight blocks, the quads are shared out to several outputs. A lane unpacks its quarter of a block once and meets
// it with every row of the window; then the quad adds up, each of its lanes receiving the sums of other rows, which it
// alone turns into floats. Two outputs (two rows of W, or gate and up) go side by side, so that a quarter of an
// activation row that was fetched serves both.

namespace foretoken::cuda {

namespace {

/// Values 0 to kCount - 1 that lane t of a quad has the sum of: several lanes of the same one if there are fewer than four.
template <int kCount>
__device__ __forceinline__ int dealt_to(int t) {
  return kCount == 3 ? (t < 3 ? t : 2) : t % kCount;
}

/// Adds `values` over the quad; lane t < kCount receives the sum of values[t].
template <int kCount>
__device__ __forceinline__ int deal_sums(const int (&values)[kCount], int t) {
  if constexpr (kCount == 1) {
    int sum = values[0] + __shfl_xor_sync(kAllLanes, values[0], 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    return sum;
  } else if constexpr (kCount == 2) {
    const bool odd = t % 2 != 0;
    int sum = (odd ? values[1] : values[0]) + __shfl_xor_sync(kAllLanes, odd ? values[0] : values[1], 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    return sum;
  } else {
    static_assert(kCount == 3 || kCount == 4);
    const bool high = t >= 2, odd = t % 2 != 0;
    const int last = kCount == 4 ? values[kCount - 1] : 0;
    const int front = (high ? values[2] : values[0]) + __shfl_xor_sync(kAllLanes, high ? values[0] : values[2], 2);
    const int back = (high ? last : values[1]) + __shfl_xor_sync(kAllLanes, high ? values[1] : last, 2);
    return (odd ? back : front) + __shfl_xor_sync(kAllLanes, odd ? front : back, 1);
  }
}

/// kPartialSums partials, one a quad, down to one in every quad of an output. With 2^log2_slots < 8 quads the other
/// partials are +0.
__device__ __forceinline__ float fold_quads(float partial, int log2_slots) {
  if ((1 << log2_slots) < kPartialSums)
    partial = partial + 0.0f;  // turns -0 into +0, as adding the empty partials would
  for (int half = (1 << log2_slots) / 2; half > 0; half /= 2)
    partial = partial + __shfl_xor_sync(kAllLanes, partial, 4 * half);
  return partial;
}

/// Sums of two outputs for rows [first, first + kRows) of `rows`, which a quad shares out four at a time: acc[o][g] is row
/// first + 4g + dealt_to(t) of output o.
template <WeightType kType, int kRows>
struct DotTile {
  static constexpr int kBlock = block_size_of<kType>();
  static constexpr int kDeals = (kRows + 3) / 4;
  FORETOKEN_HD static constexpr int deal_size(int g) { return kRows - 4 * g < 4 ? kRows - 4 * g : 4; }
  // Steps whose weights are asked for together: a block of 32 is two words a lane, too few to keep memory busy.
  static constexpr int kAhead = kBlock == 256 ? 1 : 2;
  float acc[2][kDeals] = {};
  // Rows of the activations, found once: behind them lies a division. Rows that are not there are the first one again,
  // computed and not kept, so that no branch stands between the loads of a deal. Of many rows each lane knows one and
  // tells it the others: registers are short there.
  static constexpr bool kTold = kRows > 4;
  int32_t inputs[kTold ? 1 : kRows];

  __device__ __forceinline__ DotTile(const RowSet& rows, int first) {
    FT_UNROLL
    for (int i = 0; i < (kTold ? 1 : kRows); ++i) {
      const int row = first + (kTold ? static_cast<int>(threadIdx.x % kWarpSize) : i);
      inputs[i] = static_cast<int32_t>(rows.input(row < rows.count ? row : first));
    }
  }
  /// Of row first + i. Called by all lanes together; i may differ between them.
  __device__ __forceinline__ int32_t input(int i) const {
    if constexpr (kTold) {
      return __shfl_sync(kAllLanes, inputs[0], i);
    } else {
      int32_t found = inputs[0];
      FT_UNROLL
      for (int r = 1; r < kRows; ++r) found = i == r ? inputs[r] : found;
      return found;
    }
  }

  /// Block b of both outputs meets all rows, of which `left` are there. inside: false for a lane whose slot has no block in
  /// this step; it computes on another and keeps nothing.
  template <int g = 0>
  __device__ __forceinline__ void add_block(const MatmulArguments& a, const LaneBlock<kType> (&block)[2], int left,
                                            int64_t b, bool inside, int t) {
    constexpr int kDeal = deal_size(g);
    int isum[2][kDeal], msum[2][kDeal];  // msum: with float runs the second run's sum, and isum the first's
    FT_UNROLL
    for (int i = 0; i < kDeal; ++i) {
      const LaneRow<kBlock> row = load_lane_row<kBlock>(a.rows, input(4 * g + i), b, t);
      FT_UNROLL
      for (int o = 0; o < 2; ++o) {
        if constexpr (has_float_runs<kType>()) {
          isum[o][i] = block[o].run_isum(row, 0);
          msum[o][i] = block[o].run_isum(row, 1);
        } else {
          isum[o][i] = block[o].isum(row);
        }
        if constexpr (has_lane_mins<kType>() && kBlock == 256) msum[o][i] = block[o].msum(row);
      }
    }
    const int64_t own = input(4 * g + dealt_to<kDeal>(t));  // the row that this lane turns into floats
    const float d = load_global(a.rows.d + own * a.rows.num_blocks + b);
    FT_UNROLL
    for (int o = 0; o < 2; ++o) {
      const int sum = deal_sums<kDeal>(isum[o], t);
      if constexpr (has_float_runs<kType>()) {
        const float first = static_cast<float>(sum) * block[o].d;
        const int second = deal_sums<kDeal>(msum[o], t);
        const float both = __fmaf_rn(static_cast<float>(second), block[o].second_d, first);
        if (inside) acc[o][g] = __fmaf_rn(both, d, acc[o][g]);
      } else {
        if (inside) acc[o][g] = __fmaf_rn(static_cast<float>(sum), block[o].d * d, acc[o][g]);
      }
      if constexpr (has_lane_mins<kType>()) {
        int mins;
        if constexpr (kBlock == 256) {
          mins = deal_sums<kDeal>(msum[o], t);
        } else {
          mins = load_global(a.rows.sums + own * sums_stride(32, a.rows.num_blocks) + b);
        }
        if (inside) acc[o][g] = __fmaf_rn(-static_cast<float>(mins), block[o].dmin * d, acc[o][g]);
      }
    }
    if constexpr (g + 1 < kDeals) {
      if (left > 4 * (g + 1)) add_block<g + 1>(a, block, left, b, inside, t);  // the same in all lanes
    }
  }
};

/// The first pair of outputs that this warp has.
__device__ __forceinline__ int64_t first_pair_of_warp(const MatmulPart& part, int slots) {
  const int64_t warp =
      static_cast<int64_t>(blockIdx.x - part.first_block) * (blockDim.x / kWarpSize) + threadIdx.x / kWarpSize;
  return warp * (kPartialSums / slots);
}

/// What every kernel here begins with.
__device__ __forceinline__ void begin_kernel(const MatmulArguments& a, int log2_slots) {
  start_next_kernel();
  const int slots = 1 << log2_slots, per_pair = a.up == nullptr ? 2 : 1;
  const MatmulPart& part = a.parts[part_of_block(a)];
  prefetch_weights(a, part, first_pair_of_warp(part, slots) * per_pair, kPartialSums / slots * per_pair);
  wait_for_kernels_ahead();
}

/// Where a lane works: two outputs and the rows of one bucket. What the launch's parameters hold is not copied.
struct DotPlace {
  int part;
  RowSet rows;
  const std::byte* w[2];
  int64_t num_outputs;
  int64_t pair;  // outputs 2 pair and 2 pair + 1, or gate and up of output `pair`
};

/// False for a warp that has nothing to do.
__device__ __forceinline__ bool find_place(const MatmulArguments& a, int log2_slots, DotPlace& place) {
  place.part = part_of_block(a);
  const MatmulPart& part = a.parts[place.part];
  place.rows = rows_of_bucket(a, part, static_cast<int>(blockIdx.y));
  const int quad = static_cast<int>(threadIdx.x % kWarpSize) / 4;
  const int slots = 1 << log2_slots;
  place.num_outputs = outputs_of(a, part);
  const int64_t per_pair = a.up == nullptr ? 2 : 1, first_pair = first_pair_of_warp(part, slots);
  if (place.rows.count == 0 || first_pair * per_pair >= place.num_outputs) return false;  // the whole warp
  place.pair = first_pair + quad / slots;
  FT_UNROLL
  for (int o = 0; o < 2; ++o) {
    const int64_t output = per_pair == 2 ? 2 * place.pair + o : place.pair;
    const int64_t clamped = output < place.num_outputs ? output : place.num_outputs - 1;  // computed, not stored
    place.w[o] = (per_pair == 2 || o == 0 ? place.rows.w : place.rows.up) + weight_row(a, clamped) * a.row_bytes;
  }
  return true;
}

/// Pairs of outputs that all blocks of threads of a bucket take at once.
__device__ __forceinline__ int64_t pairs_of_grid(int log2_slots) {
  return int64_t{gridDim.x} * (blockDim.x / kWarpSize) * (kPartialSums >> log2_slots);
}

/// On to the warp's next outputs of the same bucket, whose rows lie one after the other; false: there are none.
__device__ __forceinline__ bool next_outputs(const MatmulArguments& a, int log2_slots, DotPlace& place) {
  const int quad = static_cast<int>(threadIdx.x % kWarpSize) / 4;
  const int64_t per_pair = a.up == nullptr ? 2 : 1, step = pairs_of_grid(log2_slots);
  const int64_t first_pair = place.pair - (quad >> log2_slots) + step;
  if (first_pair * per_pair >= place.num_outputs) return false;  // the whole warp
  FT_UNROLL
  for (int o = 0; o < 2; ++o) {
    const int64_t output = per_pair == 2 ? 2 * place.pair + o : place.pair, next = output + per_pair * step;
    place.w[o] += ((next < place.num_outputs ? next : place.num_outputs - 1) - output) * a.row_bytes;
  }
  place.pair += step;
  return true;
}

/// Asks for the rows that next_outputs() will come to.
__device__ __forceinline__ void prefetch_next(const MatmulArguments& a, int log2_slots, const DotPlace& place) {
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  const int64_t per_pair = a.up == nullptr ? 2 : 1, step = pairs_of_grid(log2_slots);
  const int64_t next = per_pair * (place.pair + step), left = place.num_outputs - next;
  if (lane > 1 || left <= 0 || (lane == 1 && per_pair == 2)) return;
  // Lanes 0 and 1 have the warp's first pair, behind which the others lie.
  const int64_t count = per_pair * (kPartialSums >> log2_slots);
  prefetch_rows((lane == 0 ? place.w[0] : place.w[1]) + per_pair * step * a.row_bytes,
                (count < left ? count : left) * a.row_bytes);
}

/// Rows [first, first + kRows) of the place.
template <WeightType kType, int kRows>
__device__ __forceinline__ void dot_rows(const MatmulArguments& a, const DotPlace& place, int log2_slots, int first) {
  using Tile = DotTile<kType, kRows>;
  const RowSet& rows = place.rows;
  const int lane = static_cast<int>(threadIdx.x % kWarpSize), t = lane % 4;
  const int slots = 1 << log2_slots, slot = lane / 4 % slots;
  const int64_t num_blocks = a.rows.num_blocks;
  Tile tile(rows, first);
  for (int64_t base = 0; base < num_blocks; base += Tile::kAhead * slots) {
    LaneBlock<kType> block[Tile::kAhead][2];
    FT_UNROLL
    for (int s = 0; s < Tile::kAhead; ++s) {
      const int64_t b = base + s * slots + slot;
      FT_UNROLL
      for (int o = 0; o < 2; ++o) block[s][o].load(place.w[o], num_blocks, b < num_blocks ? b : num_blocks - 1, t);
    }
    FT_UNROLL
    for (int s = 0; s < Tile::kAhead; ++s) {
      const int64_t b = base + s * slots + slot;
      if (s > 0 && base + s * slots >= num_blocks) break;  // the same in all lanes
      // Of up to six rows all loads may be under way at once; with more, registers are short without the branch.
      tile.add_block(a, block[s], kRows <= 6 ? kRows : rows.count - first, b < num_blocks ? b : num_blocks - 1,
                     b < num_blocks, t);
    }
  }
  FT_UNROLL
  for (int g = 0; g < Tile::kDeals; ++g) {
    const float scale1 = a.up == nullptr ? rows.scale : rows.up_scale;
    const float sum0 = fold_quads(tile.acc[0][g], log2_slots) * rows.scale,
                sum1 = fold_quads(tile.acc[1][g], log2_slots) * scale1;
    const int mine = first + 4 * g + t;
    if (slot != 0 || t >= Tile::deal_size(g) || mine >= rows.count) continue;
    const MatmulPart& part = a.parts[place.part];
    float* y = part.y + rows.output(mine) * part.y_stride;
    if (a.up != nullptr) {
      if (place.pair < place.num_outputs) y[place.pair] = silu_times(sum0, sum1);
    } else {
      if (2 * place.pair < place.num_outputs) y[2 * place.pair] = sum0;
      if (2 * place.pair + 1 < place.num_outputs) y[2 * place.pair + 1] = sum1;
    }
  }
}

/// All rows, kRows at a time: of a window, as many as there are.
template <WeightType kType, int kRows>
__global__ void __launch_bounds__(128, dot_blocks_held(kRows))
    cuda_quant_dot(const __grid_constant__ MatmulArguments a, int log2_slots) {
  begin_kernel(a, log2_slots);
  DotPlace place;
  if (!find_place(a, log2_slots, place)) return;
  for (int first = 0; first < place.rows.count; first += kRows) dot_rows<kType, kRows>(a, place, log2_slots, first);
}

/// For launches whose numbers of rows only the device knows: of buckets, most of which have one or two of a window's
/// rows, and of windows that have lost some. The number is the same for all of a block of threads, which takes the loop
/// that is made for it. Only the loops for the most rows are repeated, in launches of more than kMost: registers that
/// lived across all of them would be too many.
template <WeightType kType, int kMost>
__device__ __forceinline__ void dot_counted_rows(const MatmulArguments& a, const DotPlace& place, int log2_slots) {
  const int count = place.rows.count;
  if (kMost == 1 || count == 1) return dot_rows<kType, 1>(a, place, log2_slots, 0);
  if constexpr (kMost > 2) {
    if (count == 3) return dot_rows<kType, 3>(a, place, log2_slots, 0);
    if (count == 4) return dot_rows<kType, 4>(a, place, log2_slots, 0);
    if (count > 4) {
      for (int first = 0; first < count; first += kMost) dot_rows<kType, kMost>(a, place, log2_slots, first);
      return;
    }
  }
  if constexpr (kMost > 1) {
    for (int first = 0; first < count; first += 2) dot_rows<kType, 2>(a, place, log2_slots, first);
  }
}

/// A bucket's outputs have as many blocks of threads as a device holds, each of which finds the bucket once and goes through
/// the outputs that fall to it.
template <WeightType kType, int kMost>
__global__ void __launch_bounds__(128, dot_blocks_held(kMost))
    cuda_quant_dot_buckets(const __grid_constant__ MatmulArguments a, int log2_slots) {
  begin_kernel(a, log2_slots);
  DotPlace place;
  if (!find_place(a, log2_slots, place)) return;
  do {
    prefetch_next(a, log2_slots, place);
    dot_counted_rows<kType, kMost>(a, place, log2_slots);
  } while (next_outputs(a, log2_slots, place));
}

template <WeightType kType>
void launch_type(const MatmulArguments& a, const LaunchShape& shape, const MatmulConfig& config, const Stream& stream) {
  if (config.counts_rows) {
    if (config.rows_at_once == 1)
      return launch(stream, shape, "cuda_quant_dot_buckets", cuda_quant_dot_buckets<kType, 1>, a, config.log2_slots);
    if (config.rows_at_once == 2)
      return launch(stream, shape, "cuda_quant_dot_buckets", cuda_quant_dot_buckets<kType, 2>, a, config.log2_slots);
    return launch(stream, shape, "cuda_quant_dot_buckets", cuda_quant_dot_buckets<kType, kMaxDotRows>, a,
                  config.log2_slots);
  }
  using Kernel = void (*)(MatmulArguments, int);
  static constexpr Kernel kKernels[] = {
      cuda_quant_dot<kType, 1>, cuda_quant_dot<kType, 2>,          cuda_quant_dot<kType, 3>, cuda_quant_dot<kType, 4>,
      cuda_quant_dot<kType, 5>, cuda_quant_dot<kType, 6>,          cuda_quant_dot<kType, 7>, cuda_quant_dot<kType, 8>,
      cuda_quant_dot<kType, 9>, cuda_quant_dot<kType, kMaxDotRows>};
  const int exact = config.rows_at_once <= kMostExactDotRows ? config.rows_at_once : kMostExactDotRows + 1;
  launch(stream, shape, "cuda_quant_dot", kKernels[exact - 1], a, config.log2_slots);
}

/// Of `needed` blocks of a bucket: at most `held`, as evenly as they go through its outputs.
unsigned blocks_of_bucket(unsigned needed, unsigned held) {
  const unsigned steps = (needed + held - 1) / held;
  return (needed + steps - 1) / steps;
}

}  // namespace

void launch_quant_dot(const MatmulDesc& desc, const MatmulConfig& config, const Stream& stream) {
  FT_CHECK(!config.counts_rows || config.rows_at_once > 1 || desc.max_rows == 1);
  MatmulArguments a = matmul_arguments(desc);
  const int64_t pairs_per_block = int64_t{config.warps_per_block} * (kPartialSums >> config.log2_slots);
  unsigned blocks = share_out_blocks(a, desc.up.data == nullptr ? 2 * pairs_per_block : pairs_per_block);
  const unsigned buckets = bucket_blocks(desc);
  if (config.counts_rows && desc.max_buckets > 0 && config.held_blocks > 0)
    blocks = blocks_of_bucket(blocks, std::max(1u, static_cast<unsigned>(config.held_blocks) / buckets));
  const LaunchShape shape{{blocks, buckets}, {static_cast<unsigned>(config.warps_per_block * kWarpSize)}};
  switch (desc.w.type) {
    case WeightType::kQ4_0:
      return launch_type<WeightType::kQ4_0>(a, shape, config, stream);
    case WeightType::kQ4_1:
      return launch_type<WeightType::kQ4_1>(a, shape, config, stream);
    case WeightType::kQ5_0:
      return launch_type<WeightType::kQ5_0>(a, shape, config, stream);
    case WeightType::kQ5_1:
      return launch_type<WeightType::kQ5_1>(a, shape, config, stream);
    case WeightType::kQ8_0:
      return launch_type<WeightType::kQ8_0>(a, shape, config, stream);
    case WeightType::kQ2_K:
      return launch_type<WeightType::kQ2_K>(a, shape, config, stream);
    case WeightType::kQ3_K:
      return launch_type<WeightType::kQ3_K>(a, shape, config, stream);
    case WeightType::kQ4_K:
      return launch_type<WeightType::kQ4_K>(a, shape, config, stream);
    case WeightType::kQ5_K:
      return launch_type<WeightType::kQ5_K>(a, shape, config, stream);
    case WeightType::kQ6_K:
      return launch_type<WeightType::kQ6_K>(a, shape, config, stream);
    case WeightType::kIQ4_NL:
      return launch_type<WeightType::kIQ4_NL>(a, shape, config, stream);
    case WeightType::kIQ4_XS:
      return launch_type<WeightType::kIQ4_XS>(a, shape, config, stream);
    case WeightType::kMXFP4:
      return launch_type<WeightType::kMXFP4>(a, shape, config, stream);
    case WeightType::kTQ1_0:
      return launch_type<WeightType::kTQ1_0>(a, shape, config, stream);
    case WeightType::kTQ2_0:
      return launch_type<WeightType::kTQ2_0>(a, shape, config, stream);
    case WeightType::kNVFP4:
      return launch_type<WeightType::kNVFP4>(a, shape, config, stream);
    case WeightType::kQ1_0:
      return launch_type<WeightType::kQ1_0>(a, shape, config, stream);
    case WeightType::kQ2_0:
      return launch_type<WeightType::kQ2_0>(a, shape, config, stream);
    case WeightType::kIQ3_S:
      return launch_type<WeightType::kIQ3_S>(a, shape, config, stream);
    case WeightType::kIQ3_XXS:
      return launch_type<WeightType::kIQ3_XXS>(a, shape, config, stream);
    case WeightType::kIQ2_S:
      return launch_type<WeightType::kIQ2_S>(a, shape, config, stream);
    case WeightType::kIQ2_XS:
      return launch_type<WeightType::kIQ2_XS>(a, shape, config, stream);
    case WeightType::kIQ2_XXS:
      return launch_type<WeightType::kIQ2_XXS>(a, shape, config, stream);
    case WeightType::kIQ1_S:
      return launch_type<WeightType::kIQ1_S>(a, shape, config, stream);
    case WeightType::kIQ1_M:
      return launch_type<WeightType::kIQ1_M>(a, shape, config, stream);
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16:
      break;
  }
  refuse_type(desc.w.type, "dp4a kernel");
}

}  // namespace foretoken::cuda
