#include "kernels/select/softmax.h"

#include "kernels/base/error.h"
#include "kernels/base/math.h"
#include "kernels/float_isa.h"
#include "kernels/matmul/matmul.h"

namespace foretoken {

namespace {

void scalar_softmax(const float* x, int64_t n, float* out) {
  float largest = -__builtin_inff();
  for (int64_t i = 0; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  float lanes[kFloatLanes] = {};
  for (int64_t i = 0; i < n; ++i) {
    out[i] = math::exp(x[i] - largest);
    lanes[i % kFloatLanes] += out[i];
  }
  for (int half = kFloatLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  for (int64_t i = 0; i < n; ++i) out[i] = out[i] / lanes[0];
}

int64_t scalar_argmax(const float* x, int64_t n) {
  int64_t best = -1;
  for (int64_t i = 0; i < n; ++i) {
    if (x[i] == x[i] && (best < 0 || x[i] > x[best])) best = i;
  }
  return best < 0 ? 0 : best;
}

float scalar_softmax_share(const float* x, int64_t n, int64_t chosen) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float below = x[i] - x[chosen];
    if (below > -16.0f) sum += math::exp(below);
  }
  return 1.0f / sum;
}

}  // namespace

void softmax(Isa isa, const float* x, int64_t n, float* out) {
  isa == Isa::kScalar ? scalar_softmax(x, n, out) : avx2_softmax(x, n, out);
}

float softmax_share(Isa isa, const float* x, int64_t n, int64_t chosen) {
  return isa == Isa::kScalar ? scalar_softmax_share(x, n, chosen) : avx2_softmax_share(x, n, chosen);
}

int64_t argmax(Isa isa, const float* x, int64_t n) {
  FT_CHECK(n > 0);
  return isa == Isa::kScalar ? scalar_argmax(x, n) : avx2_argmax(x, n);
}

}  // namespace foretoken
