#include "kernels/select/cycle_cuda.h"

#include "kernels/base/error.h"
#include "kernels/base/math.h"
#include "kernels/cuda/cuda_language.h"

namespace foretoken::cuda {

namespace {

constexpr int kThreads = 256;

// blockIdx.y: row.
__global__ void __launch_bounds__(kThreads) cuda_copy_rows(CopyRowsDesc a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, row = blockIdx.y;
  if (i >= a.num_cols) return;
  const int64_t from = row + (a.from_row == nullptr ? 0 : *a.from_row),
                to = row + (a.to_row == nullptr ? 0 : *a.to_row);
  a.to[to * a.num_cols + i] = a.from[from * a.num_cols + i];
}

// blockIdx.x: row, of which a prompt chunk can have more than a grid's y.
__global__ void __launch_bounds__(kThreads) cuda_scatter_rows(ScatterRowsDesc a) {
  const int64_t i = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x, row = blockIdx.x;
  if (i < a.num_cols) a.to[a.to_rows[row] * a.num_cols + i] = a.from[row * a.num_cols + i];
}

__global__ void __launch_bounds__(kThreads) cuda_silu_mul(SiluMulDesc a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < a.num_values) a.gate[i] = math::silu(a.gate[i]) * a.up[i];
}

__global__ void cuda_take_draft(TakeDraftDesc a) {
  if (threadIdx.x != 0) return;
  const int32_t forced = a.forced[a.index];
  a.window_ids[a.index + 1] = forced >= 0 ? forced : *a.chosen;
  a.shares[a.index] = *a.share;
}

// One warp, a lane a draft.
__global__ void __launch_bounds__(kWarpSize) cuda_accept(AcceptDesc a) {
  const int lane = static_cast<int>(threadIdx.x);
  const bool wrong = lane + 1 >= a.num_rows || a.window_ids[lane + 1] != a.choices[lane];
  int first_wrong = wrong ? lane : kWarpSize;
  for (int half = kWarpSize / 2; half > 0; half /= 2) {
    const int other = __shfl_xor_sync(kAllLanes, first_wrong, half);
    first_wrong = other < first_wrong ? other : first_wrong;
  }
  if (lane != 0) return;
  *a.num_accepted = first_wrong;
  if (a.follow == nullptr) return;
  FollowScalars follow;
  follow.rows.num_rows = first_wrong + 1;
  follow.rows.position = a.window->position + 1;
  follow.outputs.num_rows = 1;
  follow.outputs.position = follow.rows.position + first_wrong;
  follow.first_output = first_wrong;
  *a.follow = follow;
}

unsigned blocks_of(int64_t values) {
  return static_cast<unsigned>((values + kThreads - 1) / kThreads);
}

}  // namespace

void launch(const CopyRowsDesc& desc, const Stream& stream) {
  launch(stream, {{blocks_of(desc.num_cols), static_cast<unsigned>(desc.num_rows)}, {kThreads}}, "cuda_copy_rows",
         cuda_copy_rows, desc);
}

void launch(const ScatterRowsDesc& desc, const Stream& stream) {
  if (desc.num_rows == 0) return;
  launch(stream, {{static_cast<unsigned>(desc.num_rows), blocks_of(desc.num_cols)}, {kThreads}}, "cuda_scatter_rows",
         cuda_scatter_rows, desc);
}

void launch(const SiluMulDesc& desc, const Stream& stream) {
  launch(stream, {{blocks_of(desc.num_values)}, {kThreads}}, "cuda_silu_mul", cuda_silu_mul, desc);
}

void launch(const TakeDraftDesc& desc, const Stream& stream) {
  launch(stream, {{1}, {kWarpSize}}, "cuda_take_draft", cuda_take_draft, desc);
}

void launch(const AcceptDesc& desc, const Stream& stream) {
  FT_CHECK(desc.num_rows >= 1 && desc.num_rows <= kWarpSize);
  launch(stream, {{1}, {kWarpSize}}, "cuda_accept", cuda_accept, desc);
}

}  // namespace foretoken::cuda
