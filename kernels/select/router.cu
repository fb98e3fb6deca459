#include "kernels/select/router_cuda.h"

#include "kernels/base/error.h"
#include "kernels/matmul/float_dot_cuda.cuh"

namespace foretoken::cuda {

namespace {

constexpr int kPerLane = kMaxExperts / kWarpSize;
// What one block routes and groups at once; more rows are routed by a block each.
constexpr int kMostJoinedRows = 32, kMostJoinedSlots = 1024;
// Sums below it would blow rounding noise up; as kSmallestWeightSum of moe/router.cpp.
constexpr float kSmallestWeightSum = 6.103515625e-5f;

/// The better of two (value, index) pairs: the larger value, of equals the lower index.
__device__ __forceinline__ bool better(float x, int at, float y, int than) {
  return x > y || (x == y && at < than);
}

// A warp's row, a lane every 32nd expert: the lanes of rule 2. kCount: experts a lane, at most. chosen: [top_k] the
// experts once more, for the block; nullptr: nobody asks.
template <int kCount>
__device__ __forceinline__ void route_row(const RouteDesc& a, int64_t row, int lane, int32_t* chosen) {
  const float* logits = a.logits + row * a.num_experts;

  // Softmax, as softmax().
  float p[kCount];
  float largest = -__builtin_inff();
  FT_UNROLL
  for (int i = 0; i < kCount; ++i) {
    const int e = i * kWarpSize + lane;
    p[i] = e < a.num_experts ? logits[e] : -__builtin_inff();
    largest = p[i] > largest ? p[i] : largest;
  }
  largest = max_of_lanes(largest);
  float sum = 0.0f;
  FT_UNROLL
  for (int i = 0; i < kCount; ++i) {
    if (i * kWarpSize + lane >= a.num_experts) continue;
    p[i] = math::exp(p[i] - largest);
    sum = sum + p[i];
  }
  sum = fold_lanes(sum);
  FT_UNROLL
  for (int i = 0; i < kCount; ++i) p[i] = p[i] / sum;

  // top_k times the largest of those left; a chosen one becomes -1, below every probability.
  float weight_sum = 0.0f;
  for (int rank = 0; rank < a.top_k; ++rank) {
    float best = -1.0f;
    int best_at = a.num_experts;
    FT_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const int e = i * kWarpSize + lane;
      if (e < a.num_experts && better(p[i], e, best, best_at)) {
        best = p[i];
        best_at = e;
      }
    }
    for (int half = kWarpSize / 2; half > 0; half /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, best, half);
      const int other_at = __shfl_xor_sync(kAllLanes, best_at, half);
      if (better(other, other_at, best, best_at)) {
        best = other;
        best_at = other_at;
      }
    }
    FT_UNROLL
    for (int i = 0; i < kCount; ++i) {
      if (i * kWarpSize + lane == best_at) p[i] = -1.0f;
    }
    weight_sum = weight_sum + best;
    if (lane == 0) {
      a.experts[row * a.top_k + rank] = best_at;
      a.weights[row * a.top_k + rank] = best;
      if (chosen != nullptr) chosen[rank] = best_at;
    }
  }
  __syncwarp();
  const float divisor = weight_sum > kSmallestWeightSum ? weight_sum : kSmallestWeightSum;
  for (int rank = lane; rank < a.top_k; rank += kWarpSize) {
    float* weight = a.weights + row * a.top_k + rank;
    *weight = *weight / divisor;
  }

  if (a.shared_weight != nullptr && lane == 0) a.shared_weight[row] = math::sigmoid(a.shared_weight[row]);
}

template <int kCount>
__global__ void __launch_bounds__(kWarpSize) cuda_route(RouteDesc a) {
  start_next_kernel();
  wait_for_kernels_ahead();
  const int64_t row = blockIdx.x;
  if (a.device_num_rows != nullptr && row >= *a.device_num_rows) return;
  route_row<kCount>(a, row, static_cast<int>(threadIdx.x), nullptr);
}

/// Rows that there are.
template <class Desc>
__device__ __forceinline__ int rows_of(const Desc& a) {
  const int num_rows = a.device_num_rows == nullptr ? a.max_rows : *a.device_num_rows;
  return num_rows < a.max_rows ? num_rows : a.max_rows;
}

// What is summed over the experts: slots, buckets, and tiles of each size.
constexpr int kGroupSums = 2 + kTileSizes;

// Shared memory of take_place: the places that are free for missing experts, their number, and how many are missing in each warp.
constexpr int kFetchWords = kMostFetched + 1 + kMaxExperts / kWarpSize;

// The rule of FetchCandidates: the place of expert `e` if it comes for these rows, otherwise negative. All threads of the
// block, each for its own expert; sums: [threads] shared memory.
__device__ __forceinline__ int take_place(const GroupDesc& a, int e, bool is_used, bool is_missing, int32_t* sums,
                                          int32_t* words) {
  int32_t *free_places = words, *num_free = words + kMostFetched, *missing_of_warp = num_free + 1;
  const int lane = e % kWarpSize, warp = e / kWarpSize, num_warps = static_cast<int>(blockDim.x) / kWarpSize;
  const uint32_t missing = __ballot_sync(kAllLanes, is_missing);
  sums[e] = is_used ? 1 : 0;
  if (lane == 0) missing_of_warp[warp] = __popc(missing);
  __syncthreads();
  if (e == 0) {
    const FetchCandidates& candidates = *a.candidates;
    int count = 0;
    for (int i = 0; i < kMostFetched; ++i) {
      const int place = candidates.places[i], expert = candidates.experts[i];
      if (count < candidates.most && place >= 0 && (expert < 0 || sums[expert] == 0)) free_places[count++] = place;
    }
    *num_free = count;
    int total = 0;
    for (int w = 0; w < num_warps; ++w) total += missing_of_warp[w];
    a.fetched->count = total < count ? total : count;
  }
  int rank = __popc(missing & ((1u << lane) - 1u));
  for (int w = 0; w < warp; ++w) rank += missing_of_warp[w];
  __syncthreads();
  if (!is_missing || rank >= *num_free) return -1;
  a.fetched->experts[rank] = e;
  a.fetched->places[rank] = free_places[rank];
  return free_places[rank];
}

// A thread an expert. Every thread walks all slots, whose experts are `chosen`: 72 in a window of nine rows, and in a
// prompt chunk of 256 the 2048 of them take some ten microseconds beside milliseconds of matrices. sums:
// [kGroupSums][threads of the block] shared memory, fetch_words: [kFetchWords].
__device__ __forceinline__ void group_slots(const GroupDesc& a, const int32_t* chosen, int num_slots, int32_t* sums,
                                            int32_t* fetch_words) {
  const int e = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  int place = e >= a.num_experts ? -1 : a.places == nullptr ? e : a.places[e];
  int count = 0;
  if (place >= 0 || (a.candidates != nullptr && e < a.num_experts)) {
    for (int slot = 0; slot < num_slots; ++slot) count += chosen[slot] == e ? 1 : 0;
  }
  if (a.candidates != nullptr) {
    const bool is_missing = count > 0 && place < 0;
    const int taken = take_place(a, e, count > 0, is_missing, sums, fetch_words);
    if (is_missing) place = taken;
    if (place < 0) count = 0;
    __syncthreads();
  }
  const int num_sums = a.num_tiles == nullptr ? 2 : kGroupSums;
  int own[kGroupSums] = {count, count > 0 ? 1 : 0};
  FT_UNROLL
  for (int i = 0; i < kTileSizes; ++i) own[2 + i] = (count + tile_rows(i) - 1) / tile_rows(i);
  FT_UNROLL
  for (int i = 0; i < kGroupSums; ++i) {
    if (i < num_sums) sums[i * threads + e] = own[i];
  }
  __syncthreads();
  // Sums over all experts up to and with this one.
  for (int step = 1; step < threads; step *= 2) {
    int more[kGroupSums];
    FT_UNROLL
    for (int i = 0; i < kGroupSums; ++i) more[i] = e >= step && i < num_sums ? sums[i * threads + e - step] : 0;
    __syncthreads();
    FT_UNROLL
    for (int i = 0; i < kGroupSums; ++i) {
      if (i < num_sums) sums[i * threads + e] += more[i];
    }
    __syncthreads();
  }
  const int slots = sums[e], buckets = sums[threads + e];
  if (count > 0) {
    const int bucket = buckets - 1;
    int at = slots - count;
    a.bucket_experts[bucket] = place;
    a.begins[bucket] = at;
    for (int slot = 0; slot < num_slots; ++slot) {
      if (chosen[slot] == e) a.slots[at++] = slot;
    }
    FT_UNROLL
    for (int i = 0; i < kTileSizes; ++i) {
      if (2 + i >= num_sums) continue;
      BucketTile* list = a.tiles[i] + sums[(2 + i) * threads + e] - own[2 + i];
      for (int tile = 0; tile < own[2 + i]; ++tile) list[tile] = {bucket, tile * tile_rows(i)};
    }
  }
  if (e + 1 == threads) {
    *a.num_buckets = buckets;
    a.begins[buckets] = slots;  // all of them, or fewer with places
    FT_UNROLL
    for (int i = 0; i < kTileSizes; ++i) {
      if (2 + i < num_sums) a.num_tiles[i] = sums[(2 + i) * threads + e];
    }
  }
}

// One block of threads.
__global__ void __launch_bounds__(kMaxExperts) cuda_group_by_expert(GroupDesc a) {
  FT_SHARED(int32_t, sums, kGroupSums * kMaxExperts);
  FT_SHARED(int32_t, fetch_words, kFetchWords);
  start_next_kernel();
  wait_for_kernels_ahead();
  group_slots(a, a.experts, rows_of(a) * a.top_k, sums, fetch_words);
}

// Both steps of a window in one block: a warp a row, then a thread an expert, which finds the choices in shared memory.
template <int kCount>
__global__ void __launch_bounds__(kCount* kWarpSize, 1) cuda_route_and_group(RouteDesc route, GroupDesc group) {
  FT_SHARED(int32_t, sums, kGroupSums * kCount * kWarpSize);
  FT_SHARED(int32_t, chosen, kMostJoinedSlots);
  FT_SHARED(int32_t, fetch_words, kFetchWords);
  start_next_kernel();
  wait_for_kernels_ahead();
  const int num_rows = rows_of(route), lane = static_cast<int>(threadIdx.x % kWarpSize);
  for (int row = static_cast<int>(threadIdx.x / kWarpSize); row < num_rows;
       row += static_cast<int>(blockDim.x / kWarpSize)) {
    route_row<kCount>(route, row, lane, chosen + row * route.top_k);
  }
  __syncthreads();
  group_slots(group, chosen, num_rows * route.top_k, sums, fetch_words);
}

unsigned threads_for(int num_experts) {
  return static_cast<unsigned>((num_experts + kWarpSize - 1) / kWarpSize * kWarpSize);
}

}  // namespace

void launch(const RouteDesc& desc, const Stream& stream) {
  FT_CHECK(desc.num_experts <= kMaxExperts && desc.top_k >= 1 && desc.top_k <= desc.num_experts);
  const LaunchShape shape{{static_cast<unsigned>(desc.max_rows)}, {kWarpSize}};
  if (desc.num_experts <= 4 * kWarpSize) return launch(stream, shape, "cuda_route", cuda_route<4>, desc);
  if (desc.num_experts <= 8 * kWarpSize) return launch(stream, shape, "cuda_route", cuda_route<8>, desc);
  if (desc.num_experts <= 16 * kWarpSize) return launch(stream, shape, "cuda_route", cuda_route<16>, desc);
  launch(stream, shape, "cuda_route", cuda_route<kPerLane>, desc);
}

void launch(const RouteDesc& route, const GroupDesc& group, const Stream& stream) {
  FT_CHECK(group.experts == route.experts && group.num_experts == route.num_experts && group.top_k == route.top_k &&
           group.max_rows == route.max_rows && group.device_num_rows == route.device_num_rows);
  FT_CHECK(route.top_k >= 1 && route.top_k <= route.num_experts);
  // With more experts a thread has too few registers for a row's probabilities.
  if (route.max_rows > kMostJoinedRows || route.max_rows * route.top_k > kMostJoinedSlots ||
      route.num_experts > 16 * kWarpSize) {
    launch(route, stream);
    return launch(group, stream);
  }
  const LaunchShape shape{{1}, {threads_for(route.num_experts)}};
  const char* name = "cuda_route_and_group";
  if (route.num_experts <= 4 * kWarpSize) return launch(stream, shape, name, cuda_route_and_group<4>, route, group);
  if (route.num_experts <= 8 * kWarpSize) return launch(stream, shape, name, cuda_route_and_group<8>, route, group);
  launch(stream, shape, name, cuda_route_and_group<16>, route, group);
}

void launch(const GroupDesc& desc, const Stream& stream) {
  FT_CHECK(desc.num_experts <= kMaxExperts);
  launch(stream, {{1}, {threads_for(desc.num_experts)}}, "cuda_group_by_expert", cuda_group_by_expert, desc);
}

}  // namespace foretoken::cuda
