#pragma once

#include "kernels/attention/attention.h"
#include "kernels/base/math.h"

// Private to attention.cpp and the attention kernels: what is not worth intrinsics.

namespace foretoken {
namespace {

/// The last step of a split: its largest score m, sum l and values o join the running result.
inline void join_split(float m, float l, const float* o, int head_dim, AttentionQuery& query) {
  const float before = query.max;
  const float now = before > m ? before : m;
  const float a = before == -__builtin_inff() ? 0.0f : math::exp(before - now);
  const float b = math::exp(m - now);
  query.sum = math::fma(l, b, query.sum * a);
  query.max = now;
  float* out = query.out;
#pragma GCC ivdep
  for (int i = 0; i < head_dim; ++i) out[i] = math::fma(o[i], b, out[i] * a);
}

inline void divide_by(float* x, int64_t n, float divisor) {
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] / divisor;
}

}  // namespace
}  // namespace foretoken
