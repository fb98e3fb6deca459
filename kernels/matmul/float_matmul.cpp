#include "kernels/matmul/float_matmul.h"

#include <cstring>

#include "kernels/base/error.h"
#include "kernels/base/half.h"
#include "kernels/base/math.h"
#include "kernels/float_isa.h"
#include "kernels/matmul/matmul.h"

namespace foretoken {

namespace {

struct F32Weight {
  static constexpr int64_t kBytes = 4;
  static float load(const std::byte* p) {
    float value;
    std::memcpy(&value, p, sizeof(value));
    return value;
  }
};

uint16_t load_u16(const std::byte* p) {
  uint16_t value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

struct F16Weight {
  static constexpr int64_t kBytes = 2;
  static float load(const std::byte* p) { return half_to_float(load_u16(p)); }
};

struct Bf16Weight {
  static constexpr int64_t kBytes = 2;
  static float load(const std::byte* p) { return bfloat_to_float(load_u16(p)); }
};

template <class Weight>
void scalar_matmul_rows(const std::byte* weights, int64_t num_outputs, int64_t num_cols, const RowView* x, int num_rows,
                        float* const* y) {
  for (int64_t o = 0; o < num_outputs; ++o) {
    const std::byte* row = weights + o * num_cols * Weight::kBytes;
    for (int r = 0; r < num_rows; ++r) {
      float lanes[kFloatLanes] = {};
      for (int64_t i = 0; i < num_cols; ++i) {
        float& lane = lanes[i % kFloatLanes];
        lane = math::fma(Weight::load(row + i * Weight::kBytes), x[r].values[i], lane);
      }
      for (int half = kFloatLanes / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
      }
      y[r][o] = lanes[0];
    }
  }
}

void scalar_float_matmul_rows(WeightType type, const std::byte* weights, int64_t num_outputs, int64_t num_cols,
                              const RowView* x, int num_rows, float* const* y) {
  switch (type) {
    case WeightType::kF32:
      return scalar_matmul_rows<F32Weight>(weights, num_outputs, num_cols, x, num_rows, y);
    case WeightType::kF16:
      return scalar_matmul_rows<F16Weight>(weights, num_outputs, num_cols, x, num_rows, y);
    case WeightType::kBF16:
      return scalar_matmul_rows<Bf16Weight>(weights, num_outputs, num_cols, x, num_rows, y);
    default:
      FT_CHECK(false);
  }
}

}  // namespace

void float_matmul_rows(Isa isa, const MatrixView& w, int64_t row_begin, int64_t row_end, const RowView* x, int num_rows,
                       float* const* y) {
  FT_CHECK(w.layout == Layout::kRows);
  FT_CHECK(w.type == WeightType::kF32 || w.type == WeightType::kF16 || w.type == WeightType::kBF16);
  FT_CHECK(0 <= row_begin && row_begin <= row_end && row_end <= w.num_rows);
  const int64_t value_bytes = w.type == WeightType::kF32 ? 4 : 2;
  const std::byte* weights = w.data + row_begin * w.num_cols * value_bytes;
  const int64_t num_outputs = row_end - row_begin;
  switch (isa) {
    case Isa::kScalar:
      return scalar_float_matmul_rows(w.type, weights, num_outputs, w.num_cols, x, num_rows, y);
    case Isa::kAvx2:
    case Isa::kAvx2Vnni:
      return avx2_float_matmul_rows(w.type, weights, num_outputs, w.num_cols, x, num_rows, y);
    case Isa::kAvx512:
    case Isa::kAvx512Vnni:
      return avx512_float_matmul_rows(w.type, weights, num_outputs, w.num_cols, x, num_rows, y);
  }
}

}  // namespace foretoken
