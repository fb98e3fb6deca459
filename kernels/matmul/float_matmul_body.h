#pragma once

#include "kernels/base/simd_float.h"
#include "kernels/float_isa.h"

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

// A weight row is as good as never reused, so everything is about fetching it in time and about how often the
// activations are loaded for it. Up to three activation rows fit in L1 beside a weight row: P rows of weights run over
// all columns, P * Q * G sums in registers, the next P rows on the way from memory (P = 3 streams at n = 1: 19 to 21
// GB/s on a core where one stream had 14 to 17). From four activation rows on, kChunk columns at a time of four of them
// stay in L1 for kBlockRows weight rows; a tile of 3 x 4 has 7 loads for 12 fma where one weight row has 5 for 4. The
// weights of a block are read from L2 for the next four activation rows. Prefetching goes to L2: in rows of a power of
// two, all streams share the same few sets of L1.

constexpr int kBlockRows = 12;
constexpr int64_t kChunk = 512;

/// Shape of a tile for Q activation rows: P weight rows, G registers of lanes at a time.
template <class V, int Q>
struct TileShape {
  static constexpr bool kWide = V::kRegisters == 32;
  static constexpr int P = Q == 1 || Q == 4 ? (kWide ? 4 : 3) : (kWide ? 2 : 1);
  static constexpr int G = Q == 4 ? 1 : kLanes / V::kWidth;
};

/// Columns [begin, end) of P weight rows against Q activation rows: continues lanes[p][q][0..32). On the first
/// registers of lanes, the weights P rows on are fetched.
template <class V, class Weight, int P, int Q, int G>
FT_INLINE void dot_chunk(const typename Weight::Stored* w, int64_t num_cols, int64_t begin, int64_t end,
                         const RowView* x, float* lanes) {
  using Stored = typename Weight::Stored;
  constexpr int kGroups = kLanes / V::kWidth;
  for (int first = 0; first < kGroups; first += G) {
    V sums[P][Q][G];
    for (int p = 0; p < P; ++p) {
      for (int q = 0; q < Q; ++q) {
        for (int g = 0; g < G; ++g) sums[p][q][g] = V::load(lanes + (p * Q + q) * kLanes + (first + g) * V::kWidth);
      }
    }
    for (int64_t i = begin; i < end; i += kLanes) {
      if (first == 0) {
        for (int p = 0; p < P; ++p) {
          const Stored* ahead = w + (P + p) * num_cols + i;
          for (size_t line = 0; line < kLanes; line += 64 / sizeof(Stored)) {
            _mm_prefetch(reinterpret_cast<const char*>(ahead + line), _MM_HINT_T1);
          }
        }
      }
      for (int g = 0; g < G; ++g) {
        const int64_t at = i + (first + g) * V::kWidth;
        V weight[P];
        for (int p = 0; p < P; ++p) weight[p] = Weight::load(w + p * num_cols + at);
        for (int q = 0; q < Q; ++q) {
          const V value = V::load(x[q].values + at);
          for (int p = 0; p < P; ++p) sums[p][q][g] = fma(weight[p], value, sums[p][q][g]);
        }
      }
    }
    for (int p = 0; p < P; ++p) {
      for (int q = 0; q < Q; ++q) {
        for (int g = 0; g < G; ++g) sums[p][q][g].store(lanes + (p * Q + q) * kLanes + (first + g) * V::kWidth);
      }
    }
  }
}

/// The last columns, less than 32, of one weight row.
template <class V, class Weight>
FT_INLINE void dot_tail(const typename Weight::Stored* w, int64_t count, const float* x, float* lanes) {
  typename Weight::Stored w_tail[kLanes];
  float x_tail[kLanes];
  copy_tail(w, count, Weight::kZero, w_tail);
  copy_tail(x, count, -0.0f, x_tail);
  for (int i = 0; i < kLanes; i += V::kWidth)
    fma(Weight::load(w_tail + i), V::load(x_tail + i), V::load(lanes + i)).store(lanes + i);
}

/// `count` <= kBlockRows weight rows against Q activation rows, `chunk` columns at a time.
template <class V, class Weight, int Q>
FT_INLINE void dot_block(const typename Weight::Stored* w, int count, int64_t num_cols, int64_t chunk, const RowView* x,
                         float* const* y, int64_t o) {
  constexpr int P = TileShape<V, Q>::P, G = TileShape<V, Q>::G;
  constexpr int kGroups = kLanes / V::kWidth;
  alignas(64) float lanes[kBlockRows * Q * kLanes];
  for (int i = 0; i < count * Q * kLanes; ++i) lanes[i] = 0.0f;
  const int64_t whole = num_cols / kLanes * kLanes;
  for (int64_t begin = 0; begin < whole; begin += chunk) {
    const int64_t end = whole - begin < chunk ? whole : begin + chunk;
    int p = 0;
    for (; p + P <= count; p += P) {
      dot_chunk<V, Weight, P, Q, G>(w + p * num_cols, num_cols, begin, end, x, lanes + p * Q * kLanes);
    }
    for (; p < count; ++p)
      dot_chunk<V, Weight, 1, Q, G>(w + p * num_cols, num_cols, begin, end, x, lanes + p * Q * kLanes);
  }
  for (int p = 0; p < count; ++p) {
    for (int q = 0; q < Q; ++q) {
      float* sums = lanes + (p * Q + q) * kLanes;
      if (whole < num_cols) dot_tail<V, Weight>(w + p * num_cols + whole, num_cols - whole, x[q].values + whole, sums);
      V registers[kGroups];
      for (int g = 0; g < kGroups; ++g) registers[g] = V::load(sums + g * V::kWidth);
      y[q][o + p] = fold_lanes(registers);
    }
  }
}

template <class V, class Weight>
FT_INLINE void matmul_rows_of(const std::byte* weights, int64_t num_outputs, int64_t num_cols, const RowView* x,
                              int num_rows, float* const* y) {
  const auto* w = reinterpret_cast<const typename Weight::Stored*>(weights);
  for (int64_t o = 0; o < num_outputs; o += kBlockRows, w += kBlockRows * num_cols) {
    const int count = num_outputs - o < kBlockRows ? static_cast<int>(num_outputs - o) : kBlockRows;
    int r = 0;
    for (; r + 4 <= num_rows; r += 4) dot_block<V, Weight, 4>(w, count, num_cols, kChunk, x + r, y + r, o);
    switch (num_rows - r) {
      case 3:
        dot_block<V, Weight, 3>(w, count, num_cols, num_cols, x + r, y + r, o);
        break;
      case 2:
        dot_block<V, Weight, 2>(w, count, num_cols, num_cols, x + r, y + r, o);
        break;
      case 1:
        dot_block<V, Weight, 1>(w, count, num_cols, num_cols, x + r, y + r, o);
        break;
    }
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
