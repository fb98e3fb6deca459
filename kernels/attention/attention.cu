#include "kernels/attention/attention_cuda.h"

#include <type_traits>

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
  start_next_kernel();
  wait_for_kernels_ahead();
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

// How keys and values pass through shared memory. Each warp has a ring of kRingSlots slots of 512 bytes, which its lanes
// fill by one copy of 16 bytes each; a group of copies, waited for together, takes one slot or two. Keys: a group is
// one position or a few, all dimensions. Values: a group is kValues positions, of the 32 dimensions whose sums the warp
// has.
constexpr int kRingSlots = 8;
constexpr int kSlotBytes = 16 * kWarpSize;

// kWhole: rows are whole pieces of 16 bytes. Others (a head of 100, in halves) go value by value, without haste.
template <KvType kType, int kChunks, bool kWhole>
struct KvRing {
  using Value = std::conditional_t<kType == KvType::kF16, uint16_t, float>;
  static constexpr int kValuesOf16 = 16 / sizeof(Value);
  static constexpr int kRowValues = kWarpSize * kChunks;                                 // of a key in the ring
  static constexpr int kRowPieces = kRowValues / kValuesOf16;                            // of 16 bytes
  static constexpr int kKeySlots = kRowPieces > kWarpSize ? kRowPieces / kWarpSize : 1;  // of a group
  static constexpr int kKeys = kRowPieces > kWarpSize ? 1 : kWarpSize / kRowPieces;      // positions of a group
  static constexpr int kKeyGroups = kRingSlots / kKeySlots;
  static constexpr int kSlicePieces = kWarpSize / kValuesOf16;
  static constexpr int kValues = kWarpSize / kSlicePieces;
  static constexpr int kValueGroups = kRingSlots;

  const Value* data;  // of the layer
  Value* ring;        // the warp's
  int lane, head_dim;

  /// Values [i, i + kValuesOf16) of a row of head_dim.
  template <bool kOnce>
  __device__ __forceinline__ void start_piece(Value* to, int64_t row, int i) const {
    if constexpr (kWhole) {
      start_copy_16<kOnce>(to, data + row + i);
    } else {
      for (int v = 0; v < kValuesOf16 && i + v < head_dim; ++v) to[v] = load_global(data + row + i + v);
    }
  }
  /// Keys of positions [first, first + kKeys) of a split of `count` positions, whose keys begin at `base`, into the slot
  /// of group `group`. Positions that are not there are the last one again.
  __device__ __forceinline__ void start_keys(int64_t base, int first, int count, int group) const {
    Value* to = ring + group % kKeyGroups * (kKeySlots * kSlotBytes / static_cast<int>(sizeof(Value)));
    FT_UNROLL
    for (int s = 0; s < kKeySlots; ++s) {
      const int piece = s * kWarpSize + lane, position = first + piece / kRowPieces,
                i = piece % kRowPieces * kValuesOf16;
      if (i >= head_dim || first >= count) continue;
      start_piece</*kOnce=*/true>(to + piece * kValuesOf16, base + (position < count ? position : count - 1) * head_dim,
                                  i);
    }
    end_copy_group();
  }
  /// Value of position `key` of the group in chunk c of the lane.
  __device__ __forceinline__ float key_value(int group, int key, int c) const {
    const Value* from = ring + group % kKeyGroups * (kKeySlots * kSlotBytes / static_cast<int>(sizeof(Value)));
    return to_float(from[key * kRowValues + c * kWarpSize + lane]);
  }
  /// The same of values: dimensions [dim, dim + 32) of positions [first, first + kValues).
  __device__ __forceinline__ void start_values(int64_t base, int dim, int first, int count, int group) const {
    const int position = first + lane / kSlicePieces, i = dim + lane % kSlicePieces * kValuesOf16;
    if (i < head_dim && first < count) {
      Value* to = ring + group % kValueGroups * (kSlotBytes / static_cast<int>(sizeof(Value))) + lane * kValuesOf16;
      start_piece</*kOnce=*/kChunks == kWarps>(to, base + (position < count ? position : count - 1) * head_dim, i);
    }
    end_copy_group();
  }
  __device__ __forceinline__ float value(int group, int position) const {
    const Value* from = ring + group % kValueGroups * (kSlotBytes / static_cast<int>(sizeof(Value)));
    return to_float(from[position * kWarpSize + lane]);
  }

 private:
  static __device__ __forceinline__ float to_float(Value x) {
    if constexpr (kType == KvType::kF16) {
      return half_bits_to_float(x);
    } else {
      return x;
    }
  }
};

/// Folds eight sums of each lane 32 -> 16 -> 8 -> 4 -> 2 -> 1 with the queries dealt out on the way, so that it takes 9
/// exchanges instead of 40. The lane's bits 16, 8, 4 say whose sum it is left with.
__device__ __forceinline__ float fold_queries(float (&dots)[kQueries], int lane) {
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
  return dots[0];
}

constexpr int kWeightStride = kAttentionSplit + 4;  // eight queries' weights of one position fall into different banks

// A block serves kQueries queries of one key-value head and span: queries are (row, head of the group), row after row.
// blockIdx.x: group of queries, those of the first span first; blockIdx.y: key-value head; blockIdx.z: its share of the
// splits (one block walks all where they are not computed apart). kChunks: head_dim / 32, rounded up to a power of two.
template <KvType kType, int kChunks, bool kWhole>
__global__ void __launch_bounds__(kThreads, kWhole ? 2 : 1) cuda_attention(AttentionDesc a, bool windows_apart) {
  using Ring = KvRing<kType, kChunks, kWhole>;
  FT_SHARED(uint4, rings, kWarps * kRingSlots * kWarpSize);
  FT_SHARED(float4, weights4, kQueries * kWeightStride / 4);  // [query][position] scores, then exp(score - max)
  FT_SHARED(int, rows, kQueries);                             // of each query: its row of the span,
  FT_SHARED(int, heads, kQueries);                            // its head
  FT_SHARED(int, seen, kQueries);                             // and the positions that it sees
  FT_SHARED(float, largest, kQueries);                        // of a split
  FT_SHARED(float, sums, kQueries);                           // of a split's weights
  FT_SHARED(float, all_largest, kQueries);                    // of the splits so far, as are the sums
  FT_SHARED(float, all_sums, kQueries);
  FT_SHARED(float, weights_before, kQueries);  // of what was summed up, and of the split
  FT_SHARED(float, weights_now, kQueries);
  start_next_kernel();
  wait_for_kernels_ahead();
  float* weights = reinterpret_cast<float*>(weights4);
  const int warp = static_cast<int>(threadIdx.x / kWarpSize), lane = static_cast<int>(threadIdx.x % kWarpSize);
  const int group = a.num_heads / a.num_kv_heads, kv_head = static_cast<int>(blockIdx.y);
  const int num_spans = a.pass.counts->num_spans;
  int span_idx = 0, block = static_cast<int>(blockIdx.x);  // of the span's
  for (; span_idx < num_spans; ++span_idx) {
    const int blocks = blocks_of_queries(a.pass.spans[span_idx].num_rows * group);
    if (block < blocks) break;
    block -= blocks;
  }
  if (span_idx == num_spans) return;                // the whole block
  const DeviceSpan& span = a.pass.spans[span_idx];  // read where it is needed: registers are short
  const bool apart = windows_apart && span.is_window != 0;
  if (!apart && blockIdx.z > 0) return;  // the whole block
  const int num_queries = span.num_rows * group, first_query = block * kQueries;
  const int last = num_queries - first_query < kQueries ? num_queries - first_query - 1 : kQueries - 1;
  const int most_seen = span.position + (first_query + last) / group + 1;  // later rows see more
  const int num_splits = (most_seen + kAttentionSplit - 1) / kAttentionSplit;
  const int stride = apart ? static_cast<int>(gridDim.z) : 1;

  const Ring ring{static_cast<const typename Ring::Value*>(a.kv.data),
                  reinterpret_cast<typename Ring::Value*>(rings + warp * kRingSlots * kWarpSize), lane, a.head_dim};
  const auto base_of = [&](int split) {
    return key_offset(a.kv, span.sequence, int64_t{split} * kAttentionSplit, kv_head, a.head_dim);
  };
  const auto count_of = [&](int split) {
    const int left = most_seen - split * kAttentionSplit;
    return left < kAttentionSplit ? left : kAttentionSplit;
  };
  // A warp's group g of keys begins at this position: groups are dealt out to the warps in turn.
  const auto first_key = [&](int g) { return (g * kWarps + warp) * Ring::kKeys; };
  const auto start_split = [&](int64_t base, int count) {
    FT_NO_UNROLL
    for (int g = 0; g < Ring::kKeyGroups; ++g) ring.start_keys(base, first_key(g), count, g);
  };
  int64_t base = 0;
  int count = 0;
  if (static_cast<int>(blockIdx.z) < num_splits) {
    base = base_of(static_cast<int>(blockIdx.z));
    count = count_of(static_cast<int>(blockIdx.z));
    start_split(base, count);
  }

  // Queries beyond the last see nothing.
  if (threadIdx.x < kQueries) {
    const int q = static_cast<int>(threadIdx.x);
    const int query = first_query + q < num_queries ? first_query + q : num_queries - 1;
    rows[q] = query / group;
    heads[q] = kv_head * group + query % group;
    seen[q] = first_query + q < num_queries ? span.position + query / group + 1 : 0;
    all_largest[q] = -__builtin_inff();
    all_sums[q] = 0.0f;
  }
  __syncthreads();

  // In the second half a thread owns value `dim` of kChunks queries.
  const int dim = static_cast<int>(threadIdx.x) % (kWarpSize * kChunks);
  const int own = static_cast<int>(threadIdx.x) / (kWarpSize * kChunks) * kChunks;
  const bool owns = dim < a.head_dim;
  for (int split = static_cast<int>(blockIdx.z); split < num_splits; split += stride) {
    const int begin = split * kAttentionSplit;
    // A warp brings a query, through the place of the scores; then a lane keeps its strided share of every one in
    // registers. Each split anew: behind the scores, values want the registers.
    const float* query = a.queries + (int64_t{span.first_row + rows[warp]} * a.num_heads + heads[warp]) * a.head_dim;
    FT_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      const int i = c * kWarpSize + lane;
      weights[warp * kWeightStride + i] = i < a.head_dim ? load_global(query + i) : 0.0f;
    }
    __syncthreads();
    float query_values[kQueries][kChunks];
    FT_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      FT_UNROLL
      for (int c = 0; c < kChunks; ++c) query_values[q][c] = weights[q * kWeightStride + c * kWarpSize + lane];
    }
    __syncthreads();

    // Scores.
    FT_NO_UNROLL
    for (int g = 0; first_key(g) < count; ++g) {
      wait_for_copies<Ring::kKeyGroups - 1>();
      __syncwarp();
      FT_UNROLL
      for (int key = 0; key < Ring::kKeys; ++key) {
        float dots[kQueries] = {};
        constexpr int kAhead = kChunks < 4 ? kChunks : 4;
        FT_UNROLL
        for (int first = 0; first < kChunks; first += kAhead) {
          float k[kAhead];
          FT_UNROLL
          for (int c = 0; c < kAhead; ++c) {
            k[c] = (first + c) * kWarpSize + lane < a.head_dim ? ring.key_value(g, key, first + c) : 0.0f;
          }
          FT_UNROLL
          for (int c = 0; c < kAhead; ++c) {
            FT_UNROLL
            for (int q = 0; q < kQueries; ++q) dots[q] = __fmaf_rn(query_values[q][first + c], k[c], dots[q]);
          }
        }
        const float dot = fold_queries(dots, lane);
        const int j = first_key(g) + key;
        if (lane % 4 == 0 && j < count) weights[lane / 4 * kWeightStride + j] = a.scale * dot;
      }
      __syncwarp();
      ring.start_keys(base, first_key(g + Ring::kKeyGroups), count, g);
    }
    // The first values are on their way while the scores become weights.
    const int64_t values = base + values_offset(a.head_dim);
    const int slice = dim - lane;
    FT_NO_UNROLL
    for (int g = 0; g < Ring::kValueGroups; ++g) ring.start_values(values, slice, g * Ring::kValues, count, g);
    __syncthreads();

    // Largest score, weights and their sum: a warp a query.
    {
      float* own_weights = weights + warp * kWeightStride;
      const int mine = seen[warp] - begin, limit = mine < count ? mine : count;
      float m = -__builtin_inff();
      for (int j = lane; j < limit; j += kWarpSize) {
        const float score = own_weights[j];
        m = score > m ? score : m;
      }
      m = max_of_lanes(m) + 0.0f;  // -0 becomes +0, so that the first of two zeros does not show
      float sum = 0.0f;
      for (int j = lane; j < count; j += kWarpSize) {
        const float p = j < limit ? math::exp(own_weights[j] - m) : 0.0f;
        own_weights[j] = p;
        if (j < limit) sum = sum + p;
      }
      sum = fold_lanes(sum);
      if (lane == 0) {
        largest[warp] = m;
        sums[warp] = sum;
        if (limit > 0 && !apart) {
          const float before_max = all_largest[warp], now = joined_max(before_max, m),
                      before = weight_before(before_max, now), b = math::exp(m - now);
          all_sums[warp] = __fmaf_rn(sum, b, all_sums[warp] * before);
          all_largest[warp] = now;
          weights_before[warp] = before;
          weights_now[warp] = b;
        }
      }
    }
    __syncthreads();

    // Values in rising position: a thread a dimension.
    float out[kChunks] = {};
    int common = count;  // positions that all own queries see: no comparison there
    FT_UNROLL
    for (int i = 0; i < kChunks; ++i) {
      const int sees = seen[own + i] - begin;
      common = sees < common ? sees : common;
    }
    const float* own_weights = weights + own * kWeightStride;
    FT_NO_UNROLL
    for (int g = 0; g * Ring::kValues < count; ++g) {
      wait_for_copies<Ring::kValueGroups - 1>();
      __syncwarp();
      const int first = g * Ring::kValues;
      if (owns && first + Ring::kValues <= common) {
        FT_UNROLL
        for (int p = 0; p < Ring::kValues; p += 4) {
          float v[4];
          FT_UNROLL
          for (int k = 0; k < 4; ++k) v[k] = ring.value(g, p + k);
          FT_UNROLL
          for (int i = 0; i < kChunks; ++i) {
            const float4 w = *reinterpret_cast<const float4*>(own_weights + i * kWeightStride + first + p);
            out[i] = __fmaf_rn(w.x, v[0], out[i]);
            out[i] = __fmaf_rn(w.y, v[1], out[i]);
            out[i] = __fmaf_rn(w.z, v[2], out[i]);
            out[i] = __fmaf_rn(w.w, v[3], out[i]);
          }
        }
      } else if (owns) {
        for (int p = 0; p < Ring::kValues && first + p < count; ++p) {
          const float v = ring.value(g, p);
          FT_UNROLL
          for (int i = 0; i < kChunks; ++i) {
            if (first + p < seen[own + i] - begin)
              out[i] = __fmaf_rn(own_weights[i * kWeightStride + first + p], v, out[i]);
          }
        }
      }
      __syncwarp();
      ring.start_values(values, slice, (g + Ring::kValueGroups) * Ring::kValues, count, g);
    }
    if (split + stride < num_splits) {
      base = base_of(split + stride);
      count = count_of(split + stride);
      start_split(base, count);
    }
    if (owns) {
      FT_UNROLL
      for (int i = 0; i < kChunks; ++i) {
        if (seen[own + i] <= begin) continue;
        const int row = rows[own + i], head = heads[own + i];
        if (apart) {
          float* part = part_of(a, int64_t{span.window_row} + row, head, split);
          part[dim] = out[i];
          if (dim == 0) {
            part[a.head_dim] = largest[own + i];
            part[a.head_dim + 1] = sums[own + i];
          }
        } else {
          // There are no registers for what the splits before have given.
          float* result = a.out + (int64_t{span.first_row + row} * a.num_heads + head) * a.head_dim + dim;
          const float before = split == 0 ? 0.0f : *result;
          *result = __fmaf_rn(out[i], weights_now[own + i], before * weights_before[own + i]);
        }
      }
    }
    __syncthreads();  // the weights are free for the next split
  }

  if (apart || !owns) return;
  for (int q = own; q < own + kChunks && first_query + q < num_queries; ++q) {
    const int64_t row = int64_t{span.first_row} + rows[q], head = heads[q];
    float* result = a.out + (row * a.num_heads + head) * a.head_dim + dim;
    *result = gated(a, row, head, dim, *result / all_sums[q]);
  }
}

constexpr int kMergedValues = 256;  // of a block: what is quantised together
constexpr int kPartsAhead = 4;

// Splits of windows that were computed apart, in rising order, and the int8 forms of what they give. blockIdx.x: row,
// blockIdx.y: 256 values of all its heads; a thread a value.
__global__ void __launch_bounds__(kMergedValues) cuda_merge_attention(AttentionDesc a) {
  FT_SHARED(float4, merged, kMergedValues / 4);
  start_next_kernel();
  wait_for_kernels_ahead();
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
        m[i] = load_global(part + a.head_dim);
        l[i] = load_global(part + a.head_dim + 1);
        o[i] = load_global(part + dim);
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

template <KvType kType, bool kWhole>
void launch_type(const AttentionDesc& desc, const LaunchShape& shape, bool apart, const Stream& stream) {
  const int chunks = (desc.head_dim + kWarpSize - 1) / kWarpSize;
  const char* name = "cuda_attention";
  if (chunks == 1) return launch(stream, shape, name, cuda_attention<kType, 1, kWhole>, desc, apart);
  if (chunks == 2) return launch(stream, shape, name, cuda_attention<kType, 2, kWhole>, desc, apart);
  if (chunks <= 4) return launch(stream, shape, name, cuda_attention<kType, 4, kWhole>, desc, apart);
  return launch(stream, shape, name, cuda_attention<kType, 8, kWhole>, desc, apart);
}

template <KvType kType>
void launch_type(const AttentionDesc& desc, const LaunchShape& shape, bool apart, const Stream& stream) {
  if (desc.head_dim % KvRing<kType, 1, true>::kValuesOf16 == 0) {
    launch_type<kType, true>(desc, shape, apart, stream);
  } else {
    launch_type<kType, false>(desc, shape, apart, stream);
  }
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
