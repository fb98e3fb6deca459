#include "kernels/base/error.h"
#include "kernels/cuda/cuda_language.h"
#include "kernels/formats/matrix.h"
#include "kernels/select/choose_cuda.h"
#include "kernels/select/gumbel.h"

// Three steps: each block of threads finds the largest logit of its part; each, knowing the largest of all, the best
// score of its part and its part of the softmax's sum; one block the best of all. Every comparison prefers the lower id
// among equals, so their order is free.

namespace foretoken::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = ChooseDesc::kBlocks;
constexpr int32_t kNone = 0x7fffffff;

struct Best {
  float value;
  int32_t id;
};

__device__ __forceinline__ Best none() {
  return {-__builtin_inff(), kNone};
}

/// The larger value; of equals the lower id. A value without an id loses against any.
__device__ __forceinline__ Best better(Best a, Best b) {
  if (b.id == kNone) return a;
  if (a.id == kNone || b.value > a.value || (b.value == a.value && b.id < a.id)) return b;
  return a;
}

__device__ __forceinline__ Best best_of_lanes(Best mine) {
  for (int half = kWarpSize / 2; half > 0; half /= 2) {
    mine = better(mine, Best{__shfl_xor_sync(kAllLanes, mine.value, half), __shfl_xor_sync(kAllLanes, mine.id, half)});
  }
  return mine;
}

// Results of the blocks: value and id of the largest, then of the best score, then the sum.
struct Work {
  float* largest;
  int32_t* largest_id;
  float* score;
  int32_t* score_id;
  float* sum;
};

__device__ __forceinline__ Work work_of(const ChooseDesc& a, int64_t row) {
  float* base = a.work + row * kBlocks * 5;
  return {base, reinterpret_cast<int32_t*>(base + kBlocks), base + 2 * kBlocks,
          reinterpret_cast<int32_t*>(base + 3 * kBlocks), base + 4 * kBlocks};
}

__device__ __forceinline__ int64_t logits_of(const ChooseDesc& a) {
  if (a.device_num_groups == nullptr) return a.num_logits;
  const int64_t groups = *a.device_num_groups;
  const int64_t beyond = (int64_t{a.groups[groups - 1]} + 1) * kInterleave - a.num_ids;
  const int64_t count = groups * kInterleave - (beyond > 0 ? beyond : 0);
  return count < a.num_logits ? count : a.num_logits;
}

__device__ __forceinline__ int32_t id_of(const ChooseDesc& a, int64_t i) {
  return a.groups == nullptr ? static_cast<int32_t>(i)
                             : a.groups[i / kInterleave] * kInterleave + static_cast<int32_t>(i % kInterleave);
}

/// The span of a row, or nullptr: nothing is chosen behind it.
__device__ __forceinline__ const DeviceSpan* span_of(const ChooseDesc& a, int64_t row) {
  if (row >= a.pass.counts->num_rows) return nullptr;
  const int span = a.pass.span_of_row[row];
  return span < 0 ? nullptr : a.pass.spans + span;
}

/// The largest of all parts, in every thread of the first warp.
__device__ __forceinline__ Best largest_of_all(const Work& work, int lane) {
  Best best = none();
  for (int i = lane; i < kBlocks; i += kWarpSize) best = better(best, Best{work.largest[i], work.largest_id[i]});
  return best_of_lanes(best);
}

__device__ __forceinline__ bool is_finite(float x) {
  return (math::bits_of(x) & 0x7f800000u) != 0x7f800000u;
}

/// True if the choice is the largest logit, whatever the noise.
__device__ __forceinline__ bool is_greedy(const SamplingScalars& sampling, Best largest) {
  return sampling.temperature == 0.0f || !is_finite(largest.value);
}

__global__ void __launch_bounds__(kThreads) cuda_find_largest(ChooseDesc a) {
  FT_SHARED(Best, warps, kThreads / kWarpSize);
  start_next_kernel();
  wait_for_kernels_ahead();
  const int64_t row = blockIdx.y, count = logits_of(a);
  if (span_of(a, row) == nullptr) return;
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  const float* logits = a.logits + row * a.logits_stride;
  Best best = none();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += int64_t{kBlocks} * kThreads) {
    const float x = logits[i];
    if (x == x) best = better(best, Best{x, id_of(a, i)});
  }
  best = best_of_lanes(best);
  if (lane == 0) warps[threadIdx.x / kWarpSize] = best;
  __syncthreads();
  if (threadIdx.x < kWarpSize) {
    best = best_of_lanes(lane < kThreads / kWarpSize ? warps[lane] : none());
    if (lane == 0) {
      const Work work = work_of(a, row);
      work.largest[blockIdx.x] = best.value;
      work.largest_id[blockIdx.x] = best.id;
    }
  }
}

__global__ void __launch_bounds__(kThreads) cuda_score(ChooseDesc a) {
  FT_SHARED(Best, shared_largest, 1);
  FT_SHARED(Best, warps, kThreads / kWarpSize);
  FT_SHARED(float, sums, kThreads / kWarpSize);
  start_next_kernel();
  wait_for_kernels_ahead();
  const int64_t row = blockIdx.y, count = logits_of(a);
  const DeviceSpan* span = span_of(a, row);
  if (span == nullptr) return;
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  const Work work = work_of(a, row);
  if (threadIdx.x < kWarpSize) {
    const Best found = largest_of_all(work, lane);
    if (lane == 0) shared_largest[0] = found;
  }
  __syncthreads();
  const Best largest = shared_largest[0];
  const SamplingScalars sampling = a.sampling[span->sequence];
  const bool greedy = is_greedy(sampling, largest);
  const uint64_t start = gumbel::stream_start(sampling.seed, int64_t{span->position} + row - span->first_row + 1);
  const float* logits = a.logits + row * a.logits_stride;
  Best best = none();
  float sum = 0.0f;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += int64_t{kBlocks} * kThreads) {
    const float below = logits[i] - largest.value;
    if (below > -16.0f) sum = sum + math::exp(below);
    if (greedy) continue;
    const float scaled = below / sampling.temperature;
    if (!(scaled > -__builtin_inff() && scaled <= 0.0f)) continue;  // NaN and -infinity never win
    const int32_t id = id_of(a, i);
    best = better(best, Best{scaled + gumbel::noise_from_bits(gumbel::noise_bits(start, id)), id});
  }
  best = best_of_lanes(best);
  sum = fold_lanes(sum);
  if (lane == 0) {
    warps[threadIdx.x / kWarpSize] = best;
    sums[threadIdx.x / kWarpSize] = sum;
  }
  __syncthreads();
  if (threadIdx.x < kWarpSize) {
    best = best_of_lanes(lane < kThreads / kWarpSize ? warps[lane] : none());
    sum = fold_lanes(lane < kThreads / kWarpSize ? sums[lane] : 0.0f);
    if (lane == 0) {
      work.score[blockIdx.x] = best.value;
      work.score_id[blockIdx.x] = best.id;
      work.sum[blockIdx.x] = sum;
    }
  }
}

// blockIdx.x: row; one warp.
__global__ void __launch_bounds__(kWarpSize) cuda_choose(ChooseDesc a) {
  start_next_kernel();
  wait_for_kernels_ahead();
  const int64_t row = blockIdx.x;
  const DeviceSpan* span = span_of(a, row);
  if (span == nullptr) return;
  const int lane = static_cast<int>(threadIdx.x);
  const Work work = work_of(a, row);
  const Best largest = largest_of_all(work, lane);
  Best best = none();
  float sum = 0.0f;
  for (int i = lane; i < kBlocks; i += kWarpSize) {
    best = better(best, Best{work.score[i], work.score_id[i]});
    sum = sum + work.sum[i];
  }
  best = best_of_lanes(best);
  sum = fold_lanes(sum);
  if (lane != 0) return;
  int32_t id = is_greedy(a.sampling[span->sequence], largest) ? largest.id : best.id;
  if (id == kNone) id = id_of(a, 0);  // every logit is NaN
  const int64_t to = a.by_sequence ? span->sequence : row;
  a.ids[to] = id;
  if (a.shares == nullptr) return;
  // Where id stands: with groups, a search among the rising groups.
  int64_t at = id;
  if (a.groups != nullptr) {
    int64_t low = 0, high = (logits_of(a) - 1) / kInterleave;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (a.groups[middle] < id / kInterleave) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    at = low * kInterleave + id % kInterleave;
  }
  a.shares[to] = math::exp(a.logits[row * a.logits_stride + at] - largest.value) / sum;
}

}  // namespace

void launch(const ChooseDesc& desc, const Stream& stream) {
  FT_CHECK(desc.num_logits > 0 && desc.work != nullptr && desc.sampling != nullptr && desc.pass.spans != nullptr);
  const auto rows = static_cast<unsigned>(desc.max_rows);
  launch(stream, {{kBlocks, rows}, {kThreads}}, "cuda_find_largest", cuda_find_largest, desc);
  launch(stream, {{kBlocks, rows}, {kThreads}}, "cuda_score", cuda_score, desc);
  launch(stream, {{rows}, {kWarpSize}}, "cuda_choose", cuda_choose, desc);
}

}  // namespace foretoken::cuda
