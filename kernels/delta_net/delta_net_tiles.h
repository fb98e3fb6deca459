#pragma once

#include "kernels/base/simd_float.h"
#include "kernels/float_isa.h"

// Private to delta_net_avx2.cpp and delta_net_avx512.cpp: the delta net over a register type V.
//
// N registers of columns go through all rows before the next ones start: a dense block of state_size x N registers (16
// KB with AVX2 and a state of 128 x 128, half of L1) in the caller's scratch. Dense, because in the state itself the
// lines of one column block are 512 bytes apart and fall into an eighth of L1's sets.
//
// A row needs two passes over the block: one decays it and sums m, one updates it and sums out. The second pass of a
// row and the first of the next are one loop: four operations a load and a store, and 2 N chains of dependent fma,
// where FMA latency 4 x throughput 2 wants eight. Passes on their own (N chains) ran at two thirds of that speed. While
// the first row is worked on, the next block is fetched.

namespace foretoken {
namespace {

/// block = columns * decay, m[n] = sum over i of it * k_i. The first pass of the first row.
template <class V, int N>
FT_INLINE void decay_state(const float* columns, int state_size, float decay, const float* k, float* block, V* m) {
  const V factor = V::broadcast(decay);
  V sums[N];
  for (int n = 0; n < N; ++n) sums[n] = V::zero();
  for (int i = 0; i < state_size; ++i, columns += state_size, block += N * V::kWidth) {
    const V key = V::broadcast(k[i]);
    for (int n = 0; n < N; ++n) {
      const V s = V::load(columns + n * V::kWidth) * factor;
      s.store(block + n * V::kWidth);
      sums[n] = fma(s, key, sums[n]);
    }
  }
  for (int n = 0; n < N; ++n) m[n] = sums[n];
}

/// What update_state does with the updated block beside storing it: each is a loop of its own.
struct Update {
  bool out;     // multiply it with q
  bool commit;  // store it to the state too
  bool more;    // a row follows: decay it for that row and multiply it with that row's k
};

/// s = fma(k_i, d, block); out[n] = sum over i of s * q_i; then block = s, or for the next row s * decay and m[n] = sum
/// of that * k_i.
template <class V, int N, Update kWhat>
FT_INLINE void update_state(float* block, int state_size, const DeltaRow& row, const V* d, float* columns,
                            const DeltaRow* next, const float* ahead, V* out, V* m) {
  V delta[N], out_sums[N], m_sums[N];
  for (int n = 0; n < N; ++n) delta[n] = d[n], out_sums[n] = m_sums[n] = V::zero();
  const V factor = V::broadcast(kWhat.more ? next->decay : 0.0f);
  for (int i = 0; i < state_size; ++i, block += N * V::kWidth, columns += state_size, ahead += state_size) {
    const V key = V::broadcast(row.k[i]);
    const V query = V::broadcast(kWhat.out ? row.q[i] : 0.0f);
    const V next_key = V::broadcast(kWhat.more ? next->k[i] : 0.0f);
    for (int n = 0; n < N; n += 64 / static_cast<int>(sizeof(V))) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead + n * V::kWidth), _MM_HINT_T0);
    }
    for (int n = 0; n < N; ++n) {
      V s = fma(key, delta[n], V::load(block + n * V::kWidth));
      if constexpr (kWhat.commit) s.store(columns + n * V::kWidth);
      if constexpr (kWhat.out) out_sums[n] = fma(s, query, out_sums[n]);
      if constexpr (kWhat.more) {
        s = s * factor;
        s.store(block + n * V::kWidth);
        m_sums[n] = fma(s, next_key, m_sums[n]);
      }
    }
  }
  for (int n = 0; n < N; ++n) out[n] = out_sums[n], m[n] = m_sums[n];
}

/// All rows over columns [column, column + N * width). `ahead`: the columns that come next, to be fetched; `columns`
/// itself if none.
template <class V, int N>
FT_INLINE void delta_net_columns(float* columns, const float* ahead, int state_size, const DeltaRow* rows, int num_rows,
                                 int num_committed, int column, float* block) {
  if (num_rows == 0) return;
  const V scale = V::broadcast(1.0f / __builtin_sqrtf(static_cast<float>(state_size)));
  V m[N];
  decay_state<V, N>(columns, state_size, rows[0].decay, rows[0].k, block, m);
  for (int r = 0; r < num_rows; ++r) {
    const DeltaRow& row = rows[r];
    V d[N], out[N];
    const V beta = V::broadcast(row.beta);
    for (int n = 0; n < N; ++n) d[n] = beta * (V::load(row.v + column + n * V::kWidth) - m[n]);
    const auto update = [&]<bool kOut, bool kCommit>() __attribute__((always_inline)) {
      if (r + 1 < num_rows) {
        update_state<V, N, Update{kOut, kCommit, true}>(block, state_size, row, d, columns, &rows[r + 1], ahead, out,
                                                        m);
      } else {
        update_state<V, N, Update{kOut, kCommit, false}>(block, state_size, row, d, columns, nullptr, ahead, out, m);
      }
    };
    const bool commit = r + 1 == num_committed;
    if (row.out == nullptr) {
      commit ? update.template operator()<false, true>() : update.template operator()<false, false>();
    } else {
      commit ? update.template operator()<true, true>() : update.template operator()<true, false>();
      for (int n = 0; n < N; ++n) (out[n] * scale).store(row.out + column + n * V::kWidth);
    }
  }
}

template <class V>
FT_INLINE void delta_net_with(float* state, int state_size, const DeltaRow* rows, int num_rows, int num_committed,
                              int column_begin, int column_end, float* scratch) {
  constexpr int kWide = 4 * V::kWidth;
  int column = column_begin;
  const auto walk = [&]<int N>() __attribute__((always_inline)) {
    float* columns = state + column;
    const int next = column + N * V::kWidth;
    const float* ahead = next < column_end ? state + next : columns;
    delta_net_columns<V, N>(columns, ahead, state_size, rows, num_rows, num_committed, column, scratch);
    column = next;
  };
  while (column + kWide <= column_end) walk.template operator()<4>();
  while (column < column_end) walk.template operator()<16 / V::kWidth>();
}

}  // namespace
}  // namespace foretoken
