#include "kernels/attention/attention_cuda.h"

#include "kernels/base/error.h"
#include "kernels/cuda/cuda_rows.cuh"
#include "kernels/matmul/float_dot_cuda.cuh"

namespace foretoken::cuda {

namespace {

constexpr int kMaxHeadDim = 256;
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kQueries =
    8;  // that a block serves with one read of keys and values; one a warp when the scores become weights
static_assert(kQueries == kWarps);
constexpr int kValuesAhead = 8;

__device__ __forceinline__ void store_value(const DeviceKv& kv, int64_t at, float x) {
  if (kv.type == KvType::kF16) {
    static_cast<uint16_t*>(kv.data)[at] = float_to_half_bits(x);
  } else {
    static_cast<float*>(kv.data)[at] = x;
  }
}

/// Number of the first value of a head's key at one position of a sequence, among those that start at kv.data. The
/// value at that position is values_offset() further on.
__device__ __forceinline__ int64_t key_offset(const DeviceKv& kv, int64_t sequence, int64_t position, int64_t kv_head,
                                              int head_dim) {
  const int64_t page = kv.pages[sequence * kv.pages_per_sequence + position / kAttentionSplit];
  return page * kv.page_stride + (kv_head * 2 * kAttentionSplit + position % kAttentionSplit) * head_dim;
}
__device__ __forceinline__ int64_t values_offset(int head_dim) {
  return int64_t{kAttentionSplit} * head_dim;
}

__device__ __forceinline__ float with_bias(const float* x, const float* bias, int i) {
  return bias == nullptr ? x[i] : x[i] + bias[i];
}

// blockIdx.x: row; a warp a head: first the query heads, then keys, then values.
__global__ void __launch_bounds__(kThreads) cuda_prepare_attention(PrepareAttentionDesc a) {
  FT_SHARED(float, shared, kWarps* kMaxHeadDim);
  const int row = static_cast<int>(blockIdx.x);
  if (row >= a.pass.counts->num_rows) return;
  const int span_idx = a.pass.span_of_row[row];
  if (span_idx < 0) return;
  const DeviceSpan span = a.pass.spans[span_idx];
  const int warp = static_cast<int>(threadIdx.x / kWarpSize), lane = static_cast<int>(threadIdx.x % kWarpSize);
  float* values = shared + warp * kMaxHeadDim;
  const int64_t position = int64_t{span.position} + row - span.first_row;
  const int query_heads = a.q == nullptr ? 0 : a.num_heads, kv_heads = a.k == nullptr ? 0 : a.num_kv_heads;
  const int head = static_cast<int>(blockIdx.y) * kWarps + warp;
  if (head >= query_heads + 2 * kv_heads) return;  // no barrier of the whole block follows

  if (head >= query_heads + kv_heads) {
    const int h = head - query_heads - kv_heads;
    const float* v = a.v + (int64_t{row} * a.num_kv_heads + h) * a.head_dim;
    const int64_t at = key_offset(a.kv, span.sequence, position, h, a.head_dim) + values_offset(a.head_dim);
    const float* bias = a.v_bias == nullptr ? nullptr : a.v_bias + h * a.head_dim;
    for (int i = lane; i < a.head_dim; i += kWarpSize) store_value(a.kv, at + i, with_bias(v, bias, i));
    return;
  }
  const bool is_query = head < query_heads;
  const float* x = is_query ? a.q + row * a.q_stride + head * a.q_head_stride
                            : a.k + (int64_t{row} * a.num_kv_heads + head - query_heads) * a.head_dim;
  const float* weight = is_query ? a.q_norm : a.k_norm;
  const float* bias = is_query ? a.q_bias : a.k_bias;
  if (bias != nullptr) bias += is_query ? head * a.q_head_stride : int64_t{head - query_heads} * a.head_dim;
  for (int i = lane; i < a.head_dim; i += kWarpSize) values[i] = with_bias(x, bias, i);
  __syncwarp();
  if (weight != nullptr) {
    const float inverse = rms_inverse(warp_dot(values, values, a.head_dim, lane), a.head_dim, a.eps);
    for (int i = lane; i < a.head_dim; i += kWarpSize) values[i] = (values[i] * inverse) * weight[i];
  }
  __syncwarp();
  const float* cosines = a.rope + position * a.rope_dim;
  const int half = a.rope_dim / 2;
  for (int i = lane; i < half; i += kWarpSize) {  // each lane owns both values of its pairs
    const int first = a.adjacent_pairs ? 2 * i : i, second = a.adjacent_pairs ? 2 * i + 1 : i + half;
    const float front = values[first], back = values[second], c = cosines[i], s = cosines[i + half];
    values[first] = __fmaf_rn(front, c, -(back * s));
    values[second] = __fmaf_rn(front, s, back * c);
  }
  __syncwarp();
  if (is_query) {
    float* query = a.queries + (int64_t{row} * a.num_heads + head) * a.head_dim;
    for (int i = lane; i < a.head_dim; i += kWarpSize) query[i] = values[i];
  } else {
    const int64_t at = key_offset(a.kv, span.sequence, position, head - query_heads, a.head_dim);
    for (int i = lane; i < a.head_dim; i += kWarpSize) store_value(a.kv, at + i, values[i]);
  }
}

template <KvType kType>
__device__ __forceinline__ float load_kv(const void* from, int64_t at) {
  if constexpr (kType == KvType::kF16) {
    return half_bits_to_float(load_constant(static_cast<const uint16_t*>(from) + at));
  } else {
    return load_constant(static_cast<const float*>(from) + at);
  }
}

/// The largest score m, the sum l and a value o of one split join the running result, as join_split.
__device__ __forceinline__ float joined_max(float before, float m) {
  return before > m ? before : m;
}
__device__ __forceinline__ float weight_before(float before, float now) {
  return before == -__builtin_inff() ? 0.0f : math::exp(before - now);
}

__device__ __forceinline__ float gated(const AttentionDesc& a, int64_t row, int64_t head, int i, float x) {
  if (a.gate == nullptr) return x;
  const float gate = a.gate[row * a.gate_stride + head * a.gate_head_stride + i];
  return x * math::sigmoid(a.gate_bias == nullptr ? gate : gate + a.gate_bias[head * a.gate_head_stride + i]);
}

/// Where a split of a window's query leaves its result: values, then largest score and sum. Rows count from the first
/// window's.
__device__ __forceinline__ float* part_of(const AttentionDesc& a, int64_t window_row, int64_t head, int64_t split) {
  const int64_t query = window_row * a.num_heads + head;
  return a.parts + (query * a.kv.pages_per_sequence + split) * (a.head_dim + 2);
}

/// Blocks that the queries of one key-value head of a span need.
__host__ __device__ __forceinline__ int blocks_of_queries(int num_queries) {
  return (num_queries + kQueries - 1) / kQueries;
}

// A block serves kQueries queries of one key-value head and span: queries are (row, head of the group), row after row.
// blockIdx.x: group of queries, those of the first span first; blockIdx.y: key-value head; blockIdx.z: its share of the
// splits (one block walks all where they are not computed apart). kChunks: head_dim / 32, rounded up to a power of two.
template <KvType kType, int kChunks>
__global__ void __launch_bounds__(kThreads) cuda_attention(AttentionDesc a, bool windows_apart) {
  FT_SHARED(float, weights, kAttentionSplit* kQueries);  // [position][query] scores, then exp(score - max)
  FT_SHARED(float, largest, kQueries);
  FT_SHARED(float, sums, kQueries);
  const int warp = static_cast<int>(threadIdx.x / kWarpSize), lane = static_cast<int>(threadIdx.x % kWarpSize);
  const int group = a.num_heads / a.num_kv_heads, kv_head = static_cast<int>(blockIdx.y);
  const int num_spans = a.pass.counts->num_spans;
  int span_idx = 0, block = static_cast<int>(blockIdx.x);  // of the span's
  for (; span_idx < num_spans; ++span_idx) {
    const int blocks = blocks_of_queries(a.pass.spans[span_idx].num_rows * group);
    if (block < blocks) break;
    block -= blocks;
  }
  if (span_idx == num_spans) return;  // the whole block
  const DeviceSpan span = a.pass.spans[span_idx];
  const bool apart = windows_apart && span.is_window != 0;
  if (!apart && blockIdx.z > 0) return;  // the whole block
  const int num_queries = span.num_rows * group, first_query = block * kQueries;

  // Positions that each query sees, and its number among all heads of all rows. Queries beyond the last see nothing.
  int64_t seen[kQueries], number[kQueries];
  FT_UNROLL
  for (int q = 0; q < kQueries; ++q) {
    const int query = first_query + q, row = query / group;
    const bool used = query < num_queries;
    seen[q] = used ? int64_t{span.position} + row + 1 : 0;
    number[q] = (int64_t{span.first_row} + (used ? row : 0)) * a.num_heads + kv_head * group + query % group;
  }
  const int last = num_queries - first_query < kQueries ? num_queries - first_query - 1 : kQueries - 1;
  const int64_t most_seen = int64_t{span.position} + (first_query + last) / group + 1;  // later rows see more
  const int64_t num_splits = (most_seen + kAttentionSplit - 1) / kAttentionSplit;

  // A lane keeps its strided share of every query in registers.
  float query_values[kQueries][kChunks];
  FT_UNROLL
  for (int q = 0; q < kQueries; ++q) {
    FT_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      const int i = c * kWarpSize + lane;
      query_values[q][c] = i < a.head_dim ? a.queries[number[q] * a.head_dim + i] : 0.0f;
    }
  }

  // In the second half a thread owns value `dim` of kChunks queries.
  const int dim = static_cast<int>(threadIdx.x) % (kWarpSize * kChunks);
  const int own = static_cast<int>(threadIdx.x) / (kWarpSize * kChunks) * kChunks;
  const bool owns = dim < a.head_dim;
  float running_max[kChunks], running_sum[kChunks], running[kChunks];
  for (int i = 0; i < kChunks; ++i) {
    running_max[i] = -__builtin_inff();
    running_sum[i] = running[i] = 0.0f;
  }

  const int64_t stride = apart ? gridDim.z : 1;
  for (int64_t split = blockIdx.z; split < num_splits; split += stride) {
    const int64_t begin = split * kAttentionSplit;
    const int64_t base = key_offset(a.kv, span.sequence, begin, kv_head, a.head_dim);
    const int64_t left = most_seen - begin;
    const int count = static_cast<int>(left < kAttentionSplit ? left : kAttentionSplit);

    // Scores: a warp a position. The key's values are asked for all at once, those of the next position before this one
    // is folded.
    float next[kChunks];
    const auto load_key = [&](int j) {
      const int64_t key = base + int64_t{j < count ? j : count - 1} * a.head_dim;
      FT_UNROLL
      for (int c = 0; c < kChunks; ++c) {
        const int i = c * kWarpSize + lane;
        next[c] = i < a.head_dim ? load_kv<kType>(a.kv.data, key + i) : 0.0f;
      }
    };
    load_key(warp);
    for (int j = warp; j < count; j += kWarps) {
      float k[kChunks];
      FT_UNROLL
      for (int c = 0; c < kChunks; ++c) k[c] = next[c];
      load_key(j + kWarps);
      float dots[kQueries] = {};
      FT_UNROLL
      for (int c = 0; c < kChunks; ++c) {
        if (c * kWarpSize + lane >= a.head_dim) continue;
        FT_UNROLL
        for (int q = 0; q < kQueries; ++q) dots[q] = __fmaf_rn(query_values[q][c], k[c], dots[q]);
      }
      // Folds 32 -> 16 -> 8 -> 4 with the queries dealt out on the way, so that eight folds take 9 exchanges instead
      // of 40.
      FT_UNROLL
      for (int half = 16, left_over = kQueries; half > 0; half /= 2) {
        if (left_over > 1) {
          left_over /= 2;
          const bool upper = (lane & half) != 0;
          FT_UNROLL
          for (int q = 0; q < kQueries / 2; ++q) {
            if (q >= left_over) continue;
            const float keep = upper ? dots[q + left_over] : dots[q], give = upper ? dots[q] : dots[q + left_over];
            dots[q] = keep + __shfl_xor_sync(kAllLanes, give, half);
          }
        } else {
          dots[0] = dots[0] + __shfl_xor_sync(kAllLanes, dots[0], half);
        }
      }
      // The lane's bits 16, 8, 4 say which query it was left with.
      if (lane % 4 == 0) weights[j * kQueries + lane / 4] = a.scale * dots[0];
    }
    __syncthreads();

    // Largest score, weights and their sum: a warp a query.
    {
      int64_t mine = 0;
      FT_UNROLL
      for (int q = 0; q < kQueries; ++q) mine = q == warp ? seen[q] : mine;
      const int limit = static_cast<int>(mine - begin < count ? mine - begin : count);
      float m = -__builtin_inff();
      for (int j = lane; j < limit; j += kWarpSize) {
        const float score = weights[j * kQueries + warp];
        m = score > m ? score : m;
      }
      m = max_of_lanes(m) + 0.0f;  // -0 becomes +0, so that the first of two zeros does not show
      float sum = 0.0f;
      for (int j = lane; j < count; j += kWarpSize) {
        const float p = j < limit ? math::exp(weights[j * kQueries + warp] - m) : 0.0f;
        weights[j * kQueries + warp] = p;
        if (j < limit) sum = sum + p;
      }
      sum = fold_lanes(sum);
      if (lane == 0) {
        largest[warp] = m;
        sums[warp] = sum;
      }
    }
    __syncthreads();

    // Values in rising position: a thread a dimension.
    if (owns) {
      float out[kChunks] = {};
      const int64_t value = base + values_offset(a.head_dim) + dim;
      int64_t common = kAttentionSplit;  // positions that all own queries see: no comparison there
      int64_t own_seen[kChunks];
      FT_UNROLL
      for (int i = 0; i < kChunks; ++i) {
        own_seen[i] = 0;
        FT_UNROLL
        for (int q = 0; q < kQueries; ++q) {
          if (q == own + i) own_seen[i] = seen[q] - begin;
        }
        common = own_seen[i] < common ? own_seen[i] : common;
      }
      int j = 0;
      // Eight positions' values are asked for together.
      for (; j + kValuesAhead <= common; j += kValuesAhead) {
        float v[kValuesAhead];
        FT_UNROLL
        for (int p = 0; p < kValuesAhead; ++p) v[p] = load_kv<kType>(a.kv.data, value + int64_t{j + p} * a.head_dim);
        FT_UNROLL
        for (int p = 0; p < kValuesAhead; ++p) {
          FT_UNROLL
          for (int i = 0; i < kChunks; ++i) out[i] = __fmaf_rn(weights[(j + p) * kQueries + own + i], v[p], out[i]);
        }
      }
      for (; j < count; ++j) {
        const float v = load_kv<kType>(a.kv.data, value + int64_t{j} * a.head_dim);
        FT_UNROLL
        for (int i = 0; i < kChunks; ++i) {
          if (j < own_seen[i]) out[i] = __fmaf_rn(weights[j * kQueries + own + i], v, out[i]);
        }
      }
      FT_UNROLL
      for (int i = 0; i < kChunks; ++i) {
        if (own_seen[i] <= 0) continue;
        const float m = largest[own + i], l = sums[own + i];
        if (apart) {
          const int query = first_query + own + i;
          float* part = part_of(a, int64_t{span.window_row} + query / group, kv_head * group + query % group, split);
          part[dim] = out[i];
          if (dim == 0) {
            part[a.head_dim] = m;
            part[a.head_dim + 1] = l;
          }
        } else {
          const float now = joined_max(running_max[i], m), before = weight_before(running_max[i], now),
                      b = math::exp(m - now);
          running_sum[i] = __fmaf_rn(l, b, running_sum[i] * before);
          running[i] = __fmaf_rn(out[i], b, running[i] * before);
          running_max[i] = now;
        }
      }
    }
    __syncthreads();  // the weights are free for the next split
  }

  if (apart || !owns) return;
  FT_UNROLL
  for (int i = 0; i < kChunks; ++i) {
    const int query = first_query + own + i;
    if (query >= num_queries) continue;
    const int64_t row = int64_t{span.first_row} + query / group, head = kv_head * group + query % group;
    a.out[(row * a.num_heads + head) * a.head_dim + dim] = gated(a, row, head, dim, running[i] / running_sum[i]);
  }
}

constexpr int kMergedValues = 256;  // of a block: what is quantised together
constexpr int kPartsAhead = 4;

// Splits of windows that were computed apart, in rising order, and the int8 forms of what they give. blockIdx.x: row,
// blockIdx.y: 256 values of all its heads; a thread a value.
__global__ void __launch_bounds__(kMergedValues) cuda_merge_attention(AttentionDesc a) {
  FT_SHARED(float4, merged, kMergedValues / 4);
  const int64_t row = blockIdx.x, chunk = blockIdx.y, num_cols = int64_t{a.num_heads} * a.head_dim;
  if (row >= a.pass.counts->num_rows) return;  // as all that follow: the whole block
  const int span_idx = a.pass.span_of_row[row];
  if (span_idx < 0) return;
  const DeviceSpan span = a.pass.spans[span_idx];
  if (span.is_window == 0) return;
  const int64_t row_of_span = row - span.first_row,
                num_splits = (span.position + row_of_span + 1 + kAttentionSplit - 1) / kAttentionSplit;
  const int64_t value = chunk * kMergedValues + threadIdx.x;  // of the row
  if (value < num_cols) {
    const int64_t head = value / a.head_dim;
    const int dim = static_cast<int>(value % a.head_dim);
    const int64_t part_floats = a.head_dim + 2;
    const float* parts = part_of(a, span.window_row + row_of_span, head, 0);
    float max = -__builtin_inff(), sum = 0.0f, out = 0.0f;
    for (int64_t first = 0; first < num_splits; first += kPartsAhead) {
      float m[kPartsAhead], l[kPartsAhead], o[kPartsAhead];  // of some splits, asked for together
      FT_UNROLL
      for (int i = 0; i < kPartsAhead; ++i) {
        const float* part = parts + (first + i < num_splits ? first + i : first) * part_floats;
        m[i] = load_constant(part + a.head_dim);
        l[i] = load_constant(part + a.head_dim + 1);
        o[i] = load_constant(part + dim);
      }
      FT_UNROLL
      for (int i = 0; i < kPartsAhead; ++i) {
        if (first + i >= num_splits) continue;
        const float now = joined_max(max, m[i]), before = weight_before(max, now), b = math::exp(m[i] - now);
        sum = __fmaf_rn(l[i], b, sum * before);
        out = __fmaf_rn(o[i], b, out * before);
        max = now;
      }
    }
    const float result = gated(a, row, head, dim, out / sum);
    a.out[row * num_cols + value] = result;
    reinterpret_cast<float*>(merged)[threadIdx.x] = result;
  }
  if (a.by32.empty() && a.by256.empty()) return;
  __syncthreads();
  if (threadIdx.x < kWarpSize) {
    quantise_chunk(reinterpret_cast<const float*>(merged), num_cols, chunk, static_cast<int>(threadIdx.x), a.by32,
                   a.by256, row);
  }
}

template <KvType kType>
void launch_type(const AttentionDesc& desc, const LaunchShape& shape, bool apart, const Stream& stream) {
  const int chunks = (desc.head_dim + kWarpSize - 1) / kWarpSize;
  if (chunks == 1) return launch(stream, shape, "cuda_attention", cuda_attention<kType, 1>, desc, apart);
  if (chunks == 2) return launch(stream, shape, "cuda_attention", cuda_attention<kType, 2>, desc, apart);
  if (chunks <= 4) return launch(stream, shape, "cuda_attention", cuda_attention<kType, 4>, desc, apart);
  return launch(stream, shape, "cuda_attention", cuda_attention<kType, 8>, desc, apart);
}

}  // namespace

void launch(const PrepareAttentionDesc& desc, const Stream& stream) {
  FT_CHECK(desc.head_dim > 0 && desc.head_dim <= kMaxHeadDim && desc.rope_dim <= desc.head_dim &&
           desc.rope_dim % 2 == 0);
  const int heads = (desc.q == nullptr ? 0 : desc.num_heads) + (desc.k == nullptr ? 0 : 2 * desc.num_kv_heads);
  launch(stream,
         {{static_cast<unsigned>(desc.max_rows), static_cast<unsigned>((heads + kWarps - 1) / kWarps)}, {kThreads}},
         "cuda_prepare_attention", cuda_prepare_attention, desc);
}

AttentionConfig choose_config(const AttentionDesc& desc) {
  // A window gives few blocks: the splits are shared out. A prompt chunk gives enough, and its parts would take much
  // memory.
  if (desc.parts == nullptr) return {};
  const int64_t splits = desc.kv.pages_per_sequence;
  constexpr int64_t kMost =
      64;  // blocks that find nothing to do cost a microsecond or so together; more splits are walked
  return {true, static_cast<int>(splits < kMost ? splits : kMost)};
}

void launch(const AttentionDesc& desc, const AttentionConfig& config, const Stream& stream) {
  FT_CHECK(desc.head_dim > 0 && desc.head_dim <= kMaxHeadDim && desc.num_heads % desc.num_kv_heads == 0);
  FT_CHECK(!config.apart || desc.parts != nullptr);
  FT_CHECK(config.apart || (desc.by32.empty() && desc.by256.empty()));
  FT_CHECK(desc.max_rows > 0 && desc.pass.max_spans > 0 && desc.pass.max_spans <= desc.max_rows);
  // Each span's last block may have queries left over, but one span alone needs no more than all of them together.
  const int blocks = blocks_of_queries(desc.max_rows * (desc.num_heads / desc.num_kv_heads)) + desc.pass.max_spans - 1;
  const LaunchShape shape{{static_cast<unsigned>(blocks), static_cast<unsigned>(desc.num_kv_heads),
                           static_cast<unsigned>(config.apart ? config.blocks_of_splits : 1)},
                          {kThreads}};
  if (desc.kv.type == KvType::kF16) {
    launch_type<KvType::kF16>(desc, shape, config.apart, stream);
  } else {
    launch_type<KvType::kF32>(desc, shape, config.apart, stream);
  }
  if (config.apart) {
    const int64_t num_cols = int64_t{desc.num_heads} * desc.head_dim;
    FT_CHECK(desc.by32.empty() || desc.by32.num_blocks * 32 == num_cols);
    FT_CHECK(desc.by256.empty() || desc.by256.num_blocks * 256 == num_cols);
    const auto chunks = static_cast<unsigned>((num_cols + kMergedValues - 1) / kMergedValues);
    launch(stream, {{static_cast<unsigned>(desc.max_rows), chunks}, {kMergedValues}}, "cuda_merge_attention",
           cuda_merge_attention, desc);
  }
}

}  // namespace foretoken::cuda
