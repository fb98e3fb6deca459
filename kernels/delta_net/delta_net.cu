#include "kernels/delta_net/delta_net_cuda.h"

#include <type_traits>

#include "kernels/base/error.h"
#include "kernels/matmul/float_dot_cuda.cuh"

namespace foretoken::cuda {

namespace {

constexpr int kMaxStateSize = 128;
constexpr int kMaxTaps = 8;
constexpr int kRowsAtOnce = 8;  // of the convolution

/// Rows [row, ...) of a bank.
__device__ __forceinline__ DeltaBank rows_from(const DeltaBank& bank, int64_t row, int64_t channels,
                                               int num_value_heads) {
  return {bank.raw == nullptr ? nullptr : bank.raw + row * channels, bank.mixed + row * channels,
          bank.beta + row * num_value_heads, bank.decay + row * num_value_heads};
}
/// The rows of the pass before, as the span's sequence has kept them.
__device__ __forceinline__ DeltaBank old_rows(const DeltaBanks& banks, const DeviceSpan& span, int64_t channels,
                                              int num_value_heads) {
  return rows_from(span.old_bank == 0 ? banks.banks[0] : banks.banks[1], int64_t{span.sequence} * banks.window_rows,
                   channels, num_value_heads);
}
/// Where the span's own rows go.
__device__ __forceinline__ DeltaBank new_rows(const DeltaBanks& banks, const DeviceSpan& span, int64_t channels,
                                              int num_value_heads) {
  if (span.is_window == 0) return rows_from(banks.chunk, span.first_row, channels, num_value_heads);
  return rows_from(span.old_bank == 0 ? banks.banks[1] : banks.banks[0], int64_t{span.sequence} * banks.window_rows,
                   channels, num_value_heads);
}

// A block of threads a head of q, k or v of a span (blockIdx.x, blockIdx.y), a thread a channel: its history, its rows
// and its place in the new bank are that thread's alone. Eight rows are asked for before the first is needed and share
// their barriers: one by one, each would wait for its load and for the sum of squares. One more block makes the gates. Told of four blocks, the compiler
// spills nothing.
__global__ void __launch_bounds__(kMaxStateSize, 4) cuda_convolve(ConvolveDesc a) {
  FT_SHARED(float, row_values, kRowsAtOnce* kMaxStateSize);
  FT_SHARED(float, inverse, kRowsAtOnce);
  start_next_kernel();
  wait_for_kernels_ahead();
  if (static_cast<int>(blockIdx.y) >= a.pass.counts->num_spans) return;  // the whole block
  const DeviceSpan span = a.pass.spans[blockIdx.y];
  const int heads = 2 * a.num_key_heads + a.num_value_heads, head = static_cast<int>(blockIdx.x);
  const int64_t channels = int64_t{heads} * a.state_size, first_row = span.first_row;
  const DeltaBank from = old_rows(a.banks, span, channels, a.num_value_heads),
                  to = new_rows(a.banks, span, channels, a.num_value_heads);
  if (head == heads) {
    const float* b = a.b + first_row * a.num_value_heads;
    const float* alpha = a.alpha + first_row * a.num_value_heads;
    for (int i = static_cast<int>(threadIdx.x); i < span.num_rows * a.num_value_heads;
         i += static_cast<int>(blockDim.x)) {
      const int h = i % a.num_value_heads;
      to.beta[i] = math::sigmoid(b[i]);
      to.decay[i] = math::exp(a.a[h] * math::softplus(alpha[i] + a.dt[h]));
    }
    return;
  }
  // Threads beyond the head (a warp has more lanes than a head of 16 has values) read its first channel's rows, so that
  // no load of those is in a branch, and write nothing.
  const bool inside = static_cast<int>(threadIdx.x) < a.state_size;
  const int64_t c = int64_t{head} * a.state_size + (inside ? threadIdx.x : 0);
  const float* rows = a.raw + first_row * channels + c;
  float* history = a.history + int64_t{span.sequence} * (a.taps - 1) * channels;

  // Row `at` of the span, before it those kept in the old bank, before them the history.
  const auto raw = [&](int at) {
    if (at >= 0) return load_global(rows + at * channels);
    if (!inside) return 0.0f;  // the first channel's thread moves this history
    if (-at <= span.kept) return from.raw[(span.kept + at) * channels + c];
    return history[(a.taps - 1 + at + span.kept) * channels + c];
  };
  // u[j]: raw row r - (kMaxTaps - 1) + j. With fewer taps the first weights and rows count for nothing.
  const int unused = kMaxTaps - a.taps;
  float weight[kMaxTaps], u[kMaxTaps - 1 + kRowsAtOnce];
  FT_UNROLL
  for (int j = 0; j < kMaxTaps; ++j) weight[j] = j >= unused ? a.weight[c * a.taps + j - unused] : 0.0f;
  FT_UNROLL
  for (int j = 0; j + 1 < kMaxTaps; ++j) u[j] = j >= unused ? raw(j - (kMaxTaps - 1)) : 0.0f;
  float moved[kMaxTaps];  // the history of the next pass, read before any of it is written
  const int behind = span.is_window == 0 ? span.num_rows : 0;
  FT_UNROLL
  for (int j = 0; j < kMaxTaps; ++j) moved[j] = j + 1 < a.taps ? raw(behind - (a.taps - 1) + j) : 0.0f;

  const bool is_normed = head < 2 * a.num_key_heads;  // the same in the whole block
  const int lane = static_cast<int>(threadIdx.x % kWarpSize), warp = static_cast<int>(threadIdx.x / kWarpSize);
  // Rows [r, r + count); kAll: count is kRowsAtOnce, so that nothing is asked between them.
  const auto take_rows = [&]<bool kAll>(std::bool_constant<kAll>, int r, int count) {
    FT_UNROLL
    for (int i = 0; i < kRowsAtOnce; ++i) {
      u[kMaxTaps - 1 + i] = load_global(rows + (r + (kAll || i < count ? i : count - 1)) * channels);
    }
    float x[kRowsAtOnce];
    FT_UNROLL
    for (int i = 0; i < kRowsAtOnce; ++i) {
      if (!kAll && i >= count) continue;
      if (to.raw != nullptr && inside) to.raw[(r + i) * channels + c] = u[kMaxTaps - 1 + i];
      float y = 0.0f;
      FT_UNROLL
      for (int j = 0; j < kMaxTaps; ++j) {
        if (j >= unused) y = __fmaf_rn(weight[j], u[i + j], y);
      }
      x[i] = math::silu(y);
      if (is_normed && inside) row_values[i * kMaxStateSize + threadIdx.x] = x[i];
    }
    if (is_normed) {
      __syncthreads();
      for (int i = warp; i < count; i += static_cast<int>(blockDim.x / kWarpSize)) {
        const float* values = row_values + i * kMaxStateSize;
        const float sum = warp_dot(values, values, a.state_size, lane);
        if (lane == 0) inverse[i] = l2_inverse(sum, a.eps);
      }
      __syncthreads();
    }
    FT_UNROLL
    for (int i = 0; i < kRowsAtOnce; ++i) {
      if (!inside || (!kAll && i >= count)) continue;
      to.mixed[(r + i) * channels + c] = is_normed ? x[i] * inverse[i] : x[i];
    }
    FT_UNROLL
    for (int j = 0; j + 1 < kMaxTaps; ++j) u[j] = u[kRowsAtOnce + j];
  };
  int r = 0;
  for (; r + kRowsAtOnce <= span.num_rows; r += kRowsAtOnce) take_rows(std::true_type{}, r, kRowsAtOnce);
  if (r < span.num_rows) take_rows(std::false_type{}, r, span.num_rows - r);

  if (!inside) return;
  FT_UNROLL
  for (int j = 0; j < kMaxTaps; ++j) {
    if (j + 1 < a.taps) history[j * channels + c] = moved[j];
  }
}

// A warp takes 32 value columns of one head of one span (blockIdx.x: head, blockIdx.y: columns, blockIdx.z: span): each
// lane keeps its column of the state in registers for all rows, so the state is read once and written once; of 128
// values the last 16 lie in shared memory, since 255 registers do not hold them all and spills go further. More warps
// would not help: along a column everything is one chain of fma.
template <int kSize>
__global__ void __launch_bounds__(kWarpSize) cuda_delta_net(DeltaNetDesc a) {
  constexpr int kHeld = kSize < 112 ? kSize : 112;  // of a column in registers
  FT_SHARED(float, key, kSize);
  FT_SHARED(float, query, kSize);
  FT_SHARED(float, rest, (kSize > kHeld ? kSize - kHeld : 1) * kWarpSize);  // [value][lane]
  start_next_kernel();
  wait_for_kernels_ahead();
  if (static_cast<int>(blockIdx.z) >= a.pass.counts->num_spans) return;
  const DeviceSpan span = a.pass.spans[blockIdx.z];
  const int head = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x);
  const int key_head = a.grouped_heads ? head / (a.num_value_heads / a.num_key_heads) : head % a.num_key_heads;
  const int column = static_cast<int>(blockIdx.y) * kWarpSize + lane;
  const bool inside = column < kSize;
  const int64_t key_dim = int64_t{a.num_key_heads} * kSize, channels = 2 * key_dim + int64_t{a.num_value_heads} * kSize;
  const float scale = 1.0f / square_root(static_cast<float>(kSize));
  float* state = a.state + (int64_t{span.sequence} * a.num_value_heads + head) * kSize * kSize + (inside ? column : 0);
  const DeltaBank before = old_rows(a.banks, span, channels, a.num_value_heads),
                  own = new_rows(a.banks, span, channels, a.num_value_heads);

  float s[kHeld];
  FT_UNROLL
  for (int i = 0; i < kHeld; ++i) s[i] = inside ? state[i * kSize] : 0.0f;
  for (int i = kHeld; i < kSize; ++i) rest[(i - kHeld) * kWarpSize + lane] = inside ? state[i * kSize] : 0.0f;

  const int num_committed = span.replay + (span.is_window == 0 ? span.num_rows : 1);
  for (int r = -span.replay; r < span.num_rows; ++r) {
    const int row = r < 0 ? span.kept + r : r;
    const float* mixed = (r < 0 ? before.mixed : own.mixed) + row * channels;
    const int64_t gate = int64_t{row} * a.num_value_heads + head;
    const float decay = (r < 0 ? before.decay : own.decay)[gate], beta = (r < 0 ? before.beta : own.beta)[gate];
    const float v = inside ? mixed[2 * key_dim + head * kSize + column] : 0.0f;
    __syncwarp();  // nobody reads the last row's key any more
    for (int i = lane; i < kSize; i += kWarpSize) {
      key[i] = mixed[key_dim + key_head * kSize + i];
      query[i] = mixed[key_head * kSize + i];
    }
    __syncwarp();
    float m = 0.0f;
    FT_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      s[i] = s[i] * decay;
      m = __fmaf_rn(s[i], key[i], m);
    }
    for (int i = kHeld; i < kSize; ++i) {
      float& value = rest[(i - kHeld) * kWarpSize + lane];
      value = value * decay;
      m = __fmaf_rn(value, key[i], m);
    }
    const float d = beta * (v - m);
    if constexpr (kHeld < kSize) __syncwarp();  // or the compiler keeps `rest` in registers after all
    float sum = 0.0f;
    FT_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      s[i] = __fmaf_rn(key[i], d, s[i]);
      sum = __fmaf_rn(s[i], query[i], sum);
    }
    for (int i = kHeld; i < kSize; ++i) {
      float& value = rest[(i - kHeld) * kWarpSize + lane];
      value = __fmaf_rn(key[i], d, value);
      sum = __fmaf_rn(value, query[i], sum);
    }
    if (r >= 0 && inside) {
      const int64_t out_row = int64_t{span.first_row} + r;
      a.out[(out_row * a.num_value_heads + head) * kSize + column] = sum * scale;
    }
    if (r + span.replay + 1 == num_committed && inside) {
      FT_UNROLL
      for (int i = 0; i < kHeld; ++i) state[i * kSize] = s[i];
      for (int i = kHeld; i < kSize; ++i) state[i * kSize] = rest[(i - kHeld) * kWarpSize + lane];
    }
  }
}

template <int kSize>
void launch_size(const DeltaNetDesc& desc, const Stream& stream) {
  const LaunchShape shape{
      {static_cast<unsigned>(desc.num_value_heads), static_cast<unsigned>((kSize + kWarpSize - 1) / kWarpSize),
       static_cast<unsigned>(desc.pass.max_spans)},
      {kWarpSize}};
  launch(stream, shape, "cuda_delta_net", cuda_delta_net<kSize>, desc);
}

}  // namespace

bool delta_net_supports(int state_size) {
  return state_size == 16 || state_size == 32 || state_size == 64 || state_size == 128;
}

void launch(const ConvolveDesc& desc, const Stream& stream) {
  FT_CHECK(desc.taps >= 1 && desc.taps <= kMaxTaps && delta_net_supports(desc.state_size));
  FT_CHECK(desc.banks.window_rows > 0 && desc.pass.max_spans > 0);
  const int heads = 2 * desc.num_key_heads + desc.num_value_heads;
  launch(stream,
         {{static_cast<unsigned>(heads + 1), static_cast<unsigned>(desc.pass.max_spans)},
          {static_cast<unsigned>(desc.state_size < kWarpSize ? kWarpSize : desc.state_size)}},
         "cuda_convolve", cuda_convolve, desc);
}

void launch(const DeltaNetDesc& desc, const Stream& stream) {
  switch (desc.state_size) {
    case 16:
      return launch_size<16>(desc, stream);
    case 32:
      return launch_size<32>(desc, stream);
    case 64:
      return launch_size<64>(desc, stream);
    case 128:
      return launch_size<128>(desc, stream);
    default:
      FT_CHECK(delta_net_supports(desc.state_size));
  }
}

}  // namespace foretoken::cuda
