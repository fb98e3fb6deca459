#include "kernels/select/windows_cuda.h"

#include "kernels/base/error.h"
#include "kernels/cuda/cuda_language.h"

namespace foretoken::cuda {

namespace {

static_assert(kMaxWindow <= kWarpSize);

// A thread a window.
__global__ void __launch_bounds__(kWarpSize) cuda_extend_windows(ExtendWindowsDesc a) {
  start_next_kernel();
  wait_for_kernels_ahead();
  const int w = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (w >= a.num_windows) return;
  const DeviceSpan window = a.windows.spans[w];
  DeviceSpan& step = a.steps.spans[w];
  const int before = window.first_row + step.position - window.position;  // the row before the new token
  int32_t* to = a.window_ids + before + 1;
  if (*to < 0) *to = a.chosen[window.sequence];
  a.window_shares[before] = a.shares[window.sequence];
  a.step_ids[step.first_row] = *to;
  ++step.position;
}

__device__ __forceinline__ DeviceSpan span_of_rows(int first_row, int num_rows, int position, int sequence) {
  DeviceSpan span;
  span.first_row = span.window_row = first_row;
  span.num_rows = num_rows;
  span.position = position;
  span.sequence = sequence;
  return span;
}

// A warp a window, a lane a row.
__global__ void __launch_bounds__(kWarpSize) cuda_accept(AcceptDesc a) {
  start_next_kernel();
  wait_for_kernels_ahead();
  const int w = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x);
  if (w >= a.windows.counts->num_spans) return;
  const DeviceSpan window = a.windows.spans[w];
  const int row = window.first_row + lane;
  const bool wrong = lane + 1 >= window.num_rows || a.window_ids[row + 1] != a.choices[row];
  int first_wrong = wrong ? lane : kWarpSize;
  for (int half = kWarpSize / 2; half > 0; half /= 2) {
    const int other = __shfl_xor_sync(kAllLanes, first_wrong, half);
    first_wrong = other < first_wrong ? other : first_wrong;
  }
  if (lane == 0) a.num_accepted[w] = first_wrong;
  const int num_followed = *a.num_followed;
  if (w >= num_followed) return;
  if (lane < window.num_rows) a.counted.span_of_row[row] = lane <= first_wrong ? w : -1;
  if (lane != 0) return;
  a.counted.spans[w] = span_of_rows(row, first_wrong + 1, window.position + 1, window.sequence);
  a.last.spans[w] = span_of_rows(w, 1, window.position + 1 + first_wrong, window.sequence);
  a.last.span_of_row[w] = w;
  a.last_rows[w] = row + first_wrong;
  if (w + 1 < num_followed) return;
  *a.counted.counts = {row + first_wrong + 1, num_followed};
  *a.last.counts = {num_followed, num_followed};
}

}  // namespace

void launch(const ExtendWindowsDesc& desc, const Stream& stream) {
  FT_CHECK(desc.num_windows > 0);
  launch(stream, {{static_cast<unsigned>((desc.num_windows + kWarpSize - 1) / kWarpSize)}, {kWarpSize}},
         "cuda_extend_windows", cuda_extend_windows, desc);
}

void launch(const AcceptDesc& desc, const Stream& stream) {
  FT_CHECK(desc.windows.max_spans > 0);
  launch(stream, {{static_cast<unsigned>(desc.windows.max_spans)}, {kWarpSize}}, "cuda_accept", cuda_accept, desc);
}

}  // namespace foretoken::cuda
