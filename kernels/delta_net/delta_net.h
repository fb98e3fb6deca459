#pragma once

#include <cstdint>

#include "kernels/base/isa.h"

namespace foretoken {

/// One token of one value head of a gated delta net (Yang et al. 2024, "Gated Delta Networks").
struct DeltaRow {
  const float* q;  // [state_size], normalised; unused where out is nullptr
  const float* k;  // [state_size], normalised
  const float* v;  // [state_size]
  float decay;     // exp(g)
  float beta;
  float* out;  // [state_size], or nullptr: advance the state only
};

/// Advances value columns [column_begin, column_end) of one head's state S [state_size (key), state_size (value)],
/// row-major, through `rows` in order. Per row and value column c, all in float32:
///   s_i = S[i][c] * decay;  m = sum_i s_i * k_i (fma from 0, i rising);  d = beta * (v_c - m);
///   S[i][c] = fma(k_i, d, s_i);  out_c = (sum_i S[i][c] * q_i (fma from 0, i rising)) * (1 / sqrt(state_size)).
/// The first num_committed rows change `state`; the rest work on a copy, so that a window may be taken back without a
/// snapshot. The state is read from memory once and written once (if num_committed > 0) for any number of rows.
/// REQUIRES: 0 <= num_committed <= num_rows; columns are multiples of 16; scratch holds state_size * (column_end -
/// column_begin) floats, 64-byte aligned.
void delta_net(Isa isa, float* state, int state_size, const DeltaRow* rows, int num_rows, int num_committed,
               int column_begin, int column_end, float* scratch);

/// Causal depthwise convolution and SiLU for channels [begin, end) of one row:
///   y = fma over j rising from 0 of weight[c*taps + j] * u_j[c];  out[c] = silu(y)
/// where u_0 .. u_{taps-1} are the rows at p-taps+1 .. p, oldest first (pointers to whole rows; zero rows before the
/// start).
void causal_conv(Isa isa, const float* weight, int taps, const float* const* u, int64_t begin, int64_t end, float* out);

/// Gates of one row: beta[h] = sigmoid(b[h]), decay[h] = exp(a[h] * softplus(alpha[h] + dt[h])), for num_heads value
/// heads. softplus(x) = x for x > 20, else log1p(exp(x)).
void delta_gates(const float* b, const float* alpha, const float* a, const float* dt, int num_heads, float* beta,
                 float* decay);

}  // namespace foretoken
