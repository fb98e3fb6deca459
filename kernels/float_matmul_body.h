#pragma once

#include "kernels/float_isa.h"
#include "kernels/simd_float.h"

// Private to float_matmul_avx2.cpp and float_matmul_avx512.cpp: the loops over a register type V.

namespace foretoken {
namespace {

template <class V>
struct F32Weight {
  using Stored = float;
  static constexpr Stored kZero = 0.0f;
  static FT_INLINE V load(const Stored* p) { return V::load(p); }
};

template <class V>
struct F16Weight {
  using Stored = uint16_t;
  static constexpr Stored kZero = 0;
  static FT_INLINE V load(const Stored* p) { return V::load_half(p); }
};

template <class V>
struct Bf16Weight {
  using Stored = uint16_t;
  static constexpr Stored kZero = 0;
  static FT_INLINE V load(const Stored* p) { return V::load_bfloat(p); }
};

/// One weight row against R activation rows.
template <class V, class Weight, int R>
FT_INLINE void dot_rows(const typename Weight::Stored* w, int64_t num_cols, const RowView* x, float* const* y,
                        int64_t o) {
  constexpr int kGroups = kLanes / V::kWidth;
  V lanes[R][kGroups];
  for (int r = 0; r < R; ++r) {
    for (int g = 0; g < kGroups; ++g) lanes[r][g] = V::zero();
  }
  int64_t i = 0;
  for (; i + kLanes <= num_cols; i += kLanes) {
    for (int g = 0; g < kGroups; ++g) {
      const V weight = Weight::load(w + i + g * V::kWidth);
      for (int r = 0; r < R; ++r) lanes[r][g] = fma(weight, V::load(x[r].values + i + g * V::kWidth), lanes[r][g]);
    }
  }
  if (i < num_cols) {
    typename Weight::Stored w_tail[kLanes];
    float x_tail[kLanes];
    copy_tail(w + i, num_cols - i, Weight::kZero, w_tail);
    for (int r = 0; r < R; ++r) {
      copy_tail(x[r].values + i, num_cols - i, -0.0f, x_tail);
      for (int g = 0; g < kGroups; ++g) {
        lanes[r][g] = fma(Weight::load(w_tail + g * V::kWidth), V::load(x_tail + g * V::kWidth), lanes[r][g]);
      }
    }
  }
  for (int r = 0; r < R; ++r) y[r][o] = fold_lanes(lanes[r]);
}

/// A weight row meets the activation rows in tiles, from L1 after the first tile. Tiles of three with AVX2: twelve sums
/// (FMA latency 4 x throughput 2 wants eight) and one weight fill the sixteen registers; eight with AVX-512.
template <class V, class Weight>
FT_INLINE void matmul_rows_of(const std::byte* weights, int64_t num_outputs, int64_t num_cols, const RowView* x,
                              int num_rows, float* const* y) {
  constexpr int kTile = V::kRegisters == 16 ? 3 : 8;
  const auto* w = reinterpret_cast<const typename Weight::Stored*>(weights);
  for (int64_t o = 0; o < num_outputs; ++o, w += num_cols) {
    int r = 0;
    for (; r + kTile <= num_rows; r += kTile) dot_rows<V, Weight, kTile>(w, num_cols, x + r, y + r, o);
    if constexpr (kTile == 8) {
      for (; r + 4 <= num_rows; r += 4) dot_rows<V, Weight, 4>(w, num_cols, x + r, y + r, o);
    }
    for (; r + 2 <= num_rows; r += 2) dot_rows<V, Weight, 2>(w, num_cols, x + r, y + r, o);
    if (r < num_rows) dot_rows<V, Weight, 1>(w, num_cols, x + r, y + r, o);
  }
}

template <class V>
FT_INLINE void matmul_rows_of_type(WeightType type, const std::byte* weights, int64_t num_outputs, int64_t num_cols,
                                   const RowView* x, int num_rows, float* const* y) {
  switch (type) {
    case WeightType::kF32:
      return matmul_rows_of<V, F32Weight<V>>(weights, num_outputs, num_cols, x, num_rows, y);
    case WeightType::kF16:
      return matmul_rows_of<V, F16Weight<V>>(weights, num_outputs, num_cols, x, num_rows, y);
    case WeightType::kBF16:
      return matmul_rows_of<V, Bf16Weight<V>>(weights, num_outputs, num_cols, x, num_rows, y);
    default:
      return;  // checked by the dispatch
  }
}

}  // namespace
}  // namespace foretoken
