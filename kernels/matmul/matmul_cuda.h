#pragma once

#include <cstdint>
#include <span>

#include "kernels/cuda/cuda_blas.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_matrix.h"
#include "kernels/cuda/cuda_rows.h"
#include "kernels/cuda/cuda_runtime_wrap.h"

namespace foretoken::cuda {

/// Rows that a block of the tensor-core kernel takes at once: with gate and up, without, and of either where there are
/// many.
inline constexpr int kTileSizes = 3, kLargeTile = 2;
FORETOKEN_HD constexpr int tile_rows(int size) {
  return size == 0 ? 16 : size == 1 ? 32 : 128;
}

/// Rows [first, first + those of a tile) of a bucket, as far as it has them.
struct BucketTile {
  int32_t bucket, first;
};

/// Most tiles of `tile_rows` rows that buckets with so many slots together can have: the last one of each need not be full.
[[nodiscard]] constexpr int64_t max_bucket_tiles(int64_t num_slots, int64_t max_buckets, int rows) {
  return (num_slots + max_buckets * (rows - 1)) / rows;
}

/// The rows of a window, grouped by expert, as the device's router leaves them. A slot is a (row, rank) pair: row *
/// top_k + rank.
struct DeviceBuckets {
  const int32_t* num_buckets = nullptr;  // [1]
  const int32_t* experts = nullptr;      // [num_buckets] places among the device's experts
  const int32_t* begins = nullptr;       // [num_buckets + 1] into slots
  const int32_t* slots = nullptr;        // [all slots], rising within a bucket
  // All tiles of all buckets, bucket after bucket, for each number of rows; nullptr: nobody has asked.
  const int32_t* num_tiles = nullptr;        // [kTileSizes]
  const BucketTile* tiles[kTileSizes] = {};  // [num_tiles[i]]
};

/// Rows of one problem for cuBLAS: a window's, and zeros up to so many; more rows go in groups. Part of what --cublas
/// computes, like the constants of the contract: another number may mean another algorithm, and other bits.
inline constexpr int kBlasRows = 32;
/// Outputs of one problem at most: what it leaves of a head of 248,320 rows is 8 MB then, which a cache holds, not 64.
inline constexpr int64_t kMaxBlasOutputs = 32768;
/// Matrices with fewer rows stay with our own kernel, which takes one launch instead of three.
inline constexpr int64_t kLeastBlasOutputs = 64;

/// cuBLAS and the memory between the steps of a product, used by one product after the other on one stream. Owns
/// nothing.
struct BlasWork {
  const Blas* library = nullptr;    // nullptr: cuBLAS computes nothing
  void* workspace = nullptr;        // [kBlasWorkspaceBytes] the library's
  uint16_t* columns = nullptr;      // [2 * kBlasRows, max_cols] rows in 16-bit floats: high parts, low parts
  float* inverse_scales = nullptr;  // [kBlasRows]
  float* products = nullptr;        // [2 * kBlasRows, max_outputs]
  int64_t max_cols = 0;
  int64_t max_outputs = 0;  // a multiple of 16; at least twice a matrix's rows, or kMaxBlasOutputs
};

/// True for matrices that cuBLAS computes where it is asked to: by type and shape alone, so that no number of rows
/// changes it. F32 matrices, those of routed experts (buckets) and those of listed rows (groups) stay with our own kernels.
[[nodiscard]] constexpr bool blas_takes(WeightType type, int64_t num_rows) {
  return (type == WeightType::kF16 || type == WeightType::kBF16) && num_rows >= kLeastBlasOutputs;
}
[[nodiscard]] inline bool blas_takes(const DeviceMatrix& w) {
  return blas_takes(w.type, w.num_rows);
}

/// One more matrix that meets the same rows: y[r][o] [w.num_rows] = w[o] . x[r].
struct MatmulOutput {
  DeviceMatrix w;
  float* y = nullptr;
};
inline constexpr int kMaxMoreOutputs = 3;

/// One more bucket, of the expert that all rows have: row i of max_rows is row first_input + i of x and row first_output
/// + i of y. Its matrices have the type and the shape of the others'.
struct SharedBucket {
  DeviceMatrix w;   // data == nullptr: there is none
  DeviceMatrix up;  // as MatmulDesc::up
  int32_t first_input = 0, first_output = 0;
};

/// y[r][o] = W[o] . x[r], as matmul_rows; or, with `up`, y[r][o] = silu(W[o] . x[r]) * (up[o] . x[r]). Each product is
/// multiplied by its matrix's scale. Each weight is read once for all rows of a window.
///
/// With buckets, W holds the matrices of all experts, expert e's rows at [e * expert_stride, + num_outputs): each
/// bucket's slots meet their expert's matrix, input row slot / slots_per_input, output row slot. Without, row r of x
/// gives row r of y.
struct MatmulDesc {
  DeviceMatrix w;
  DeviceMatrix up;          // data == nullptr: plain product. Same type and shape as w
  int64_t num_outputs = 0;  // rows of w to compute, from its first; of one expert if there are buckets
  DeviceRows x;
  int max_rows = 0;                          // rows (with buckets: the largest number of slots a bucket can have)
  const int32_t* device_num_rows = nullptr;  // [1] in device memory, if fewer are known only there; not with buckets
  float* y = nullptr;
  int64_t y_stride = 0;  // values from row to row of y

  DeviceBuckets buckets;
  int max_buckets = 0;               // 0: no buckets
  int max_slots = 0;                 // of all buckets together; kernel kTiles asks, and for the lists of tiles
  int64_t expert_stride = 0;         // rows
  const float* scales = nullptr;     // with buckets, [experts on the device]: of w; nullptr: w.scale for all
  const float* up_scales = nullptr;  // the same of up
  int slots_per_input = 1;           // top_k where x has a row per token, 1 where it has one per slot
  SharedBucket shared;               // with buckets: one more

  // Only some groups of 16 rows of w, at least one: output 16 i + j is row 16 groups[i] + j; num_outputs counts as many
  // as the launch has blocks for, no fewer than there are. Of the last group, only the rows that w has.
  const int32_t* groups = nullptr;             // [num_outputs / 16]
  const int32_t* device_num_groups = nullptr;  // [1]

  // More matrices of w's type and columns in the same launch: of kernels kDot and kFloat, without up, buckets or groups.
  MatmulOutput more[kMaxMoreOutputs];
  int num_more = 0;

  [[nodiscard]] int64_t all_outputs() const {
    int64_t sum = num_outputs;
    for (int i = 0; i < num_more; ++i) sum += more[i].w.num_rows;
    return sum;
  }

  const BlasWork* blas =
      nullptr;  // with a library: cuBLAS computes it if blas_takes(w) and there are no buckets or groups
};

/// How a matmul is cut up. Any choice but kBlas gives the same bits.
struct MatmulConfig {
  enum class Kernel {
    kDot,    // dp4a, a warp for two outputs and up to kMaxDotRows rows: windows
    kTiles,  // int8 tensor cores over 64 outputs x a tile of rows: prompts
    kFloat,  // float matrices
    kBlas,   // F16 and BF16 matrices by cuBLAS: not the contract's bits, but the same for any number of rows
  };
  Kernel kernel = Kernel::kDot;
  int rows_at_once = 1;  // kDot: 1 to kMostExactDotRows, or kMaxDotRows; kFloat: 1, 2, 4, 8 or kMaxDotRows
  int warps_per_block = 4;
  int log2_slots = 3;  // kDot: 2^n blocks of one output a warp takes at once; fewer for short rows
  /// kFloat: of the 32 sums of an output, a lane has 1 (a warp an output, so that few outputs still make many warps) or
  /// 8 (eight outputs a warp, so that a load of half floats has 16 bytes).
  int lane_sums = 8;
  /// kDot: each block of threads looks how many of max_rows there are and does no more. rows_at_once is then 1, 2 or
  /// kMaxDotRows.
  bool counts_rows = false;
  bool large_tiles = false;  // kTiles: of 128 rows
  /// With counts_rows and buckets: the launch has about so many blocks of threads, as the device holds at once, which go
  /// through their bucket's outputs. 0: as many as there are outputs for.
  int held_blocks = 0;
};
/// Large tiles: for more rows than this (with buckets: in each, if all have as many), and so many blocks of threads that
/// a large GPU has work for nearly all its multiprocessors (132 of 9.0).
inline constexpr int kFewTileRows = 64;
inline constexpr int64_t kFewLargeTiles = 128;
/// From so many outputs on, eight a warp keep a GPU busy.
inline constexpr int64_t kManyFloatOutputs = 4096;

inline constexpr int kMaxDotRows = 12;
/// So many rows have a kernel for their number: those of a window of nine rows.
inline constexpr int kMostExactDotRows = 9;
/// Blocks of threads of kernel kDot that the compiler is told a multiprocessor is to hold.
FORETOKEN_HD constexpr int dot_blocks_held(int most_rows) {
  return most_rows >= 3 ? 3 : 4;
}

[[nodiscard]] MatmulConfig choose_config(const MatmulDesc& desc);
void launch(const MatmulDesc& desc, const MatmulConfig& config, const Stream& stream);
/// All of them, over the same rows of x, in as few launches as their types and kernels allow. REQUIRES: each computes
/// all rows of its matrix, side by side.
void launch_together(std::span<const MatmulDesc> descs, const Stream& stream);

// The kernels behind launch().
struct MatmulArguments;
[[nodiscard]] MatmulArguments matmul_arguments(const MatmulDesc& desc);
[[noreturn]] void refuse_type(WeightType type, const char* kernel);
void launch_quant_dot(const MatmulDesc& desc, const MatmulConfig& config, const Stream& stream);
void launch_quant_tiles(const MatmulDesc& desc, const MatmulConfig& config, const Stream& stream);
void launch_float_matmul(const MatmulDesc& desc, const MatmulConfig& config, const Stream& stream);
void launch_blas_matmul(const MatmulDesc& desc, const MatmulConfig& config, const Stream& stream);

}  // namespace foretoken::cuda
