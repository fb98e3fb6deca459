#include "kernels/base/error.h"
#include "kernels/matmul/matmul_cuda.cuh"

// Quantised matrix x many rows by int8 tensor cores. A block of threads computes 64 outputs (of one matrix, or of gate
// and up) for a tile of rows. Both sides are brought to shared memory 256 values at a time, the weights unpacked to
// int8; tensor cores give the integer sums of 16 or 32 values, which are scaled in integers, and each block of weights
// ends in the one float step of rule 1.
//
// The eight partial sums of rule 1 would take 8 x 16 registers a thread. So the blocks are not visited in rising order
// but partial after partial, 0 4 2 6 1 5 3 7, rising within each: the fold 8 -> 4 -> 2 -> 1 then needs three finished
// sums beside the running one.

namespace foretoken::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kOutputs = 16 * kWarps;  // of each matrix
constexpr int kStage = 256;            // values of a row in shared memory at a time
constexpr int kStride =
    kStage + 16;  // bytes from row to row there: the eight rows of a fragment fall into different banks

template <WeightType kType>
constexpr bool kHasRunScales =
    kType == WeightType::kQ2_K || kType == WeightType::kQ3_K || kType == WeightType::kQ6_K ||
    kType == WeightType::kIQ2_S || kType == WeightType::kIQ2_XS || kType == WeightType::kIQ1_M;

/// Shapes and shared memory of one kernel. With kPair, gate and up share the tile, and half as many rows keep the
/// registers the same.
template <WeightType kType, bool kPair>
struct TileShape {
  static constexpr int kBlock = block_size_of<kType>();
  static constexpr int kMatrices = kPair ? 2 : 1;
  static constexpr int kRowTiles = kPair ? 2 : 4;  // of eight rows
  static constexpr int kRows = 8 * kRowTiles;
  static constexpr int kWeightRows = kMatrices * kOutputs;
  static constexpr int kBlocksPerStage = kStage / kBlock;
};

template <WeightType kType, bool kPair>
struct Shared {
  using S = TileShape<kType, kPair>;
  int8_t* weights;    // [kWeightRows][kStride]
  float* d;           // [kWeightRows][kBlocksPerStage]
  float* dmin;        // the same; formats with mins. With float runs: the second run's scale
  int8_t* scales;     // [kWeightRows][16]; 256-value formats
  uint8_t* mins;      // [kWeightRows][16]; 256-value formats with mins
  int8_t* rows;       // [kRows][kStride]
  float* row_d;       // [kRows][kBlocksPerStage]
  int16_t* row_sums;  // [kRows][16] of runs, or [kRows][8] of 32-value blocks
};

// Block i of a stage that begins with block `first`: 32-value formats step through one partial's blocks.
template <int kBlock>
__device__ __forceinline__ int64_t block_of_stage(int64_t first, int i) {
  return first + int64_t{i} * kPartialSums;
}

template <WeightType kType, bool kPair>
__device__ __forceinline__ void stage_weights(const Shared<kType, kPair>& s, const MatmulArguments& a,
                                              const RowSet& rows, int64_t first_output, int64_t num_outputs,
                                              int64_t first_block, int count) {
  using S = TileShape<kType, kPair>;
  const int t = static_cast<int>(threadIdx.x % 4);
  for (int item = static_cast<int>(threadIdx.x) / 4; item < S::kWeightRows * S::kBlocksPerStage; item += kThreads / 4) {
    const int row = item / S::kBlocksPerStage, i = item % S::kBlocksPerStage;
    if (i >= count) continue;
    const int64_t output = first_output + row % kOutputs;
    const std::byte* matrix = row < kOutputs ? rows.w : rows.up;
    LaneBlock<kType> block;
    block.load(matrix + weight_row(a, output < num_outputs ? output : num_outputs - 1) * a.row_bytes, a.rows.num_blocks,
               block_of_stage<S::kBlock>(first_block, i), t);
    int8_t* to = s.weights + row * kStride;
    if constexpr (S::kBlock == 256) {
      for (int j = 0; j < 4; ++j) {
        const int run = run_of_lane(t, j);
        *reinterpret_cast<uint4*>(to + 16 * run) = uint4{block.q[j][0], block.q[j][1], block.q[j][2], block.q[j][3]};
        s.scales[row * 16 + run] = static_cast<int8_t>(block.scale[j]);
        if constexpr (has_lane_mins<kType>()) s.mins[row * 16 + run] = static_cast<uint8_t>(block.mins >> (8 * j));
      }
    } else {
      *reinterpret_cast<uint32_t*>(to + 32 * i + 4 * t) = block.q[0];
      *reinterpret_cast<uint32_t*>(to + 32 * i + 16 + 4 * t) = block.q[1];
    }
    if (t == 0) {
      s.d[row * S::kBlocksPerStage + i] = block.d;
      if constexpr (has_lane_mins<kType>()) s.dmin[row * S::kBlocksPerStage + i] = block.dmin;
      if constexpr (has_float_runs<kType>()) s.dmin[row * S::kBlocksPerStage + i] = block.second_d;
    }
  }
}

template <WeightType kType, bool kPair>
__device__ __forceinline__ void stage_rows(const Shared<kType, kPair>& s, const QuantRows& x, const RowSet& rows,
                                           int first_row, int64_t first_block, int count) {
  using S = TileShape<kType, kPair>;
  // A thread brings one lane's share of one block: four runs of 16, or eight values.
  const int t = static_cast<int>(threadIdx.x % 4);
  for (int item = static_cast<int>(threadIdx.x) / 4; item < S::kRows * S::kBlocksPerStage; item += kThreads / 4) {
    const int row = item / S::kBlocksPerStage, i = item % S::kBlocksPerStage;
    if (i >= count) continue;
    const int64_t input = rows.input(first_row + row < rows.count ? first_row + row : rows.count - 1);
    const int64_t b = block_of_stage<S::kBlock>(first_block, i);
    const LaneRow<S::kBlock> lane = load_lane_row<S::kBlock>(x, input, b, t);
    int8_t* to = s.rows + row * kStride;
    if constexpr (S::kBlock == 256) {
      const int16_t sums[4] = {static_cast<int16_t>(lane.sums.x), static_cast<int16_t>(lane.sums.x >> 16),
                               static_cast<int16_t>(lane.sums.y), static_cast<int16_t>(lane.sums.y >> 16)};
      for (int j = 0; j < 4; ++j) {
        const int run = run_of_lane(t, j);
        *reinterpret_cast<uint4*>(to + 16 * run) = lane.run[j];
        s.row_sums[row * 16 + run] = sums[j];
      }
    } else {
      *reinterpret_cast<uint32_t*>(to + 32 * i + 4 * t) = lane.words.x;
      *reinterpret_cast<uint32_t*>(to + 32 * i + 16 + 4 * t) = lane.words.y;
      if (t == 0) s.row_sums[row * 8 + i] = static_cast<int16_t>(lane.sum);
    }
    if (t == 0) s.row_d[row * S::kBlocksPerStage + i] = x.d[input * x.num_blocks + b];
  }
}

__device__ __forceinline__ uint32_t word_at(const int8_t* bytes) {
  return *reinterpret_cast<const uint32_t*>(bytes);
}

// One warp's part of a tile: 16 outputs of each matrix x kRows rows. Element e of a fragment is output g + 8 * (e / 2),
// row 2 * quad + e % 2.
template <WeightType kType, bool kPair>
struct WarpTile {
  using S = TileShape<kType, kPair>;
  using Sums = float[S::kMatrices][S::kRowTiles][4];
  Sums acc;

  __device__ __forceinline__ void clear() {
    for (auto& matrix : acc) {
      for (auto& tile : matrix) {
        for (float& x : tile) x = 0.0f;
      }
    }
  }

  // isum (and msum) of block i of the stage, then its float step.
  __device__ __forceinline__ void add_block(const Shared<kType, kPair>& s, int warp, int lane, int i) {
    const int g = lane / 4, quad = lane % 4;
    FT_UNROLL
    for (int m = 0; m < S::kMatrices; ++m) {
      const int output = m * kOutputs + 16 * warp + g;  // and + 8
      int isum[S::kRowTiles][4] = {};
      int second[has_float_runs<kType>() ? S::kRowTiles : 1][4] = {};  // of the second run; isum is the first's
      // 32 values at a time.
      for (int k = 0; k < S::kBlock / 32; ++k) {
        const int at = S::kBlock == 256 ? 32 * k : 32 * i;
        const int8_t* w = s.weights + output * kStride + at + 4 * quad;
        const uint32_t fragment[4] = {word_at(w), word_at(w + 8 * kStride), word_at(w + 16),
                                      word_at(w + 8 * kStride + 16)};
        const int8_t* scales = S::kBlock == 256 ? s.scales + output * 16 + 2 * k : nullptr;
        FT_UNROLL
        for (int r = 0; r < S::kRowTiles; ++r) {
          const int8_t* x = s.rows + (8 * r + g) * kStride + at + 4 * quad;
          const uint32_t row_fragment[2] = {word_at(x), word_at(x + 16)};
          if constexpr (has_float_runs<kType>()) {
            const uint32_t front[2] = {fragment[0], fragment[1]}, back[2] = {fragment[2], fragment[3]};
            const uint32_t front_row[1] = {row_fragment[0]}, back_row[1] = {row_fragment[1]};
            mma_16x8x16(isum[r], front, front_row);
            mma_16x8x16(second[r], back, back_row);
          } else if constexpr (kHasRunScales<kType>) {  // a scale for every 16 values
            for (int half = 0; half < 2; ++half) {
              int sums[4] = {};
              const uint32_t front[2] = {fragment[2 * half], fragment[2 * half + 1]}, back[1] = {row_fragment[half]};
              mma_16x8x16(sums, front, back);
              for (int e = 0; e < 4; ++e) isum[r][e] += scales[half + 8 * 16 * (e / 2)] * sums[e];
            }
          } else if constexpr (S::kBlock == 256) {
            int sums[4] = {};
            mma_16x8x32(sums, fragment, row_fragment);
            for (int e = 0; e < 4; ++e) isum[r][e] += scales[8 * 16 * (e / 2)] * sums[e];
          } else {
            mma_16x8x32(isum[r], fragment, row_fragment);
          }
        }
      }
      FT_UNROLL
      for (int r = 0; r < S::kRowTiles; ++r) {
        for (int e = 0; e < 4; ++e) {
          const int out = output + 8 * (e / 2), row = 8 * r + 2 * quad + e % 2;
          const float d = s.row_d[row * S::kBlocksPerStage + i];
          float& sum = acc[m][r][e];
          const int at = out * S::kBlocksPerStage + i;
          if constexpr (has_float_runs<kType>()) {
            const float first = static_cast<float>(isum[r][e]) * s.d[at];
            sum = __fmaf_rn(__fmaf_rn(static_cast<float>(second[r][e]), s.dmin[at], first), d, sum);
          } else {
            sum = __fmaf_rn(static_cast<float>(isum[r][e]), s.d[at] * d, sum);
          }
          if constexpr (has_lane_mins<kType>()) {
            sum = __fmaf_rn(-static_cast<float>(msum(s, out, row, i)), s.dmin[at] * d, sum);
          }
        }
      }
    }
  }

  static __device__ __forceinline__ int msum(const Shared<kType, kPair>& s, int output, int row, int i) {
    if constexpr (S::kBlock == 32) return s.row_sums[row * 8 + i];
    const auto* mins = reinterpret_cast<const int*>(s.mins + output * 16);
    const auto* sums = reinterpret_cast<const int*>(s.row_sums + row * 16);
    int total = 0;
    for (int j = 0; j < 4; ++j) total = __dp2a_hi(sums[2 * j + 1], mins[j], __dp2a_lo(sums[2 * j], mins[j], total));
    return total;
  }
};

template <class Sums>
__device__ __forceinline__ void copy_sums(Sums& to, const Sums& from) {
  for (size_t m = 0; m < sizeof(to) / sizeof(to[0]); ++m) {
    for (size_t r = 0; r < sizeof(to[0]) / sizeof(to[0][0]); ++r) {
      for (int e = 0; e < 4; ++e) to[m][r][e] = from[m][r][e];
    }
  }
}

// a += b
template <class Sums>
__device__ __forceinline__ void add_sums(Sums& a, const Sums& b) {
  for (size_t m = 0; m < sizeof(a) / sizeof(a[0]); ++m) {
    for (size_t r = 0; r < sizeof(a[0]) / sizeof(a[0][0]); ++r) {
      for (int e = 0; e < 4; ++e) a[m][r][e] = a[m][r][e] + b[m][r][e];
    }
  }
}

// Blocks that a multiprocessor is to hold, with `up` and without; shared memory lets in no fewer. Told so, the compiler takes the
// registers that they leave, and spills nothing. 0: it needs no telling.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 800
constexpr int kPairsAtOnce = 3, kTilesAtOnce = 4;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int kPairsAtOnce = 2, kTilesAtOnce = 0;
#else
constexpr int kPairsAtOnce = 4, kTilesAtOnce = 0;
#endif

/// The rows that this block of threads takes, as rows_of_bucket counts buckets; bucket -1: none. The grid has a block for
/// each tile that there can be: without buckets of all rows; with them of the shared one, and then as many as the list
/// of the others' can have.
template <bool kPair, int kRows>
__device__ __forceinline__ BucketTile tile_of_block(const MatmulArguments& a) {
  constexpr int kSize = kPair ? 0 : 1;
  static_assert(tile_rows(kSize) == kRows);
  const int tile = static_cast<int>(blockIdx.x);
  if (a.buckets.num_buckets == nullptr) return {0, tile * kRows};
  const int shared_tiles = a.shared.w.data == nullptr ? 0 : (a.num_rows + kRows - 1) / kRows;
  if (tile < shared_tiles) return {0, tile * kRows};
  if (tile - shared_tiles >= a.buckets.num_tiles[kSize]) return {-1, 0};
  const BucketTile listed = a.buckets.tiles[kSize][tile - shared_tiles];
  return {listed.bucket + (shared_tiles > 0 ? 1 : 0), listed.first};
}

template <WeightType kType, bool kPair>
__global__ void __launch_bounds__(kThreads, kPair ? kPairsAtOnce : kTilesAtOnce)
    cuda_quant_tiles(const __grid_constant__ MatmulArguments a) {
  using S = TileShape<kType, kPair>;
  constexpr bool kWide = S::kBlock == 256, kMins = has_lane_mins<kType>();
  constexpr bool kSecondScale = kMins || has_float_runs<kType>();
  FT_SHARED(uint4, weights, S::kWeightRows * kStride / 16);
  FT_SHARED(uint4, row_values, S::kRows * kStride / 16);
  FT_SHARED(float, d, S::kWeightRows* S::kBlocksPerStage);
  FT_SHARED(float, dmin, kSecondScale ? S::kWeightRows* S::kBlocksPerStage : 1);
  FT_SHARED(uint4, scales, kWide ? S::kWeightRows : 1);
  FT_SHARED(uint4, mins, kWide && kMins ? S::kWeightRows : 1);
  FT_SHARED(float, row_d, S::kRows* S::kBlocksPerStage);
  FT_SHARED(uint4, row_sums, S::kRows * 2);
  const Shared<kType, kPair> s{reinterpret_cast<int8_t*>(weights),
                               d,
                               dmin,
                               reinterpret_cast<int8_t*>(scales),
                               reinterpret_cast<uint8_t*>(mins),
                               reinterpret_cast<int8_t*>(row_values),
                               row_d,
                               reinterpret_cast<int16_t*>(row_sums)};

  start_next_kernel();
  wait_for_kernels_ahead();
  const MatmulPart& part = a.parts[0];
  const BucketTile place = tile_of_block<kPair, S::kRows>(a);
  if (place.bucket < 0) return;  // the whole block of threads, as below
  const RowSet rows = rows_of_bucket(a, part, place.bucket);
  const int64_t num_outputs = outputs_of(a, part), first_output = static_cast<int64_t>(blockIdx.y) * kOutputs;
  const int first_row = place.first;
  if (first_row >= rows.count || first_output >= num_outputs) return;
  const int warp = static_cast<int>(threadIdx.x / kWarpSize), lane = static_cast<int>(threadIdx.x % kWarpSize);

  WarpTile<kType, kPair> tile;
  typename WarpTile<kType, kPair>::Sums done[3];
  for (int step = 0; step < kPartialSums; ++step) {
    const int64_t partial = (step & 1) * 4 + (step & 2) + step / 4;  // 0 4 2 6 1 5 3 7
    tile.clear();
    for (int64_t first = partial; first < a.rows.num_blocks; first += kPartialSums * S::kBlocksPerStage) {
      const int64_t left = (a.rows.num_blocks - first + kPartialSums - 1) / kPartialSums;
      const int count = static_cast<int>(left < S::kBlocksPerStage ? left : S::kBlocksPerStage);
      stage_weights(s, a, rows, first_output, num_outputs, first, count);
      stage_rows(s, a.rows, rows, first_row, first, count);
      __syncthreads();
      for (int i = 0; i < count; ++i) tile.add_block(s, warp, lane, i);
      __syncthreads();
    }
    // Finished sums stand in done[] like the digits of a binary counter; a carry is an addition of the fold.
    if (step % 4 == 0) {
      copy_sums(done[step / 4], tile.acc);
    } else if (step % 4 == 2) {
      copy_sums(done[1 + step / 4], tile.acc);
    } else if (step % 4 == 1) {
      add_sums(done[step / 4], tile.acc);
    } else {
      add_sums(done[1 + step / 4], tile.acc);
      add_sums(done[step / 4], done[1 + step / 4]);
    }
  }
  add_sums(done[0], done[1]);

  const int g = lane / 4, quad = lane % 4;
  FT_UNROLL
  for (int r = 0; r < S::kRowTiles; ++r) {
    for (int e = 0; e < 4; ++e) {
      const int64_t output = first_output + 16 * warp + g + 8 * (e / 2);
      const int row = first_row + 8 * r + 2 * quad + e % 2;
      if (output >= num_outputs || row >= rows.count) continue;
      float value = done[0][0][r][e] * rows.scale;
      if constexpr (kPair) value = silu_times(value, done[0][1][r][e] * rows.up_scale);
      part.y[rows.output(row) * part.y_stride + output] = value;
    }
  }
}

// Neighbouring blocks have the same outputs and other rows: what they read of the weights is in a cache.
template <WeightType kType, bool kPair>
void launch_shape(const MatmulDesc& desc, const Stream& stream) {
  const MatmulArguments a = matmul_arguments(desc);
  constexpr int kRows = TileShape<kType, kPair>::kRows;
  int64_t tiles = (desc.max_rows + kRows - 1) / kRows;  // of all rows, or of the shared bucket
  if (desc.max_buckets > 0) {
    FT_CHECK(desc.buckets.num_tiles != nullptr && desc.max_slots >= desc.max_rows);
    if (desc.shared.w.data == nullptr) tiles = 0;
    tiles += max_bucket_tiles(desc.max_slots, desc.max_buckets, kRows);
  }
  const LaunchShape shape{
      {static_cast<unsigned>(tiles), static_cast<unsigned>((desc.num_outputs + kOutputs - 1) / kOutputs)},
      {static_cast<unsigned>(kThreads)}};
  launch(stream, shape, "cuda_quant_tiles", cuda_quant_tiles<kType, kPair>, a);
}

template <WeightType kType>
void launch_type(const MatmulDesc& desc, const Stream& stream) {
  if (desc.up.data == nullptr) return launch_shape<kType, false>(desc, stream);
  launch_shape<kType, true>(desc, stream);
}

}  // namespace

void launch_quant_tiles(const MatmulDesc& desc, const MatmulConfig&, const Stream& stream) {
  FT_CHECK(desc.num_more == 0);
  switch (desc.w.type) {
    case WeightType::kQ4_0:
      return launch_type<WeightType::kQ4_0>(desc, stream);
    case WeightType::kQ4_1:
      return launch_type<WeightType::kQ4_1>(desc, stream);
    case WeightType::kQ5_0:
      return launch_type<WeightType::kQ5_0>(desc, stream);
    case WeightType::kQ5_1:
      return launch_type<WeightType::kQ5_1>(desc, stream);
    case WeightType::kQ8_0:
      return launch_type<WeightType::kQ8_0>(desc, stream);
    case WeightType::kQ2_K:
      return launch_type<WeightType::kQ2_K>(desc, stream);
    case WeightType::kQ3_K:
      return launch_type<WeightType::kQ3_K>(desc, stream);
    case WeightType::kQ4_K:
      return launch_type<WeightType::kQ4_K>(desc, stream);
    case WeightType::kQ5_K:
      return launch_type<WeightType::kQ5_K>(desc, stream);
    case WeightType::kQ6_K:
      return launch_type<WeightType::kQ6_K>(desc, stream);
    case WeightType::kIQ4_NL:
      return launch_type<WeightType::kIQ4_NL>(desc, stream);
    case WeightType::kIQ4_XS:
      return launch_type<WeightType::kIQ4_XS>(desc, stream);
    case WeightType::kMXFP4:
      return launch_type<WeightType::kMXFP4>(desc, stream);
    case WeightType::kTQ1_0:
      return launch_type<WeightType::kTQ1_0>(desc, stream);
    case WeightType::kTQ2_0:
      return launch_type<WeightType::kTQ2_0>(desc, stream);
    case WeightType::kNVFP4:
      return launch_type<WeightType::kNVFP4>(desc, stream);
    case WeightType::kQ1_0:
      return launch_type<WeightType::kQ1_0>(desc, stream);
    case WeightType::kQ2_0:
      return launch_type<WeightType::kQ2_0>(desc, stream);
    case WeightType::kIQ3_S:
      return launch_type<WeightType::kIQ3_S>(desc, stream);
    case WeightType::kIQ3_XXS:
      return launch_type<WeightType::kIQ3_XXS>(desc, stream);
    case WeightType::kIQ2_S:
      return launch_type<WeightType::kIQ2_S>(desc, stream);
    case WeightType::kIQ2_XS:
      return launch_type<WeightType::kIQ2_XS>(desc, stream);
    case WeightType::kIQ2_XXS:
      return launch_type<WeightType::kIQ2_XXS>(desc, stream);
    case WeightType::kIQ1_S:
      return launch_type<WeightType::kIQ1_S>(desc, stream);
    case WeightType::kIQ1_M:
      return launch_type<WeightType::kIQ1_M>(desc, stream);
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16:
      break;
  }
  refuse_type(desc.w.type, "tensor-core kernel");
}

}  // namespace foretoken::cuda
