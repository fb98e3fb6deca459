#include "kernels/delta_net/delta_net.h"

#include "kernels/base/error.h"
#include "kernels/delta_net/delta_net_body.h"
#include "kernels/float_isa.h"

namespace foretoken {

namespace {

void scalar_delta_net(float* state, int state_size, const DeltaRow* rows, int num_rows, int num_committed,
                      int column_begin, int column_end, float* scratch) {
  const int num_columns = column_end - column_begin;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(state_size));
  for (int i = 0; i < state_size; ++i) {
    for (int c = 0; c < num_columns; ++c) scratch[i * num_columns + c] = state[i * state_size + column_begin + c];
  }
  for (int r = 0; r < num_rows; ++r) {
    const DeltaRow& row = rows[r];
    for (int c = 0; c < num_columns; ++c) {
      float m = 0.0f;
      for (int i = 0; i < state_size; ++i) {
        float& s = scratch[i * num_columns + c];
        s = s * row.decay;
        m = math::fma(s, row.k[i], m);
      }
      const float d = row.beta * (row.v[column_begin + c] - m);
      float sum = 0.0f;
      for (int i = 0; i < state_size; ++i) {
        float& s = scratch[i * num_columns + c];
        s = math::fma(row.k[i], d, s);
        if (row.out != nullptr) sum = math::fma(s, row.q[i], sum);
      }
      if (row.out != nullptr) row.out[column_begin + c] = sum * scale;
    }
    if (r + 1 == num_committed) {
      for (int i = 0; i < state_size; ++i) {
        for (int c = 0; c < num_columns; ++c) state[i * state_size + column_begin + c] = scratch[i * num_columns + c];
      }
    }
  }
}

}  // namespace

void delta_net(Isa isa, float* state, int state_size, const DeltaRow* rows, int num_rows, int num_committed,
               int column_begin, int column_end, float* scratch) {
  FT_CHECK(0 <= num_committed && num_committed <= num_rows);
  FT_CHECK(0 <= column_begin && column_begin <= column_end && column_end <= state_size);
  FT_CHECK(column_begin % 16 == 0 && column_end % 16 == 0);
  switch (isa) {
    case Isa::kScalar:
      return scalar_delta_net(state, state_size, rows, num_rows, num_committed, column_begin, column_end, scratch);
    case Isa::kAvx2:
    case Isa::kAvx2Vnni:
      return avx2_delta_net(state, state_size, rows, num_rows, num_committed, column_begin, column_end, scratch);
    case Isa::kAvx512:
    case Isa::kAvx512Vnni:
      return avx512_delta_net(state, state_size, rows, num_rows, num_committed, column_begin, column_end, scratch);
  }
}

void causal_conv(Isa isa, const float* weight, int taps, const float* const* u, int64_t begin, int64_t end,
                 float* out) {
  FT_CHECK(taps > 0);
  if (isa != Isa::kScalar) return avx2_causal_conv(weight, taps, u, begin, end, out);
  causal_conv_any(weight, taps, u, begin, end, out);
}

void delta_gates(const float* b, const float* alpha, const float* a, const float* dt, int num_heads, float* beta,
                 float* decay) {
  for (int h = 0; h < num_heads; ++h) {
    beta[h] = math::sigmoid(b[h]);
    decay[h] = math::exp(a[h] * math::softplus(alpha[h] + dt[h]));
  }
}

}  // namespace foretoken
