#include "kernels/rows/rms_norm_cuda.h"

#include "kernels/base/error.h"
#include "kernels/cuda/cuda_rows.cuh"
#include "kernels/matmul/float_dot_cuda.cuh"

namespace foretoken::cuda {

namespace {

constexpr int kMostThreads = 512;  // of a norm: with more, registers would not hold what is asked for at once

/// Neighbouring values that a thread asks for at once: four where all rows are whole pieces of 16 bytes, else one.
template <int kWidth>
struct alignas(4 * kWidth) Values {
  float x[kWidth];
};

/// Values [i, i + kWidth) of a row that this kernel does not write.
template <int kWidth>
__device__ __forceinline__ Values<kWidth> load_values(const float* row, int64_t i) {
  return load_global(reinterpret_cast<const Values<kWidth>*>(row + i));
}

/// Adds to x what a layer's part gives: `add`, or the experts in rank order and the shared one. All loads come first;
/// kRanks of the experts are asked for together, more go in rounds. kRanks 0: no experts.
template <int kRanks, int kWidth>
__device__ __forceinline__ void add_part(const NormRowsDesc& a, int64_t row, int64_t i, Values<kWidth>& x) {
  if constexpr (kRanks == 0) {
    if (a.add == nullptr) return;
    const Values<kWidth> more = load_values<kWidth>(a.add + row * a.num_cols, i);
    FT_UNROLL
    for (int v = 0; v < kWidth; ++v) x.x[v] = x.x[v] + more.x[v];
  } else {
    const ExpertSums& e = a.experts;
    Values<kWidth> sum{}, shared{};
    float shared_weight = 1.0f;
    if (e.shared != nullptr) {
      shared = load_values<kWidth>(e.shared + row * a.num_cols, i);
      if (e.shared_weight != nullptr) shared_weight = load_global(e.shared_weight + row);
    }
    for (int first = 0; first < e.top_k; first += kRanks) {
      float weights[kRanks];
      Values<kWidth> values[kRanks];
      FT_UNROLL
      for (int r = 0; r < kRanks; ++r) {
        const int64_t slot = row * e.top_k + (first + r < e.top_k ? first + r : first);
        weights[r] = load_global(e.weights + slot);
        values[r] = load_values<kWidth>(e.slots + slot * a.num_cols, i);
      }
      FT_UNROLL
      for (int r = 0; r < kRanks; ++r) {
        if (first + r >= e.top_k) continue;
        FT_UNROLL
        for (int v = 0; v < kWidth; ++v) sum.x[v] = __fmaf_rn(weights[r], values[r].x[v], sum.x[v]);
      }
    }
    FT_UNROLL
    for (int v = 0; v < kWidth; ++v) {
      if (e.shared != nullptr) sum.x[v] = __fmaf_rn(shared_weight, shared.x[v], sum.x[v]);
      x.x[v] = x.x[v] + sum.x[v];
    }
  }
}

/// All warps of the block quantise the row in shared memory, 256 values at a time.
__device__ __forceinline__ void quantise_shared_row(const float* values, int64_t num_cols, const QuantRows& by32,
                                                    const QuantRows& by256, int64_t row) {
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  if (by32.empty() && by256.empty()) return;
  for (int64_t chunk = threadIdx.x / kWarpSize; chunk * 256 < num_cols; chunk += blockDim.x / kWarpSize) {
    quantise_chunk(values + chunk * 256, num_cols, chunk, lane, by32, by256, row);
  }
}

// A block of threads a row. The sum of squares is one warp's: the contract has 32 sums, so more could not help. A thread's
// first values stay in registers, and the norm's weights for them are asked for first of all, while kernels ahead still run.
template <int kRanks, int kWidth>
__global__ void __launch_bounds__(kMostThreads, 1) cuda_rms_norm_rows(NormRowsDesc a) {
  using Piece = Values<kWidth>;
  FT_DYNAMIC_SHARED(float, values);  // [num_cols]
  FT_SHARED(float, inverse, 1);
  const int64_t own = int64_t{threadIdx.x} * kWidth, step = int64_t{blockDim.x} * kWidth;
  const bool has_own = own < a.num_cols;
  Piece first{}, first_weight{};
  start_next_kernel();
  if (a.weight != nullptr && has_own) first_weight = load_values<kWidth>(a.weight, own);
  wait_for_kernels_ahead();
  const int64_t row = blockIdx.x;
  if (a.device_num_rows != nullptr && row >= *a.device_num_rows) return;
  float* residual = a.residual + row * a.num_cols;
  const bool changes = kRanks > 0 || a.add != nullptr;
  for (int64_t i = own; i < a.num_cols; i += step) {
    Piece x = *reinterpret_cast<const Piece*>(residual + i);
    add_part<kRanks, kWidth>(a, row, i, x);
    if (changes) *reinterpret_cast<Piece*>(residual + i) = x;
    *reinterpret_cast<Piece*>(values + i) = x;
    if (i == own) first = x;
  }
  if (a.weight == nullptr) return;
  __syncthreads();
  if (threadIdx.x < kWarpSize) {
    const float sum = warp_dot(values, values, a.num_cols, static_cast<int>(threadIdx.x));
    if (threadIdx.x == 0) inverse[0] = rms_inverse(sum, a.num_cols, a.eps);
  }
  __syncthreads();
  const float scale = inverse[0];
  for (int64_t i = own; i < a.num_cols; i += step) {
    const Piece x = i == own ? first : *reinterpret_cast<const Piece*>(values + i),
                weight = i == own ? first_weight : load_values<kWidth>(a.weight, i);
    Piece y;
    FT_UNROLL
    for (int v = 0; v < kWidth; ++v) y.x[v] = (x.x[v] * scale) * weight.x[v];
    *reinterpret_cast<Piece*>(values + i) = y;
    if (a.out != nullptr) *reinterpret_cast<Piece*>(a.out + row * a.out_stride + i) = y;
  }
  __syncthreads();
  quantise_shared_row(values, a.num_cols, a.by32, a.by256, row);
}

// A block of threads a row, a warp a head: a lane holds every 32nd value of it, up to kHeld, and asks for all it needs at
// once.
template <int kHeld>
__global__ void __launch_bounds__(1024) cuda_gated_norm_rows(GatedNormRowsDesc a) {
  FT_DYNAMIC_SHARED(float, values);  // [num_heads * head_dim]
  const int64_t row = blockIdx.x, num_cols = int64_t{a.num_heads} * a.head_dim;
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  start_next_kernel();
  float weight[kHeld];
  FT_UNROLL
  for (int h = 0; h < kHeld; ++h) {
    const int i = h * kWarpSize + lane;
    weight[h] = i < a.head_dim ? load_global(a.weight + i) : 0.0f;
  }
  wait_for_kernels_ahead();
  if (a.device_num_rows != nullptr && row >= *a.device_num_rows) return;
  for (int head = static_cast<int>(threadIdx.x / kWarpSize); head < a.num_heads;
       head += static_cast<int>(blockDim.x / kWarpSize)) {
    const int64_t begin = row * num_cols + int64_t{head} * a.head_dim;
    float x[kHeld], z[kHeld];
    FT_UNROLL
    for (int h = 0; h < kHeld; ++h) {
      const int i = h * kWarpSize + lane;
      x[h] = i < a.head_dim ? a.x[begin + i] : 0.0f;  // out may be x
      z[h] = i < a.head_dim ? load_global(a.z + begin + i) : 0.0f;
    }
    float sum = 0.0f;
    FT_UNROLL
    for (int h = 0; h < kHeld; ++h) sum = __fmaf_rn(x[h], x[h], sum);  // squares: + 0 changes nothing
    const float inverse = rms_inverse(fold_lanes(sum), a.head_dim, a.eps);
    FT_UNROLL
    for (int h = 0; h < kHeld; ++h) {
      const int i = h * kWarpSize + lane;
      if (i >= a.head_dim) continue;
      const float y = ((x[h] * inverse) * weight[h]) * math::silu(z[h]);
      values[head * a.head_dim + i] = y;
      a.out[begin + i] = y;
    }
  }
  __syncthreads();
  quantise_shared_row(values, num_cols, a.by32, a.by256, row);
}

constexpr int kMostHeld = 8;  // of a head of 256

template <int kRanks>
void launch_ranks(const NormRowsDesc& desc, const LaunchShape& shape, const Stream& stream) {
  const char* name = "cuda_rms_norm_rows";
  if (desc.num_cols % 4 == 0 && desc.out_stride % 4 == 0) {
    launch(stream, shape, name, cuda_rms_norm_rows<kRanks, 4>, desc);
  } else {
    launch(stream, shape, name, cuda_rms_norm_rows<kRanks, 1>, desc);
  }
}

}  // namespace

NormConfig choose_config(const NormRowsDesc& desc) {
  // Four values a thread, as far as a block goes.
  const int64_t warps = (desc.num_cols + 4 * kWarpSize - 1) / (4 * kWarpSize);
  return {static_cast<int>(warps * kWarpSize < kMostThreads ? warps * kWarpSize : kMostThreads)};
}
NormConfig choose_config(const GatedNormRowsDesc& desc) {
  return {desc.num_heads >= 16 ? 512 : 256};
}

void launch(const NormRowsDesc& desc, const NormConfig& config, const Stream& stream) {
  FT_CHECK(desc.max_rows > 0 && config.threads % kWarpSize == 0);
  FT_CHECK(desc.by32.empty() || desc.by32.num_blocks * 32 == desc.num_cols);
  FT_CHECK(desc.by256.empty() || desc.by256.num_blocks * 256 == desc.num_cols);
  FT_CHECK(desc.add == nullptr || desc.experts.slots == nullptr);
  const LaunchShape shape{{static_cast<unsigned>(desc.max_rows)},
                          {static_cast<unsigned>(config.threads)},
                          static_cast<size_t>(desc.num_cols) * sizeof(float)};
  if (desc.experts.slots == nullptr) return launch_ranks<0>(desc, shape, stream);
  if (desc.experts.top_k <= 2) return launch_ranks<2>(desc, shape, stream);
  if (desc.experts.top_k <= 4) return launch_ranks<4>(desc, shape, stream);
  launch_ranks<8>(desc, shape, stream);
}

void launch(const GatedNormRowsDesc& desc, const NormConfig& config, const Stream& stream) {
  const int64_t num_cols = int64_t{desc.num_heads} * desc.head_dim;
  FT_CHECK(desc.max_rows > 0 && config.threads % kWarpSize == 0);
  FT_CHECK(desc.head_dim > 0 && desc.head_dim <= kMostHeld * kWarpSize);
  FT_CHECK(desc.by32.empty() || desc.by32.num_blocks * 32 == num_cols);
  FT_CHECK(desc.by256.empty() || desc.by256.num_blocks * 256 == num_cols);
  const LaunchShape shape{{static_cast<unsigned>(desc.max_rows)},
                          {static_cast<unsigned>(config.threads)},
                          static_cast<size_t>(num_cols) * sizeof(float)};
  const char* name = "cuda_gated_norm_rows";
  if (desc.head_dim <= kWarpSize) return launch(stream, shape, name, cuda_gated_norm_rows<1>, desc);
  if (desc.head_dim <= 4 * kWarpSize) return launch(stream, shape, name, cuda_gated_norm_rows<4>, desc);
  launch(stream, shape, name, cuda_gated_norm_rows<kMostHeld>, desc);
}

}  // namespace foretoken::cuda
