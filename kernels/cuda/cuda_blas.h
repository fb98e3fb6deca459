#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/cuda_runtime_wrap.h"
#include "kernels/formats/weight_type.h"

namespace foretoken::cuda {

// cuBLAS as the rest of the program uses it: one product, on one stream, in memory that was taken before. The order of
// its sums is its own, so what it computes is not the CPU's bits: it serves under a flag of its own (--cublas) and
// nowhere else. Failing calls throw InputError with one line. The emulation has the same interface
// (cuda_emulated_blas.cpp).

/// c[n][m] = sum over k of a[m][k] * b[n][k], for all m < num_outputs and n < num_rows; a and b in 16-bit floats of one
/// type, products and sums in float. REQUIRES: a, b and their strides are multiples of 16 bytes.
struct BlasProduct {
  WeightType type = WeightType::kF16;  // or kBF16
  const void* a = nullptr;             // [num_outputs, a_stride]
  int64_t a_stride = 0;                // values from row to row
  const void* b = nullptr;             // [num_rows, b_stride]
  int64_t b_stride = 0;
  float* c = nullptr;  // [num_rows, c_stride]
  int64_t c_stride = 0;
  int64_t num_outputs = 0, num_rows = 0, num_cols = 0;
};

/// Work memory of the library: what its manual asks for on Hopper. With less it would choose slower algorithms.
inline constexpr size_t kBlasWorkspaceBytes = size_t{32} << 20;

/// The library, bound to a stream and a workspace: it takes no memory of its own after the constructor. The thread
/// rules are the stream's.
class Blas {
 public:
  /// `workspace`: kBlasWorkspaceBytes of device memory, at a multiple of 256 bytes. It and the stream outlive this.
  Blas(const Stream& stream, void* workspace);
  ~Blas();
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;

  /// Work of the stream, also of a graph that is being recorded; then not the first product of its shape, which may
  /// have to load a kernel.
  void multiply(const BlasProduct& product) const;
  [[nodiscard]] const Stream& stream() const { return stream_; }

 private:
  const Stream& stream_;
  void* handle_ = nullptr;
};

}  // namespace foretoken::cuda
