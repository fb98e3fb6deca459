#pragma once

#include "kernels/attention/attention_body.h"
#include "kernels/base/simd_float.h"
#include "kernels/float_isa.h"

// Private to attention_avx2.cpp and attention_avx512.cpp: attention_split over a register type V.
//
// Up to kMaxGroup queries walk through the split together, by chunks of positions that fill half of L1, so that memory
// is read once and in rising order: first all keys, then all values. A further group finds the split (256 KB of F16
// keys and values at head_dim 256) in L2. While the keys are at work the split's values are asked for, while the values
// are, the next split's keys: eight queries over 32k positions took 158k cycles a split when only the next chunk was,
// 112k so (97k from cache). Halves are converted where they are used: on the way into a tile of four
// queries that costs nothing (other units than fma's); to convert a chunk once for all queries and read it back as
// floats took a quarter longer for eight queries. Only heads that are no multiple of 32 go through such a copy, for its
// padding.

namespace foretoken {
namespace {

constexpr int kMaxGroup = 16;                       // queries that walk together
constexpr int kChunkBytes = 16 << 10;               // of keys or values, half of L1
constexpr int kWorkFloats = 4096;                   // of padded queries or values' sums
constexpr int kScoreStride = kAttentionSplit + 16;  // room for a tile that runs over the end
constexpr int kTilePositions = 3;

inline int min_of(int a, int b) {
  return a < b ? a : b;
}

template <class V>
FT_INLINE V load_row(const float* p) {
  return V::load(p);
}
template <class V>
FT_INLINE V load_row(const uint16_t* p) {
  return V::load_half(p);
}

/// Memory that is needed half a split later, asked for line by line between the tiles of what is worked on now.
struct Ahead {
  const char* next;
  const char* end;
  int step_bytes;

  Ahead(const void* from, int64_t size_bytes, int64_t num_steps)
      : next(static_cast<const char*>(from)),
        end(next + size_bytes),
        step_bytes(static_cast<int>(size_bytes / num_steps + 63) / 64 * 64) {}

  FT_INLINE void step() {
    const char* const stop = end - next < step_bytes ? end : next + step_bytes;
    for (; next < stop; next += 64) _mm_prefetch(next, _MM_HINT_T0);
  }
};

constexpr int tiles_of(int n, int tile) {
  return (n + tile - 1) / tile;
}

/// Rows of keys or values as floats in `chunk`, `padded` apart, +0 after the end.
template <class T>
FT_INLINE void convert_rows(const T* from, int num_positions, int head_dim, int padded, float* chunk) {
  for (int j = 0; j < num_positions; ++j) {
    const T* row = from + static_cast<int64_t>(j) * head_dim;
    float* to = chunk + j * padded;
    int i = 0;
    for (; i + 8 <= head_dim; i += 8) load_row<F32x8>(row + i).store(to + i);
    T tail[kLanes];
    copy_tail(row + i, head_dim - i, T{}, tail);
    for (int k = 0; i < padded; i += 8, k += 8) load_row<F32x8>(tail + k).store(to + i);
  }
}

/// scores[q][j] = scale * (q . k_j) for Q queries and three positions. The lanes of one register go first for all sums,
/// then the next register's: so 3 x Q sums stay in registers, 12 of them with 7 loads for 12 fma. The registers' sums
/// are folded as they come (0 + 2, then 1 + 3): kept apart until the end they cost a tenth more.
template <class V, int Q, class T>
FT_INLINE void score_tile(const float* const* q, const T* const* k, int padded, float scale, float* const* scores,
                          int j) {
  constexpr int kGroups = kLanes / V::kWidth;
  V sums[kTilePositions][Q];
  const auto multiply = [&](int g) __attribute__((always_inline)) {
    for (int p = 0; p < kTilePositions; ++p) {
      for (int r = 0; r < Q; ++r) sums[p][r] = V::zero();
    }
    for (int i = g * V::kWidth; i < padded; i += kLanes) {
      V key[kTilePositions];
      for (int p = 0; p < kTilePositions; ++p) key[p] = load_row<V>(k[p] + i);
      for (int r = 0; r < Q; ++r) {
        const V query = V::load(q[r] + i);
        for (int p = 0; p < kTilePositions; ++p) sums[p][r] = fma(query, key[p], sums[p][r]);
      }
    }
  };
  V halves[kGroups / 2][kTilePositions][Q];
  for (int g = 0; g < kGroups / 2; ++g) {
    multiply(g);
    for (int p = 0; p < kTilePositions; ++p) {
      for (int r = 0; r < Q; ++r) halves[g][p][r] = sums[p][r];
    }
    multiply(g + kGroups / 2);
    for (int p = 0; p < kTilePositions; ++p) {
      for (int r = 0; r < Q; ++r) halves[g][p][r] = halves[g][p][r] + sums[p][r];
    }
  }
  for (int p = 0; p < kTilePositions; ++p) {
    F32x8 eight[Q];
    for (int r = 0; r < Q; ++r) {
      if constexpr (V::kWidth == 8) {
        eight[r] = halves[0][p][r] + halves[1][p][r];
      } else {
        eight[r] = halves[0][p][r].low() + halves[0][p][r].high();
      }
    }
    if constexpr (Q == 4) {
      alignas(16) float four[4];
      fold_four(eight, four);
      for (int r = 0; r < Q; ++r) scores[r][j + p] = scale * four[r];
    } else {
      for (int r = 0; r < Q; ++r) scores[r][j + p] = scale * eight[r].fold();
    }
  }
}

/// out[q][0 .. N registers) += p[q][j] * v_j by fma for Q queries, j rising over num_positions.
template <class V, int Q, int N, class T>
FT_INLINE void value_tile(const float* const* p, const T* v, int num_positions, int stride, float* const* out, int at) {
  V sums[Q][N];
  for (int r = 0; r < Q; ++r) {
    for (int n = 0; n < N; ++n) sums[r][n] = V::load(out[r] + at + n * V::kWidth);
  }
  const T* row = v + at;
  for (int j = 0; j < num_positions; ++j, row += stride) {
    V value[N];
    for (int n = 0; n < N; ++n) value[n] = load_row<V>(row + n * V::kWidth);
    for (int r = 0; r < Q; ++r) {
      const V weight = V::broadcast(p[r][j]);
      for (int n = 0; n < N; ++n) sums[r][n] = fma(weight, value[n], sums[r][n]);
    }
  }
  for (int r = 0; r < Q; ++r) {
    for (int n = 0; n < N; ++n) sums[r][n].store(out[r] + at + n * V::kWidth);
  }
}

/// All of the head: tiles of 4 queries x 3 registers (12 sums; FMA latency 4 x throughput 2 wants 8) and what is left
/// over.
template <class V, int Q, class T>
FT_INLINE void value_tiles(const float* const* p, const T* v, int num_positions, int padded, float* const* out,
                           Ahead& ahead) {
  int i = 0;
  for (; i + 3 * V::kWidth <= padded; i += 3 * V::kWidth) {
    ahead.step();
    value_tile<V, Q, 3>(p, v, num_positions, padded, out, i);
  }
  if (i + 2 * V::kWidth <= padded) {
    value_tile<V, Q, 2>(p, v, num_positions, padded, out, i);
    i += 2 * V::kWidth;
  }
  if (i < padded) value_tile<V, Q, 1>(p, v, num_positions, padded, out, i);
}

/// What a group of queries needs while it walks through a split; 50 KB of stack.
struct AttentionGroup {
  AttentionQuery* queries[kMaxGroup];
  int counts[kMaxGroup];  // positions of this split that the query attends to, > 0
  float* scores[kMaxGroup];
  float largest[kMaxGroup];
  float sums[kMaxGroup];
  int size = 0;
  int longest = 0;   // the largest count
  bool ends = true;  // no query reaches into the next split
  alignas(64) float score_rows[kMaxGroup * kScoreStride];
  alignas(64) float chunk[kChunkBytes / sizeof(float)];
  alignas(64) float work[kWorkFloats];  // padded queries first, then the values' sums: [size, padded]
};

/// Scores of a chunk of `count` positions from `begin` on, rows of `padded` values.
template <class V, class T>
FT_INLINE void score_chunk(const float* const* q, const T* rows, int begin, int count, int padded, float scale,
                           AttentionGroup& group, Ahead ahead) {
  int r = 0;
  const auto walk = [&]<int Q>() __attribute__((always_inline)) {
    for (int j = 0; j < count; j += kTilePositions) {
      // Past the end the last position is read again; its scores land beyond the query's count.
      const T* k[kTilePositions];
      for (int p = 0; p < kTilePositions; ++p) k[p] = rows + static_cast<int64_t>(min_of(j + p, count - 1)) * padded;
      ahead.step();
      score_tile<V, Q>(q + r, k, padded, scale, group.scores + r, begin + j);
    }
    r += Q;
  };
  while (r + 4 <= group.size) walk.template operator()<4>();
  while (r + 2 <= group.size) walk.template operator()<2>();
  if (r < group.size) walk.template operator()<1>();
}

template <class V, class T>
FT_INLINE void score_group(const T* keys, const T* values, int head_dim, int padded, float scale,
                           AttentionGroup& group) {
  const float* q[kMaxGroup];
  for (int r = 0; r < group.size; ++r) {
    q[r] = group.queries[r]->q;
    if (head_dim == padded) continue;
    float* copy = group.work + r * padded;
    const int whole = head_dim / kLanes * kLanes;
    for (int i = 0; i < whole; ++i) copy[i] = q[r][i];
    copy_tail(q[r] + whole, head_dim - whole, -0.0f, copy + whole);
    q[r] = copy;
  }
  const bool in_place = head_dim == padded;
  const int value_bytes = in_place ? sizeof(T) : sizeof(float);
  const int chunk_positions = kChunkBytes / value_bytes / padded / kTilePositions * kTilePositions;
  for (int begin = 0; begin < group.longest; begin += chunk_positions) {
    const int count = min_of(chunk_positions, group.longest - begin);
    const int64_t at = static_cast<int64_t>(begin) * head_dim;
    const T* rows = keys + at;
    const Ahead ahead(values + at, static_cast<int64_t>(count) * head_dim * static_cast<int64_t>(sizeof(T)),
                      tiles_of(group.size, 4) * tiles_of(count, kTilePositions));
    if (in_place) {
      score_chunk<V>(q, rows, begin, count, padded, scale, group, ahead);
    } else {
      convert_rows(rows, count, head_dim, padded, group.chunk);
      score_chunk<V>(q, static_cast<const float*>(group.chunk), begin, count, padded, scale, group, ahead);
    }
  }
}

/// scores -> exp(score - largest), with the largest and the sum over 32 strided lanes.
template <class V>
FT_INLINE void exponentiate(float* scores, int count, float& largest, float& sum) {
  constexpr int kGroups = kLanes / V::kWidth;
  const int padded = (count + kLanes - 1) / kLanes * kLanes;
  for (int j = count; j < padded; ++j) scores[j] = -__builtin_inff();
  V most = V::broadcast(-__builtin_inff());
  for (int j = 0; j < padded; j += V::kWidth) most = max(V::load(scores + j), most);
  const float m = most.largest() + 0.0f;  // -0 becomes +0, so that the order of looking does not show
  for (int j = 0; j < padded; ++j) scores[j] = math::exp(scores[j] - m);
  for (int j = count; j < padded; ++j) scores[j] = -0.0f;  // adds nothing to any lane
  V lanes[kGroups];
  for (int g = 0; g < kGroups; ++g) lanes[g] = V::zero();
  for (int j = 0; j < padded; j += kLanes) {
    for (int g = 0; g < kGroups; ++g) lanes[g] = lanes[g] + V::load(scores + j + g * V::kWidth);
  }
  largest = m;
  sum = fold_lanes(lanes);
}

/// Adds the values of a chunk of `count` positions from `begin` on to out[r], rows of `padded` values.
template <class V, class T>
FT_INLINE void add_chunk(const T* rows, int begin, int count, int padded, float* const* out, AttentionGroup& group,
                         Ahead ahead) {
  int r = 0;
  const auto walk = [&]<int Q>() __attribute__((always_inline)) {
    // Positions that all Q queries attend to, then what single ones attend to beyond.
    int common = count;
    const float* p[Q];
    for (int s = 0; s < Q; ++s) {
      common = min_of(common, group.counts[r + s] - begin);
      p[s] = group.scores[r + s] + begin;
    }
    if (common < 0) common = 0;
    if (common > 0) value_tiles<V, Q>(p, rows, common, padded, out + r, ahead);
    if constexpr (Q > 1) {
      for (int s = 0; s < Q; ++s) {
        const int rest = min_of(count, group.counts[r + s] - begin) - common;
        const float* one = p[s] + common;
        if (rest > 0)
          value_tiles<V, 1>(&one, rows + static_cast<int64_t>(common) * padded, rest, padded, out + r + s, ahead);
      }
    }
    r += Q;
  };
  while (r + 4 <= group.size) walk.template operator()<4>();
  while (r + 2 <= group.size) walk.template operator()<2>();
  if (r < group.size) walk.template operator()<1>();
}

template <class V, class T>
FT_INLINE void add_values(const T* values, const T* next_keys, int head_dim, int padded, AttentionGroup& group) {
  float* out[kMaxGroup];
  for (int r = 0; r < group.size; ++r) {
    out[r] = group.work + r * padded;
    for (int i = 0; i < padded; ++i) out[r][i] = 0.0f;
  }
  const bool in_place = head_dim == padded;
  const int value_bytes = in_place ? sizeof(T) : sizeof(float);
  const int chunk_positions = kChunkBytes / value_bytes / padded;
  for (int begin = 0; begin < group.longest; begin += chunk_positions) {
    const int count = min_of(chunk_positions, group.longest - begin);
    const int64_t at = static_cast<int64_t>(begin) * head_dim;
    const T* rows = values + at;
    const Ahead ahead(next_keys + at, static_cast<int64_t>(count) * head_dim * static_cast<int64_t>(sizeof(T)),
                      tiles_of(group.size, 4) * tiles_of(padded, 3 * V::kWidth));
    if (in_place) {
      add_chunk<V>(rows, begin, count, padded, out, group, ahead);
    } else {
      convert_rows(rows, count, head_dim, padded, group.chunk);
      add_chunk<V>(static_cast<const float*>(group.chunk), begin, count, padded, out, group, ahead);
    }
  }
}

template <class V, class T>
FT_INLINE void attend_group(const KvSplit& kv, int head_dim, int padded, float scale, AttentionGroup& group) {
  const T* const keys = static_cast<const T*>(kv.keys);
  const T* const values = static_cast<const T*>(kv.values);
  score_group<V>(keys, values, head_dim, padded, scale, group);
  for (int r = 0; r < group.size; ++r) {
    exponentiate<V>(group.scores[r], group.counts[r], group.largest[r], group.sums[r]);
  }
  // Where there is no next split, the values themselves: they are here already.
  const T* next_keys = group.ends || kv.next_keys == nullptr ? values : static_cast<const T*>(kv.next_keys);
  add_values<V>(values, next_keys, head_dim, padded, group);
  for (int r = 0; r < group.size; ++r) {
    join_split(group.largest[r], group.sums[r], group.work + r * padded, head_dim, *group.queries[r]);
  }
}

template <class V>
FT_INLINE void attention_split_with(const KvSplit& kv, int head_dim, float scale, int64_t split,
                                    AttentionQuery* queries, int num_queries) {
  const int64_t first = split * kAttentionSplit;
  const int padded = (head_dim + kLanes - 1) / kLanes * kLanes;
  const int group_size = min_of(kMaxGroup, kWorkFloats / padded);
  AttentionGroup group;
  for (int r = 0; r < kMaxGroup; ++r) group.scores[r] = group.score_rows + r * kScoreStride;
  for (int next = 0; next < num_queries;) {
    group.size = group.longest = 0;
    group.ends = true;
    for (; next < num_queries && group.size < group_size; ++next) {
      const int64_t reach = queries[next].kv_len - first;
      if (reach <= 0) continue;
      const int count = reach < kAttentionSplit ? static_cast<int>(reach) : kAttentionSplit;
      group.queries[group.size] = &queries[next];
      group.counts[group.size++] = count;
      if (count > group.longest) group.longest = count;
      if (reach > kAttentionSplit) group.ends = false;
    }
    if (group.size == 0) continue;
    if (kv.type == KvType::kF16) {
      attend_group<V, uint16_t>(kv, head_dim, padded, scale, group);
    } else {
      attend_group<V, float>(kv, head_dim, padded, scale, group);
    }
  }
}

}  // namespace
}  // namespace foretoken
