#pragma once

#include <cstdint>

#include "kernels/cuda/cuda_runtime_wrap.h"
#include "kernels/cuda/fetch_list.h"
#include "kernels/matmul/matmul_cuda.h"

namespace foretoken::cuda {

/// Router logits -> experts and weights of each row, as route_row; and the shared expert's weight, the sigmoid of its
/// own router's product.
struct RouteDesc {
  const float* logits = nullptr;  // [rows, num_experts]
  int num_experts = 0;
  int top_k = 0;
  int32_t* experts = nullptr;      // [rows, top_k] by falling probability; ties: lower index first
  float* weights = nullptr;        // [rows, top_k]
  float* shared_weight = nullptr;  // [rows] the product, then its sigmoid; nullptr: none
  int max_rows = 0;
  const int32_t* device_num_rows = nullptr;
};

/// Groups the rows of a window by expert: DeviceBuckets in device memory.
struct GroupDesc {
  const int32_t* experts = nullptr;  // [rows, top_k]
  int num_experts = 0;
  int top_k = 0;
  /// [num_experts] where each expert's matrices are among those on the device, or negative: it is not there, and has no
  /// bucket. nullptr: expert e is the e-th.
  const int32_t* places = nullptr;
  /// Experts that are not there and may come for these rows; nullptr: none. Those that do have buckets too, and are listed
  /// in `fetched`.
  const FetchCandidates* candidates = nullptr;
  FetchList* fetched = nullptr;
  int32_t* num_buckets = nullptr;      // [1]
  int32_t* bucket_experts = nullptr;   // [min(num_experts, max_rows * top_k)] places, of rising experts
  int32_t* begins = nullptr;           // [that + 1]
  int32_t* slots = nullptr;            // [max_rows * top_k]
  int32_t* num_tiles = nullptr;        // [kTileSizes]; nullptr: no lists of tiles
  BucketTile* tiles[kTileSizes] = {};  // [max_tiles(i)]
  int max_rows = 0;
  const int32_t* device_num_rows = nullptr;

  [[nodiscard]] int max_slots() const { return max_rows * top_k; }
  [[nodiscard]] int max_buckets() const { return num_experts < max_slots() ? num_experts : max_slots(); }
  [[nodiscard]] int64_t max_tiles(int size) const {
    return max_bucket_tiles(max_slots(), max_buckets(), tile_rows(size));
  }
  [[nodiscard]] DeviceBuckets buckets() const {
    DeviceBuckets all{num_buckets, bucket_experts, begins, slots, num_tiles, {}};
    for (int i = 0; i < kTileSizes; ++i) all.tiles[i] = tiles[i];
    return all;
  }
};

/// num_experts has a kernel: 1 .. kMaxExperts.
inline constexpr int kMaxExperts = 1024;

void launch(const RouteDesc& desc, const Stream& stream);
void launch(const GroupDesc& desc, const Stream& stream);
/// Both, in one launch where a window is small enough for it. REQUIRES: `group` is of the experts that `route` leaves.
void launch(const RouteDesc& route, const GroupDesc& group, const Stream& stream);

}  // namespace foretoken::cuda
