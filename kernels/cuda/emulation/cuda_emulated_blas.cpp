#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/half.h"
#include "kernels/cuda/cuda_blas.h"
#include "kernels/cuda/cuda_device.h"
#if defined(FORETOKEN_ACCESS_CHECKS)
#include "kernels/cuda/emulation/emulated_memory.h"
#endif

namespace foretoken::cuda {

namespace {

float widen(WeightType type, uint16_t bits) {
  return type == WeightType::kF16 ? half_to_float(bits) : bfloat_to_float(bits);
}

// Strided sums, from the last column to the first. How many hangs on the problem's shape, as the library's choice of an
// algorithm does: who lets the number of rows through to it does not get the same bits for another one.
float sum_of(const BlasProduct& p, const uint16_t* a, const uint16_t* b) {
  std::vector<float> sums(static_cast<size_t>(2 + p.num_rows % 5), 0.0f);
  for (int64_t k = p.num_cols - 1; k >= 0; --k) {
    float& sum = sums[static_cast<size_t>(k) % sums.size()];
    sum = __builtin_fmaf(widen(p.type, a[k]), widen(p.type, b[k]), sum);
  }
  float whole = 0;
  for (const float sum : sums) whole = whole + sum;
  return whole;
}

void multiply_now(const BlasProduct& p) {
  for (int64_t n = 0; n < p.num_rows; ++n) {
#if defined(FORETOKEN_ACCESS_CHECKS)
    emulation::mark_written(p.c + n * p.c_stride, static_cast<size_t>(p.num_outputs) * sizeof(float),
                            emulation::Writer::kKernel);
#endif
    for (int64_t m = 0; m < p.num_outputs; ++m) {
      p.c[n * p.c_stride + m] = sum_of(p, static_cast<const uint16_t*>(p.a) + m * p.a_stride,
                                       static_cast<const uint16_t*>(p.b) + n * p.b_stride);
    }
  }
}

}  // namespace

void require_blas() {}

Blas::Blas(const Stream& stream, void* workspace) : stream_(stream), handle_(workspace) {
  FT_CHECK(workspace != nullptr && reinterpret_cast<uintptr_t>(workspace) % 256 == 0);
}

Blas::~Blas() = default;

// What the library refuses, or serves with other kernels than on the next call, is a mistake here.
void Blas::multiply(const BlasProduct& p) const {
  FT_CHECK(p.type == WeightType::kF16 || p.type == WeightType::kBF16);
  FT_CHECK(p.num_outputs > 0 && p.num_rows > 0 && p.num_cols > 0);
  for (const void* address : {p.a, p.b, static_cast<const void*>(p.c)})
    FT_CHECK(address != nullptr && reinterpret_cast<uintptr_t>(address) % 16 == 0);
  FT_CHECK(p.a_stride % 8 == 0 && p.b_stride % 8 == 0 && p.c_stride % 4 == 0);
  FT_CHECK(p.num_cols <= p.a_stride && p.num_cols <= p.b_stride && p.num_outputs <= p.c_stride);
  launch_body(stream_, {{1}, {1}}, "cublasGemmEx", [p] { multiply_now(p); });
}

}  // namespace foretoken::cuda
