#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/matmul/matmul_cuda.cuh"

// F16 and BF16 matrices by cuBLAS, under a flag of its own: the order of its sums is not rule 2's. Text that does not
// hang on how many rows a pass has is kept by giving the library one problem for all of them: kBlasRows rows, those
// beyond the pass zero, more rows in groups of so many.
//
// The library wants both sides in one type, and a 16-bit float alone would lose 13 or 16 bits of an activation. So a
// row goes in as two, and the products of both are added:
//
//   high = round(x * s)     low = round(x * s - high)     y = (W . high + W . low) / s
//
// x * s - high is exact. With halves (11 bits each) x is kept to 2^-22 of itself, or to 2^-40 of the row's largest
// value where that is more (the smallest half is 2^-24, the largest value becomes 2^14 to 2^15); s is a power of two,
// so nothing is lost by it. BF16 (8 bits each) has float's range and needs no s; it keeps x to 2^-17 of itself.

namespace foretoken::cuda {

namespace {

constexpr int kThreads = 256;

/// Rows [first, first + kBlasRows) of a MatmulDesc's x.
struct BlasGroup {
  int first;
  int max_rows;  // of the whole problem
  const int32_t* device_num_rows;
  float* inverse_scales;  // [kBlasRows]

  /// How many of them there are.
  [[nodiscard]] __device__ __forceinline__ int count() const {
    int rows = max_rows;
    if (device_num_rows != nullptr && *device_num_rows < rows) rows = *device_num_rows;
    return rows - first;
  }
};

template <WeightType kType>
__device__ __forceinline__ uint16_t round_to_16(float x) {
  if constexpr (kType == WeightType::kF16) {
    return float_to_half_bits(x);
  } else {
    const uint32_t bits = math::bits_of(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
}

template <WeightType kType>
__device__ __forceinline__ float widen(uint16_t bits) {
  if constexpr (kType == WeightType::kF16) {
    return half_bits_to_float(bits);
  } else {
    return math::float_from_bits(static_cast<uint32_t>(bits) << 16);
  }
}

/// Exponent field of the power of two that brings `most` to [2^14, 2^15). Within the normal numbers, and so is that of
/// its inverse: rows that are all below 2^-113 stay smaller than that.
__device__ __forceinline__ uint32_t scale_exponent(float most) {
  const int exponent = 127 + 14 + 127 - static_cast<int>(math::bits_of(most) >> 23);
  return static_cast<uint32_t>(exponent > 253 ? 253 : exponent);
}

/// The largest magnitude of a row, in every thread of the block.
__device__ __forceinline__ float largest_magnitude(const float* x, int64_t num_cols) {
  FT_SHARED(float, of_warps, kThreads / kWarpSize);
  float most = 0.0f;
  for (int64_t i = threadIdx.x; i < num_cols; i += kThreads) {
    const float magnitude = math::float_from_bits(math::bits_of(x[i]) & 0x7fffffffu);
    most = magnitude > most ? magnitude : most;
  }
  most = max_of_lanes(most);
  if (threadIdx.x % kWarpSize == 0) of_warps[threadIdx.x / kWarpSize] = most;
  __syncthreads();
  for (int w = 0; w < kThreads / kWarpSize; ++w) most = of_warps[w] > most ? of_warps[w] : most;
  return most;
}

// A block of threads a row, also for the rows that are not there: they become zero.
template <WeightType kType>
__global__ void __launch_bounds__(kThreads)
    cuda_split_rows(BlasGroup group, const float* x, int64_t num_cols, uint16_t* columns, int64_t stride) {
  start_next_kernel();
  wait_for_kernels_ahead();
  const int row = static_cast<int>(blockIdx.x);
  uint16_t* high = columns + row * stride;
  uint16_t* low = high + kBlasRows * stride;
  if (row >= group.count()) {
    for (int64_t i = threadIdx.x; i < stride; i += kThreads) high[i] = low[i] = 0;
    return;
  }
  x += (group.first + row) * num_cols;
  float scale = 1.0f, inverse = 1.0f;
  if constexpr (kType == WeightType::kF16) {
    const uint32_t exponent = scale_exponent(largest_magnitude(x, num_cols));
    scale = math::float_from_bits(exponent << 23);
    inverse = math::float_from_bits((254 - exponent) << 23);
  }
  if (threadIdx.x == 0) group.inverse_scales[row] = inverse;
  for (int64_t i = threadIdx.x; i < stride; i += kThreads) {
    const float value = i < num_cols ? x[i] * scale : 0.0f;
    const uint16_t bits = round_to_16<kType>(value);
    high[i] = bits;
    low[i] = round_to_16<kType>(value - widen<kType>(bits));
  }
}

/// [2 * kBlasRows, stride]: products with the high parts, then with the low ones.
struct BlasProducts {
  const float* gate;
  const float* up;  // or nullptr
  int64_t stride;
  float scale, up_scale;  // of the matrices

  [[nodiscard]] __device__ __forceinline__ float sum(const float* of, int row, int64_t output) const {
    return of[row * stride + output] + of[(kBlasRows + row) * stride + output];
  }
};

// blockIdx.y: row.
__global__ void __launch_bounds__(kThreads)
    cuda_join_rows(BlasGroup group, BlasProducts products, int64_t num_outputs, float* y, int64_t y_stride) {
  start_next_kernel();
  wait_for_kernels_ahead();
  const int row = static_cast<int>(blockIdx.y);
  const int64_t output = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= group.count() || output >= num_outputs) return;
  const float inverse = group.inverse_scales[row];
  float value = products.sum(products.gate, row, output) * inverse * products.scale;
  if (products.up != nullptr)
    value = silu_times(value, products.sum(products.up, row, output) * inverse * products.up_scale);
  y[(group.first + row) * y_stride + output] = value;
}

}  // namespace

void launch_blas_matmul(const MatmulDesc& desc, const MatmulConfig&, const Stream& stream) {
  const MatmulArguments a = matmul_arguments(desc);
  const BlasWork& work = *desc.blas;
  FT_CHECK(blas_takes(desc.w) && desc.max_buckets == 0 && desc.groups == nullptr);
  FT_CHECK(&work.library->stream() == &stream);
  const int64_t stride = desc.w.row_bytes / static_cast<int64_t>(sizeof(uint16_t));
  const bool pair = desc.up.data != nullptr;
  FT_CHECK(stride <= work.max_cols && work.max_outputs > 0 && work.max_outputs % 16 == 0);
  const int64_t piece =
      std::min(pair ? work.max_outputs / 2 : work.max_outputs, round_up(desc.num_outputs, int64_t{8}));
  float* const up_products = work.products + 2 * kBlasRows * piece;

  for (int first = 0; first < desc.max_rows; first += kBlasRows) {
    const BlasGroup group{first, desc.max_rows, desc.device_num_rows, work.inverse_scales};
    const auto num_rows = static_cast<unsigned>(std::min(desc.max_rows - first, kBlasRows));
    launch(stream, {{kBlasRows}, {kThreads}}, "cuda_split_rows",
           desc.w.type == WeightType::kF16 ? cuda_split_rows<WeightType::kF16> : cuda_split_rows<WeightType::kBF16>,
           group, a.values, a.num_cols, work.columns, stride);
    for (int64_t begin = 0; begin < desc.num_outputs; begin += piece) {
      const int64_t num_outputs = std::min(piece, desc.num_outputs - begin);
      BlasProduct product;
      product.type = desc.w.type;
      product.a = desc.w.data + begin * desc.w.row_bytes;
      product.b = work.columns;
      product.a_stride = product.b_stride = product.num_cols = stride;  // with the zeros behind a row
      product.c = work.products;
      product.c_stride = piece;
      product.num_outputs = num_outputs;
      product.num_rows = 2 * kBlasRows;
      work.library->multiply(product);
      if (pair) {
        product.a = desc.up.data + begin * desc.up.row_bytes;
        product.c = up_products;
        work.library->multiply(product);
      }
      const BlasProducts products{work.products, pair ? up_products : nullptr, piece, desc.w.scale, desc.up.scale};
      launch(stream, {{static_cast<unsigned>((num_outputs + kThreads - 1) / kThreads), num_rows}, {kThreads}},
             "cuda_join_rows", cuda_join_rows, group, products, num_outputs, desc.y + begin, desc.y_stride);
    }
  }
}

}  // namespace foretoken::cuda
