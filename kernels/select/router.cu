#include "kernels/select/router_cuda.h"

#include "kernels/base/error.h"
#include "kernels/matmul/float_dot_cuda.cuh"

namespace foretoken::cuda {

namespace {

constexpr int kPerLane = kMaxExperts / kWarpSize;
// Sums below it would blow rounding noise up; as kSmallestWeightSum of moe/router.cpp.
constexpr float kSmallestWeightSum = 6.103515625e-5f;

/// The better of two (value, index) pairs: the larger value, of equals the lower index.
__device__ __forceinline__ bool better(float x, int at, float y, int than) {
  return x > y || (x == y && at < than);
}

// A warp a row, a lane every 32nd expert: the lanes of rule 2. kCount: experts a lane, at most.
template <int kCount>
__global__ void __launch_bounds__(kWarpSize) cuda_route(RouteDesc a) {
  const int64_t row = blockIdx.x;
  if (a.device_num_rows != nullptr && row >= *a.device_num_rows) return;
  const int lane = static_cast<int>(threadIdx.x);
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
    }
  }
  __syncwarp();
  const float divisor = weight_sum > kSmallestWeightSum ? weight_sum : kSmallestWeightSum;
  for (int rank = lane; rank < a.top_k; rank += kWarpSize) {
    float* weight = a.weights + row * a.top_k + rank;
    *weight = *weight / divisor;
  }

  if (a.shared_router != nullptr) {
    const float gate = warp_dot(a.shared_router, a.x + row * a.num_cols, a.num_cols, lane);
    if (lane == 0) a.shared_weight[row] = math::sigmoid(gate);
  }
}

// One block of threads, a thread an expert. Every thread walks all slots: 72 in a window of nine rows, and in a prompt
// chunk of 256 the 2048 of them take some ten microseconds beside milliseconds of matrices.
__global__ void __launch_bounds__(kMaxExperts) cuda_group_by_expert(GroupDesc a) {
  FT_SHARED(int32_t, counts, kMaxExperts);  // slots, then before_slots
  FT_SHARED(int32_t, used, kMaxExperts);    // 1 where an expert has slots, then buckets before it
  const int num_rows = a.device_num_rows == nullptr ? a.max_rows : *a.device_num_rows;
  const int num_slots = (num_rows < a.max_rows ? num_rows : a.max_rows) * a.top_k;
  const int e = static_cast<int>(threadIdx.x);
  const int place = e >= a.num_experts ? -1 : a.places == nullptr ? e : a.places[e];
  int count = 0;
  if (place >= 0) {
    for (int slot = 0; slot < num_slots; ++slot) count += a.experts[slot] == e ? 1 : 0;
  }
  counts[e] = count;
  used[e] = count > 0 ? 1 : 0;
  __syncthreads();
  // Sums over all experts up to and with this one.
  for (int step = 1; step < static_cast<int>(blockDim.x); step *= 2) {
    const int more_slots = e >= step ? counts[e - step] : 0, more_buckets = e >= step ? used[e - step] : 0;
    __syncthreads();
    counts[e] += more_slots;
    used[e] += more_buckets;
    __syncthreads();
  }
  if (count > 0) {
    const int bucket = used[e] - 1;
    int at = counts[e] - count;
    a.bucket_experts[bucket] = place;
    a.begins[bucket] = at;
    for (int slot = 0; slot < num_slots; ++slot) {
      if (a.experts[slot] == e) a.slots[at++] = slot;
    }
  }
  if (e + 1 == static_cast<int>(blockDim.x)) {
    *a.num_buckets = used[e];
    a.begins[used[e]] = counts[e];  // all slots, or fewer with places
  }
}

}  // namespace

void launch(const RouteDesc& desc, const Stream& stream) {
  FT_CHECK(desc.num_experts <= kMaxExperts && desc.top_k >= 1 && desc.top_k <= desc.num_experts);
  const LaunchShape shape{{static_cast<unsigned>(desc.max_rows)}, {kWarpSize}};
  if (desc.num_experts <= 4 * kWarpSize) return launch(stream, shape, "cuda_route", cuda_route<4>, desc);
  if (desc.num_experts <= 8 * kWarpSize) return launch(stream, shape, "cuda_route", cuda_route<8>, desc);
  launch(stream, shape, "cuda_route", cuda_route<kPerLane>, desc);
}

void launch(const GroupDesc& desc, const Stream& stream) {
  FT_CHECK(desc.num_experts <= kMaxExperts);
  const unsigned threads = static_cast<unsigned>((desc.num_experts + kWarpSize - 1) / kWarpSize * kWarpSize);
  launch(stream, {{1}, {threads}}, "cuda_group_by_expert", cuda_group_by_expert, desc);
}

}  // namespace foretoken::cuda
