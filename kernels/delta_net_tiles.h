#pragma once

#include "kernels/float_isa.h"
#include "kernels/simd_float.h"

// Private to delta_net_avx2.cpp and delta_net_avx512.cpp: the delta net over a register type V.
//
// N registers of columns go through all rows before the next ones start: a dense block of state_size x N registers (16
// KB with AVX2 and a state of 128 x 128, half of L1) in the caller's scratch. Dense, because in the state itself the
// lines of one column block are 512 bytes apart and fall into an eighth of L1's sets. A row is two passes over the
// block, each of 2 arithmetic operations, a load and a store per register, with N = 4 chains of dependent fma: FMA
// latency 4 at 2 operations a cycle.

namespace foretoken {
namespace {

/// Pass 1: to = from * decay, m[n] = sum over i of it * k_i.
template <class V, int N>
FT_INLINE void decay_state(const float* from, int64_t from_stride, float* to, int state_size, float decay,
                           const float* k, V* m) {
  const V factor = V::broadcast(decay);
  V sums[N];
  for (int n = 0; n < N; ++n) sums[n] = V::zero();
  for (int i = 0; i < state_size; ++i, from += from_stride, to += N * V::kWidth) {
    const V key = V::broadcast(k[i]);
    for (int n = 0; n < N; ++n) {
      const V s = V::load(from + n * V::kWidth) * factor;
      s.store(to + n * V::kWidth);
      sums[n] = fma(s, key, sums[n]);
    }
  }
  for (int n = 0; n < N; ++n) m[n] = sums[n];
}

/// Pass 2: block = fma(k_i, d, block); also to `state` if kCommit; sums[n] = sum over i of it * q_i if kOut.
template <class V, int N, bool kOut, bool kCommit>
FT_INLINE void update_state(float* block, int state_size, const float* k, const V* d, const float* q, float* state,
                            V* sums) {
  V delta[N], out[N];
  for (int n = 0; n < N; ++n) delta[n] = d[n], out[n] = V::zero();
  for (int i = 0; i < state_size; ++i, block += N * V::kWidth) {
    const V key = V::broadcast(k[i]);
    const V query = V::broadcast(kOut ? q[i] : 0.0f);
    for (int n = 0; n < N; ++n) {
      const V s = fma(key, delta[n], V::load(block + n * V::kWidth));
      s.store(block + n * V::kWidth);
      if constexpr (kCommit) s.store(state + static_cast<int64_t>(i) * state_size + n * V::kWidth);
      if constexpr (kOut) out[n] = fma(s, query, out[n]);
    }
  }
  for (int n = 0; n < N; ++n) sums[n] = out[n];
}

/// All rows over columns [column, column + N * width).
template <class V, int N>
FT_INLINE void delta_net_columns(float* state, int state_size, const DeltaRow* rows, int num_rows, int num_committed,
                                 int column, float* block) {
  const V scale = V::broadcast(1.0f / __builtin_sqrtf(static_cast<float>(state_size)));
  float* columns = state + column;
  for (int r = 0; r < num_rows; ++r) {
    const DeltaRow& row = rows[r];
    V d[N], sums[N];
    if (r == 0) {
      decay_state<V, N>(columns, state_size, block, state_size, row.decay, row.k, d);
    } else {
      decay_state<V, N>(block, N * V::kWidth, block, state_size, row.decay, row.k, d);
    }
    const V beta = V::broadcast(row.beta);
    for (int n = 0; n < N; ++n) d[n] = beta * (V::load(row.v + column + n * V::kWidth) - d[n]);
    const bool commit = r + 1 == num_committed;
    if (row.out == nullptr) {
      commit ? update_state<V, N, false, true>(block, state_size, row.k, d, nullptr, columns, sums)
             : update_state<V, N, false, false>(block, state_size, row.k, d, nullptr, nullptr, sums);
      continue;
    }
    commit ? update_state<V, N, true, true>(block, state_size, row.k, d, row.q, columns, sums)
           : update_state<V, N, true, false>(block, state_size, row.k, d, row.q, nullptr, sums);
    for (int n = 0; n < N; ++n) (sums[n] * scale).store(row.out + column + n * V::kWidth);
  }
}

template <class V>
FT_INLINE void delta_net_with(float* state, int state_size, const DeltaRow* rows, int num_rows, int num_committed,
                              int column_begin, int column_end, float* scratch) {
  constexpr int kWide = 4 * V::kWidth;
  int column = column_begin;
  for (; column + kWide <= column_end; column += kWide) {
    delta_net_columns<V, 4>(state, state_size, rows, num_rows, num_committed, column, scratch);
  }
  for (; column < column_end; column += 16) {
    delta_net_columns<V, 16 / V::kWidth>(state, state_size, rows, num_rows, num_committed, column, scratch);
  }
}

}  // namespace
}  // namespace foretoken
