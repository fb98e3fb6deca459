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
//
// Rows are copied past the registers (cp.async) while the same stage's weights are fetched and unpacked, which takes
// longer: with small tiles, of which several are on a multiprocessor, a second buffer for the next stage's rows would
// take some of them away and give nothing.
//
// Large tiles have 128 rows for eight warps: weights are then fetched and unpacked a fourth or an eighth as often.

namespace foretoken::cuda {

namespace {

constexpr int kMostShared = 99 << 10;  // of a block, on every GPU from 8.6 on
constexpr int kStage = 256;            // values of a row in shared memory at a time
constexpr int kStride =
    kStage + 16;  // bytes from row to row there: the eight rows of a fragment fall into different banks

template <WeightType kType>
constexpr bool kHasRunScales =
    kType == WeightType::kQ2_K || kType == WeightType::kQ3_K || kType == WeightType::kQ6_K ||
    kType == WeightType::kIQ2_S || kType == WeightType::kIQ2_XS || kType == WeightType::kIQ1_M;

/// Shapes and shared memory of one kernel. Gate and up (kPair) share a tile, which has half as many rows then, or of a
/// large one half as many outputs: the registers stay the same.
template <WeightType kType_, bool kPair_, bool kLarge_>
struct TileShape {
  static constexpr WeightType kType = kType_;
  static constexpr bool kPair = kPair_, kLarge = kLarge_;
  static constexpr int kBlock = block_size_of<kType>(), kBlocksPerStage = kStage / kBlock;
  static constexpr bool kMins = has_lane_mins<kType>(), kSecondScale = kMins || has_float_runs<kType>();
  static constexpr int kWarps = kLarge ? 8 : 4, kThreads = kWarps * kWarpSize;
  static constexpr int kMatrices = kPair ? 2 : 1;
  static constexpr int kOutputs = kLarge ? 64 / kMatrices : 64;  // of each matrix
  static constexpr int kWeightRows = kMatrices * kOutputs;
  static constexpr int kSize = kLarge ? kLargeTile : kPair ? 0 : 1, kRows = tile_rows(kSize);
  // A warp takes 16 outputs of each group: of gate and of up, or in a large tile of each half of the outputs. One group's
  // integer sums at a time are in registers.
  static constexpr int kGroups = kLarge ? 2 : kMatrices, kGroupOutputs = kWeightRows / kGroups;
  static constexpr int kOutputWarps = kGroupOutputs / 16;  // side by side; the others take other rows
  static constexpr int kWarpRows = kRows * kOutputWarps / kWarps, kRowTiles = kWarpRows / 8;

  // Shared memory, in bytes. The scales of a block stand side by side for all outputs; a few words between the blocks of
  // a stage let a warp store those of eight at once.
  static constexpr int kScaleStride = kWeightRows + 4;
  static constexpr int kScaleBytes = 4 * kBlocksPerStage * kScaleStride;
  static constexpr int kRunBytes = kBlock == 256 ? 16 * kWeightRows : 0;
  static constexpr int kWeightBytes =
      kWeightRows * kStride + (kMins ? 2 : 1) * kRunBytes + (kSecondScale ? 2 : 1) * kScaleBytes;
  static constexpr int kSumBytes = !kMins ? 0 : kBlock == 256 ? 32 * kRows : 2 * kBlocksPerStage * kRows;
  static constexpr int kRowBytes = kRows * kStride + kSumBytes + 4 * kBlocksPerStage * kRows;
  static constexpr int kOneBuffer = kWeightBytes + kRowBytes + 4 * kRows;
  /// Of rows. A block of large tiles has a multiprocessor of 100 KiB to itself anyway.
  static constexpr int kBuffers = kLarge && kOneBuffer + kRowBytes <= kMostShared ? 2 : 1;
  static constexpr int kSharedBytes = kOneBuffer + (kBuffers - 1) * kRowBytes;
};

template <class S>
struct Shared {
  int8_t* memory;
  int buffer = 0;  // of rows

  // Values of 32-value formats lie in each block as in QuantRows, so that rows need no rearranging.
  __device__ __forceinline__ int8_t* weights() const { return memory; }  // [kWeightRows][kStride]
  __device__ __forceinline__ int8_t* scales() const {                    // [kWeightRows][16]; 256-value formats
    return memory + S::kWeightRows * kStride;
  }
  /// [kWeightRows][16], in the order of QuantRows::sums; 256-value formats with mins.
  __device__ __forceinline__ int8_t* mins() const { return scales() + S::kRunBytes; }
  __device__ __forceinline__ float* d() const {  // [kBlocksPerStage][kScaleStride]
    return reinterpret_cast<float*>(scales() + (S::kMins ? 2 : 1) * S::kRunBytes);
  }
  /// The same; formats with mins. With float runs: the second run's scale.
  __device__ __forceinline__ float* dmin() const { return d() + S::kBlocksPerStage * S::kScaleStride; }
  __device__ __forceinline__ int8_t* rows() const {  // [kRows][kStride]
    return memory + S::kWeightBytes + buffer * S::kRowBytes;
  }
  /// [kRows][16] of runs in the order of QuantRows::sums, or [kBlocksPerStage][kRows] of blocks; formats with mins.
  __device__ __forceinline__ int16_t* row_sums() const {
    return reinterpret_cast<int16_t*>(rows() + S::kRows * kStride);
  }
  __device__ __forceinline__ float* row_d() const {  // [kBlocksPerStage][kRows]
    return reinterpret_cast<float*>(rows() + S::kRows * kStride + S::kSumBytes);
  }
  __device__ __forceinline__ int32_t* inputs() const {  // [kRows] of x
    return reinterpret_cast<int32_t*>(memory + S::kWeightBytes + S::kBuffers * S::kRowBytes);
  }
};

// Block i of a stage that begins with block `first`: 32-value formats step through one partial's blocks.
__device__ __forceinline__ int64_t block_of_stage(int64_t first, int i) {
  return first + int64_t{i} * kPartialSums;
}

// The weights of a tile's row: of its outputs in one matrix, then of the same in the other. An output behind the last one
// has the last one's.
template <class S>
__device__ __forceinline__ const std::byte* weights_of(const MatmulArguments& a, const RowSet& rows,
                                                       int64_t first_output, int64_t num_outputs, int row) {
  const int64_t output = first_output + row % S::kOutputs;
  const std::byte* matrix = row < S::kOutputs ? rows.w : rows.up;
  return matrix + weight_row(a, output < num_outputs ? output : num_outputs - 1) * a.row_bytes;
}

template <class S>
__device__ __forceinline__ void stage_weights(const Shared<S>& s, const MatmulArguments& a, const RowSet& rows,
                                              int64_t first_output, int64_t num_outputs, int64_t first_block,
                                              int count) {
  const int t = static_cast<int>(threadIdx.x % 4);
  for (int item = static_cast<int>(threadIdx.x) / 4; item < S::kWeightRows * S::kBlocksPerStage;
       item += S::kThreads / 4) {
    const int row = item / S::kBlocksPerStage, i = item % S::kBlocksPerStage;
    if (i >= count) continue;
    LaneBlock<S::kType> block;
    block.load(weights_of<S>(a, rows, first_output, num_outputs, row), a.rows.num_blocks,
               block_of_stage(first_block, i), t);
    int8_t* to = s.weights() + row * kStride;
    if constexpr (S::kBlock == 256) {
      for (int j = 0; j < 4; ++j) {
        const int run = run_of_lane(t, j);
        *reinterpret_cast<uint4*>(to + 16 * run) = uint4{block.q[j][0], block.q[j][1], block.q[j][2], block.q[j][3]};
        s.scales()[row * 16 + run] = static_cast<int8_t>(block.scale[j]);
      }
      if constexpr (S::kMins) *reinterpret_cast<uint32_t*>(s.mins() + row * 16 + 4 * t) = block.mins;
    } else {
      *reinterpret_cast<uint2*>(to + 32 * i + 8 * t) = uint2{block.q[0], block.q[1]};
    }
    if (t == 0) {
      s.d()[i * S::kScaleStride + row] = block.d;
      if constexpr (S::kMins) s.dmin()[i * S::kScaleStride + row] = block.dmin;
      if constexpr (has_float_runs<S::kType>()) s.dmin()[i * S::kScaleStride + row] = block.second_d;
    }
  }
}

/// Asks for the weights of a stage. Of 256-value formats: of the others nearly every line that a tile reads comes up with
/// the first partial sum. Not for large tiles, whose kernels would spill.
template <class S>
__device__ __forceinline__ void prefetch_stage(const MatmulArguments& a, const RowSet& rows, int64_t first_output,
                                               int64_t num_outputs, int64_t block) {
  static_assert(S::kBlock == 256);
  const int t = static_cast<int>(threadIdx.x % 4);
  for (int row = static_cast<int>(threadIdx.x) / 4; row < S::kWeightRows; row += S::kThreads / 4) {
    prefetch_block<S::kType>(weights_of<S>(a, rows, first_output, num_outputs, row), a.rows.num_blocks, block, t);
  }
}

// Rows of a stage: their values, and of 256-value formats their sums, by copies that are under way when this returns.
template <class S>
__device__ __forceinline__ void start_rows(const Shared<S>& s, const QuantRows& x, int64_t first_block, int count) {
  // 16 bytes an item. A row's are side by side here; there a block of 256 has runs j of all lanes side by side.
  const int at = static_cast<int>(threadIdx.x % 16);  // of the row
  const int64_t stride = q_stride(S::kBlock, x.num_blocks);
  int64_t offset;
  if constexpr (S::kBlock == 256) {
    offset = run_offset(first_block, at / 8 * 2 + at % 2, at % 8 / 2);  // at == run_of_lane(t, j)
  } else {
    offset = block_of_stage(first_block, at / 2) * 32 + at % 2 * 16;
  }
  static_assert(S::kRows % (S::kThreads / 16) == 0);
  if (S::kBlock == 256 || at / 2 < count) {
    FT_UNROLL
    for (int n = 0; n < S::kRows / (S::kThreads / 16); ++n) {
      const int row = n * (S::kThreads / 16) + static_cast<int>(threadIdx.x) / 16;
      start_copy_16<true>(s.rows() + row * kStride + 16 * at, x.q + s.inputs()[row] * stride + offset);
    }
  }
  if constexpr (S::kBlock == 256 && S::kMins) {
    static_assert(2 * S::kRows <= S::kThreads);
    const int row = static_cast<int>(threadIdx.x) / 2, half = static_cast<int>(threadIdx.x) % 2;
    if (row < S::kRows) {
      start_copy_16<true>(s.row_sums() + row * 16 + 8 * half,
                          x.sums + s.inputs()[row] * sums_stride(256, x.num_blocks) + first_block * 16 + 8 * half);
    }
  }
  end_copy_group();
}

/// Scales of a stage's rows, and of 32-value formats their sums, on their way through registers: lone words.
template <class S>
struct RowScales {
  static constexpr int kItems = (S::kRows * S::kBlocksPerStage + S::kThreads - 1) / S::kThreads;
  static constexpr bool kSums = S::kBlock == 32 && S::kMins;
  float d[kItems] = {};
  int16_t sums[kSums ? kItems : 1] = {};

  __device__ __forceinline__ void load(const Shared<S>& s, const QuantRows& x, int64_t first_block, int count) {
    FT_UNROLL
    for (int n = 0; n < kItems; ++n) {
      const int item = n * S::kThreads + static_cast<int>(threadIdx.x), row = item % S::kRows, i = item / S::kRows;
      if (i >= count) continue;
      const int64_t at = s.inputs()[row] * x.num_blocks + block_of_stage(first_block, i);
      d[n] = load_global(x.d + at);
      if constexpr (kSums) sums[n] = load_global(x.sums + at);
    }
  }
  __device__ __forceinline__ void store(const Shared<S>& s, int count) const {
    FT_UNROLL
    for (int n = 0; n < kItems; ++n) {
      const int item = n * S::kThreads + static_cast<int>(threadIdx.x);  // [kBlocksPerStage][kRows]
      if (item / S::kRows >= count) continue;
      s.row_d()[item] = d[n];
      if constexpr (kSums) s.row_sums()[item] = sums[n];
    }
  }
};

// One warp's part of a tile: 16 outputs of each group x kWarpRows rows. Element e of a fragment is output g + 8 * (e / 2),
// row 2 * quad + e % 2.
template <class S>
struct WarpTile {
  using Sums = float[S::kGroups][S::kRowTiles][4];
  Sums acc;

  __device__ __forceinline__ void clear() {
    for (auto& group : acc) {
      for (auto& tile : group) {
        for (float& x : tile) x = 0.0f;
      }
    }
  }

  // isum (and msum) of block i of the stage, then its float step.
  __device__ __forceinline__ void add_block(const Shared<S>& s, int first_output, int first_row, int lane, int i) {
    const int g = lane / 4, quad = lane % 4;
    FT_UNROLL
    for (int m = 0; m < S::kGroups; ++m) {
      const int output = m * S::kGroupOutputs + first_output + g;  // and + 8
      int isum[S::kRowTiles][4] = {};
      int second[has_float_runs<S::kType>() ? S::kRowTiles : 1][4] = {};  // of the second run; isum is the first's
      if constexpr (has_float_runs<S::kType>()) {
        // Of a lane's eight bytes the first four are of the first run.
        const int8_t* w = s.weights() + output * kStride + 32 * i + 8 * quad;
        const uint2 top = words_at(w), bottom = words_at(w + 8 * kStride);
        const uint32_t front[2] = {top.x, bottom.x}, back[2] = {top.y, bottom.y};
        FT_UNROLL
        for (int r = 0; r < S::kRowTiles; ++r) {
          const uint2 x = words_at(s.rows() + (first_row + 8 * r + g) * kStride + 32 * i + 8 * quad);
          const uint32_t front_row[1] = {x.x}, back_row[1] = {x.y};
          mma_16x8x16(isum[r], front, front_row);
          mma_16x8x16(second[r], back, back_row);
        }
      } else {
        // The rows whose addresses this lane gives: of the weights' four matrices (two of outputs, two of values), and of
        // two tiles of rows.
        const int8_t* w = s.weights() + (m * S::kGroupOutputs + first_output + lane % 16) * kStride + lane / 16 * 16;
        const int8_t* x = s.rows() + (first_row + lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 16;
        FT_UNROLL_TWICE                                 // eight times: some types spill
            for (int k = 0; k < S::kBlock / 32; ++k) {  // 32 values at a time
          const int at = S::kBlock == 256 ? 32 * k : 32 * i;
          uint32_t fragment[4];
          load_matrices(fragment, w + at);
          const int8_t* scales = S::kBlock == 256 ? s.scales() + output * 16 + 2 * k : nullptr;
          FT_UNROLL
          for (int pair = 0; pair < S::kRowTiles / 2; ++pair) {
            uint32_t row_fragments[4];
            load_matrices(row_fragments, x + 16 * pair * kStride + at);
            FT_UNROLL
            for (int of_pair = 0; of_pair < 2; ++of_pair) {
              const uint32_t row_fragment[2] = {row_fragments[2 * of_pair], row_fragments[2 * of_pair + 1]};
              add_products(isum[2 * pair + of_pair], fragment, row_fragment, scales);
            }
          }
        }
      }
      FT_UNROLL
      for (int r = 0; r < S::kRowTiles; ++r) {
        const int row = first_row + 8 * r + 2 * quad;  // and + 1
        const float2 row_d = *reinterpret_cast<const float2*>(s.row_d() + i * S::kRows + row);
        int msum[4] = {};
        if constexpr (S::kMins) add_mins(msum, s, output, row, i);
        for (int e = 0; e < 4; ++e) {
          const float d = e % 2 == 0 ? row_d.x : row_d.y;
          float& sum = acc[m][r][e];
          const int at = i * S::kScaleStride + output + 8 * (e / 2);
          if constexpr (has_float_runs<S::kType>()) {
            const float first = static_cast<float>(isum[r][e]) * s.d()[at];
            sum = __fmaf_rn(__fmaf_rn(static_cast<float>(second[r][e]), s.dmin()[at], first), d, sum);
          } else {
            sum = __fmaf_rn(static_cast<float>(isum[r][e]), s.d()[at] * d, sum);
          }
          if constexpr (S::kMins) sum = __fmaf_rn(-static_cast<float>(msum[e]), s.dmin()[at] * d, sum);
        }
      }
    }
  }

 private:
  static __device__ __forceinline__ uint2 words_at(const int8_t* bytes) {
    return *reinterpret_cast<const uint2*>(bytes);
  }

  // isum += scale * (weights . rows), over 32 values. scales: of output g's two runs of 16, output g + 8's 128 further.
  static __device__ __forceinline__ void add_products(int (&isum)[4], const uint32_t (&weights)[4],
                                                      const uint32_t (&rows)[2], const int8_t* scales) {
    if constexpr (kHasRunScales<S::kType>) {
      for (int half = 0; half < 2; ++half) {
        int sums[4] = {};
        const uint32_t run[2] = {weights[2 * half], weights[2 * half + 1]}, row_run[1] = {rows[half]};
        mma_16x8x16(sums, run, row_run);
        for (int e = 0; e < 4; ++e) isum[e] += scales[half + 8 * 16 * (e / 2)] * sums[e];
      }
    } else if constexpr (S::kBlock == 256) {
      int sums[4] = {};
      mma_16x8x32(sums, weights, rows);
      for (int e = 0; e < 4; ++e) isum[e] += scales[8 * 16 * (e / 2)] * sums[e];
    } else {
      mma_16x8x32(isum, weights, rows);
    }
  }

  static __device__ __forceinline__ void add_mins(int (&msum)[4], const Shared<S>& s, int output, int row, int i) {
    if constexpr (S::kBlock == 32) {
      for (int e = 0; e < 4; ++e) msum[e] = s.row_sums()[i * S::kRows + row + e % 2];
    } else {
      uint4 mins[2], sums[2][2];
      for (int n = 0; n < 2; ++n) {
        mins[n] = *reinterpret_cast<const uint4*>(s.mins() + (output + 8 * n) * 16);
        sums[n][0] = *reinterpret_cast<const uint4*>(s.row_sums() + (row + n) * 16);
        sums[n][1] = *reinterpret_cast<const uint4*>(s.row_sums() + (row + n) * 16 + 8);
      }
      FT_UNROLL
      for (int e = 0; e < 4; ++e) {
        FT_UNROLL
        for (int j = 0; j < 4; ++j) {
          const auto min = static_cast<int>(word_of(mins[e / 2], j));
          const auto low = static_cast<int>(word_of(sums[e % 2][j / 2], 2 * (j % 2))),
                     high = static_cast<int>(word_of(sums[e % 2][j / 2], 2 * (j % 2) + 1));
          msum[e] = __dp2a_hi(high, min, __dp2a_lo(low, min, msum[e]));
        }
      }
    }
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

// Blocks that a multiprocessor is to hold, with `up` and without; shared memory lets in no fewer. Told so, the compiler
// takes the registers that they leave, and spills nothing. 0: it needs no telling, and would only take more.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 800
constexpr int kPairsAtOnce = 3, kTilesAtOnce = 4, kGridTilesAtOnce = 4, kLargeAtOnce = 1;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int kPairsAtOnce = 2, kTilesAtOnce = 0, kGridTilesAtOnce = 3, kLargeAtOnce = 1;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr int kPairsAtOnce = 4, kTilesAtOnce = 0, kGridTilesAtOnce = 4, kLargeAtOnce = 2;
#else
constexpr int kPairsAtOnce = 4, kTilesAtOnce = 0, kGridTilesAtOnce = 4, kLargeAtOnce = 1;
#endif
template <WeightType kType, bool kPair>
constexpr int kAtOnce = kPair                                               ? kPairsAtOnce
                        : has_levels(kType) || kType == WeightType::kIQ4_XS ? kGridTilesAtOnce
                                                                            : kTilesAtOnce;

/// The rows that this block of threads takes, as rows_of_bucket counts buckets; bucket -1: none. The grid has a block for
/// each tile that there can be: without buckets of all rows; with them of the shared one, and then as many as the list
/// of the others' can have.
template <class S>
__device__ __forceinline__ BucketTile tile_of_block(const MatmulArguments& a) {
  const int tile = static_cast<int>(blockIdx.x);
  if (a.buckets.num_buckets == nullptr) return {0, tile * S::kRows};
  const int shared_tiles = a.shared.w.data == nullptr ? 0 : (a.num_rows + S::kRows - 1) / S::kRows;
  if (tile < shared_tiles) return {0, tile * S::kRows};
  if (tile - shared_tiles >= a.buckets.num_tiles[S::kSize]) return {-1, 0};
  const BucketTile listed = a.buckets.tiles[S::kSize][tile - shared_tiles];
  return {listed.bucket + (shared_tiles > 0 ? 1 : 0), listed.first};
}

/// First block of a partial sum that is visited as the step-th.
__device__ __forceinline__ int64_t partial_of(int step) {
  return (step & 1) * 4 + (step & 2) + step / 4;  // 0 4 2 6 1 5 3 7
}

/// Where a stage begins, and how many blocks it has.
template <class S>
struct Stage {
  int step = 0;
  int64_t first = 0;
  int count = 0;

  __device__ __forceinline__ void count_blocks(int64_t num_blocks) {
    const int64_t left = (num_blocks - first + kPartialSums - 1) / kPartialSums;
    count = static_cast<int>(left < S::kBlocksPerStage ? left : S::kBlocksPerStage);
  }
  /// False behind the last one.
  __device__ __forceinline__ bool advance(int64_t num_blocks) {
    first += kPartialSums * S::kBlocksPerStage;
    while (first >= num_blocks && ++step < kPartialSums) first = partial_of(step);
    if (step == kPartialSums) return false;
    count_blocks(num_blocks);
    return true;
  }
};

template <class S>
__device__ __forceinline__ void compute_tile(const MatmulArguments& a, Shared<S> s) {
  start_next_kernel();
  wait_for_kernels_ahead();
  const MatmulPart& part = a.parts[0];
  const BucketTile place = tile_of_block<S>(a);
  if (place.bucket < 0) return;  // the whole block of threads, as below
  const RowSet rows = rows_of_bucket(a, part, place.bucket);
  const int64_t num_outputs = outputs_of(a, part), first_output = static_cast<int64_t>(blockIdx.y) * S::kOutputs;
  const int first_row = place.first;
  if (first_row >= rows.count || first_output >= num_outputs) return;
  const int warp = static_cast<int>(threadIdx.x / kWarpSize), lane = static_cast<int>(threadIdx.x % kWarpSize);
  const int warp_output = warp % S::kOutputWarps * 16, warp_row = warp / S::kOutputWarps * S::kWarpRows;  // of the tile
  for (int i = static_cast<int>(threadIdx.x); i < S::kRows; i += S::kThreads) {
    const int row = first_row + i;
    s.inputs()[i] = static_cast<int32_t>(rows.input(row < rows.count ? row : rows.count - 1));
  }
  __syncthreads();

  // Rows of this stage and, with two buffers, of the one ahead.
  const auto bring_rows = [&](const Shared<S>& to, const Stage<S>& stage, RowScales<S>& scales) {
    start_rows(to, a.rows, stage.first, stage.count);
    scales.load(to, a.rows, stage.first, stage.count);
  };
  Stage<S> ahead;
  if constexpr (S::kBuffers == 2) {
    RowScales<S> row_scales;
    ahead.count_blocks(a.rows.num_blocks);
    bring_rows(s, ahead, row_scales);
    row_scales.store(s, ahead.count);
  }

  WarpTile<S> tile;
  typename WarpTile<S>::Sums done[3];
  for (int step = 0; step < kPartialSums; ++step) {
    tile.clear();
    for (int64_t first = partial_of(step); first < a.rows.num_blocks; first += kPartialSums * S::kBlocksPerStage) {
      Stage<S> stage{step, first};
      stage.count_blocks(a.rows.num_blocks);
      RowScales<S> row_scales;
      if constexpr (S::kBuffers == 2) {
        const Shared<S> other{s.memory, 1 - s.buffer};
        const bool is_there = ahead.advance(a.rows.num_blocks);
        if (is_there) bring_rows(other, ahead, row_scales);
        stage_weights(s, a, rows, first_output, num_outputs, first, stage.count);
        if (is_there) {
          row_scales.store(other, ahead.count);
          wait_for_copies<1>();
        } else {
          wait_for_copies<0>();
        }
      } else {
        bring_rows(s, stage, row_scales);
        stage_weights(s, a, rows, first_output, num_outputs, first, stage.count);
        row_scales.store(s, stage.count);
        wait_for_copies<0>();
      }
      if constexpr (S::kBlock == 256 && !S::kLarge) {
        Stage<S> next = stage;
        if (next.advance(a.rows.num_blocks)) prefetch_stage<S>(a, rows, first_output, num_outputs, next.first);
      }
      __syncthreads();
      for (int i = 0; i < stage.count; ++i) tile.add_block(s, warp_output, warp_row, lane, i);
      __syncthreads();
      if constexpr (S::kBuffers == 2) s.buffer = 1 - s.buffer;
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
  for (int m = 0; m < (S::kPair ? 1 : S::kGroups); ++m) {
    FT_UNROLL
    for (int r = 0; r < S::kRowTiles; ++r) {
      for (int e = 0; e < 4; ++e) {
        const int64_t output = first_output + m * S::kGroupOutputs + warp_output + g + 8 * (e / 2);
        const int row = first_row + warp_row + 8 * r + 2 * quad + e % 2;
        if (output >= num_outputs || row >= rows.count) continue;
        float value = done[0][m][r][e] * rows.scale;
        if constexpr (S::kPair) value = silu_times(value, done[0][1][r][e] * rows.up_scale);
        part.y[rows.output(row) * part.y_stride + output] = value;
      }
    }
  }
}

template <WeightType kType, bool kPair>
__global__ void __launch_bounds__(TileShape<kType, kPair, false>::kThreads, kAtOnce<kType, kPair>)
    cuda_quant_tiles(const __grid_constant__ MatmulArguments a) {
  using S = TileShape<kType, kPair, false>;
  FT_SHARED(uint4, memory, S::kSharedBytes / 16);
  compute_tile<S>(a, {reinterpret_cast<int8_t*>(memory)});
}

template <WeightType kType, bool kPair>
__global__ void __launch_bounds__(TileShape<kType, kPair, true>::kThreads, has_levels(kType) ? 1 : kLargeAtOnce)
    cuda_quant_large_tiles(const __grid_constant__ MatmulArguments a) {
  FT_DYNAMIC_SHARED(int8_t, memory);
  compute_tile<TileShape<kType, kPair, true>>(a, {memory});
}

// Neighbouring blocks have the same outputs and other rows: what they read of the weights is in a cache.
template <WeightType kType, bool kPair, bool kLarge>
void launch_shape(const MatmulDesc& desc, const Stream& stream) {
  const MatmulArguments a = matmul_arguments(desc);
  using S = TileShape<kType, kPair, kLarge>;
  constexpr int kRows = S::kRows;
  int64_t tiles = (desc.max_rows + kRows - 1) / kRows;  // of all rows, or of the shared bucket
  if (desc.max_buckets > 0) {
    FT_CHECK(desc.buckets.num_tiles != nullptr && desc.max_slots >= desc.max_rows);
    if (desc.shared.w.data == nullptr) tiles = 0;
    tiles += max_bucket_tiles(desc.max_slots, desc.max_buckets, kRows);
  }
  const LaunchShape shape{
      {static_cast<unsigned>(tiles), static_cast<unsigned>((desc.num_outputs + S::kOutputs - 1) / S::kOutputs)},
      {static_cast<unsigned>(S::kThreads)},
      kLarge ? S::kSharedBytes : 0};
  if constexpr (kLarge) {
    launch(stream, shape, "cuda_quant_large_tiles", cuda_quant_large_tiles<kType, kPair>, a);
  } else {
    launch(stream, shape, "cuda_quant_tiles", cuda_quant_tiles<kType, kPair>, a);
  }
}

template <WeightType kType>
void launch_type(const MatmulDesc& desc, bool large, const Stream& stream) {
  const bool pair = desc.up.data != nullptr;
  if (large)
    return pair ? launch_shape<kType, true, true>(desc, stream) : launch_shape<kType, false, true>(desc, stream);
  pair ? launch_shape<kType, true, false>(desc, stream) : launch_shape<kType, false, false>(desc, stream);
}

}  // namespace

void launch_quant_tiles(const MatmulDesc& desc, const MatmulConfig& config, const Stream& stream) {
  FT_CHECK(desc.num_more == 0);
  switch (desc.w.type) {
    case WeightType::kQ4_0:
      return launch_type<WeightType::kQ4_0>(desc, config.large_tiles, stream);
    case WeightType::kQ4_1:
      return launch_type<WeightType::kQ4_1>(desc, config.large_tiles, stream);
    case WeightType::kQ5_0:
      return launch_type<WeightType::kQ5_0>(desc, config.large_tiles, stream);
    case WeightType::kQ5_1:
      return launch_type<WeightType::kQ5_1>(desc, config.large_tiles, stream);
    case WeightType::kQ8_0:
      return launch_type<WeightType::kQ8_0>(desc, config.large_tiles, stream);
    case WeightType::kQ2_K:
      return launch_type<WeightType::kQ2_K>(desc, config.large_tiles, stream);
    case WeightType::kQ3_K:
      return launch_type<WeightType::kQ3_K>(desc, config.large_tiles, stream);
    case WeightType::kQ4_K:
      return launch_type<WeightType::kQ4_K>(desc, config.large_tiles, stream);
    case WeightType::kQ5_K:
      return launch_type<WeightType::kQ5_K>(desc, config.large_tiles, stream);
    case WeightType::kQ6_K:
      return launch_type<WeightType::kQ6_K>(desc, config.large_tiles, stream);
    case WeightType::kIQ4_NL:
      return launch_type<WeightType::kIQ4_NL>(desc, config.large_tiles, stream);
    case WeightType::kIQ4_XS:
      return launch_type<WeightType::kIQ4_XS>(desc, config.large_tiles, stream);
    case WeightType::kMXFP4:
      return launch_type<WeightType::kMXFP4>(desc, config.large_tiles, stream);
    case WeightType::kTQ1_0:
      return launch_type<WeightType::kTQ1_0>(desc, config.large_tiles, stream);
    case WeightType::kTQ2_0:
      return launch_type<WeightType::kTQ2_0>(desc, config.large_tiles, stream);
    case WeightType::kNVFP4:
      return launch_type<WeightType::kNVFP4>(desc, config.large_tiles, stream);
    case WeightType::kQ1_0:
      return launch_type<WeightType::kQ1_0>(desc, config.large_tiles, stream);
    case WeightType::kQ2_0:
      return launch_type<WeightType::kQ2_0>(desc, config.large_tiles, stream);
    case WeightType::kIQ3_S:
      return launch_type<WeightType::kIQ3_S>(desc, config.large_tiles, stream);
    case WeightType::kIQ3_XXS:
      return launch_type<WeightType::kIQ3_XXS>(desc, config.large_tiles, stream);
    case WeightType::kIQ2_S:
      return launch_type<WeightType::kIQ2_S>(desc, config.large_tiles, stream);
    case WeightType::kIQ2_XS:
      return launch_type<WeightType::kIQ2_XS>(desc, config.large_tiles, stream);
    case WeightType::kIQ2_XXS:
      return launch_type<WeightType::kIQ2_XXS>(desc, config.large_tiles, stream);
    case WeightType::kIQ1_S:
      return launch_type<WeightType::kIQ1_S>(desc, config.large_tiles, stream);
    case WeightType::kIQ1_M:
      return launch_type<WeightType::kIQ1_M>(desc, config.large_tiles, stream);
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16:
      break;
  }
  refuse_type(desc.w.type, "tensor-core kernel");
}

}  // namespace foretoken::cuda
