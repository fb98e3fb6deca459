#include "kernels/base/math.h"
#include "kernels/base/simd_float.h"
#include "kernels/float_isa.h"

namespace foretoken {

namespace {

/// The largest of x[0..n), NaN left out; -infinity if nothing else is there.
float largest_of(const float* x, int64_t n) {
  const F32x8 lowest = F32x8::broadcast(-__builtin_inff());
  F32x8 lanes[4] = {lowest, lowest, lowest, lowest};  // four: a load a cycle against a latency of some cycles
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int g = 0; g < 4; ++g) lanes[g] = max(F32x8::load(x + i + 8 * g), lanes[g]);
  }
  float largest = max(max(lanes[0], lanes[1]), max(lanes[2], lanes[3])).largest();
  for (; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

}  // namespace

void avx2_softmax(const float* x, int64_t n, float* out) {
  const float largest = largest_of(x, n);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) out[i] = math::exp(x[i] - largest);

  F32x8 lanes[4] = {F32x8::zero(), F32x8::zero(), F32x8::zero(), F32x8::zero()};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int g = 0; g < 4; ++g) lanes[g] = lanes[g] + F32x8::load(out + i + 8 * g);
  }
  if (i < n) {
    float tail[kLanes];
    copy_tail(out + i, n - i, -0.0f, tail);
    for (int g = 0; g < 4; ++g) lanes[g] = lanes[g] + F32x8::load(tail + 8 * g);
  }
  const float sum = fold_lanes(lanes);
  for (i = 0; i < n; ++i) out[i] = out[i] / sum;
}

float avx2_softmax_share(const float* x, int64_t n, int64_t chosen) {
  // Far from the top there are whole blocks that count for nothing: a comparison a value instead of an exponential.
  constexpr int64_t kBlock = 256;
  const float top = x[chosen];
  float values[kBlock];
  float sum = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t count = begin + kBlock < n ? kBlock : n - begin;
    if (!(largest_of(x + begin, count) - top > -16.0f)) continue;
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) values[i] = math::exp(x[begin + i] - top);
    for (int64_t i = 0; i < count; ++i) sum += values[i];
  }
  return sum > 0 ? 1.0f / sum : 0.0f;
}

int64_t avx2_argmax(const float* x, int64_t n) {
  // One pass finds the block of 4 KB that first holds the largest value; only that block is searched for the place.
  constexpr int64_t kBlock = 1024;
  float best = -__builtin_inff();
  int64_t best_begin = 0, best_end = n;  // all of it if nothing exceeds -infinity
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = begin + kBlock < n ? begin + kBlock : n;
    const float largest = largest_of(x + begin, end - begin);
    if (largest > best) best = largest, best_begin = begin, best_end = end;
  }
  for (int64_t i = best_begin; i < best_end; ++i) {
    if (x[i] == best) return i;
  }
  return 0;  // all NaN
}

}  // namespace foretoken
