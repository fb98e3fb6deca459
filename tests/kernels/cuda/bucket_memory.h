#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cuda/cuda_runtime_wrap.h"
#include "kernels/select/router_cuda.h"

namespace foretoken::cuda::test {

/// Device memory for the buckets of a window.
struct BucketMemory {
  BucketMemory(int num_experts, int top_k, int max_rows)
      : num_buckets(4),
        experts(static_cast<size_t>(num_experts) * 4),
        begins(static_cast<size_t>(num_experts + 1) * 4),
        slots(static_cast<size_t>(max_rows * top_k) * 4),
        num_tiles(sizeof(int32_t) * kTileSizes) {
    const int num_slots = max_rows * top_k, num_buckets_at_most = std::min(num_experts, num_slots);
    for (int i = 0; i < kTileSizes; ++i) {
      tiles.emplace_back(static_cast<size_t>(max_bucket_tiles(num_slots, num_buckets_at_most, tile_rows(i))) *
                         sizeof(BucketTile));
    }
  }
  DeviceBuffer num_buckets, experts, begins, slots, num_tiles;
  std::vector<DeviceBuffer> tiles;  // of each size
};

/// How `experts` [max_rows, top_k] are grouped in it.
inline GroupDesc group_desc(const BucketMemory& memory, const DeviceBuffer& experts, int num_experts, int top_k,
                            int max_rows) {
  GroupDesc desc;
  desc.experts = experts.data<int32_t>();
  desc.num_experts = num_experts;
  desc.top_k = top_k;
  desc.num_buckets = memory.num_buckets.data<int32_t>();
  desc.bucket_experts = memory.experts.data<int32_t>();
  desc.begins = memory.begins.data<int32_t>();
  desc.slots = memory.slots.data<int32_t>();
  desc.num_tiles = memory.num_tiles.data<int32_t>();
  for (int i = 0; i < kTileSizes; ++i) desc.tiles[i] = memory.tiles[static_cast<size_t>(i)].data<BucketTile>();
  desc.max_rows = max_rows;
  return desc;
}

}  // namespace foretoken::cuda::test
