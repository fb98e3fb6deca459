#pragma once

#include "kernels/interleaved_formats.h"
#include "kernels/quant_matmul.h"
#include "kernels/quant_simd.h"

// Private: the interleaved kernels, included by one file per instruction set.
//
// A lane is an output row. A 64-byte word of the matrix holds the same four bytes of 16 rows, so after unpacking a register
// has four weights of each lane, and meets four activations of one row, broadcast. There are no horizontal sums.
//
// Sums stay in int16 while the bound of the format allows, then one multiply-add by the scale of the run, duplicated into
// both halves of the lane, widens to int32 and applies the scale at once. With the int8 dot product instruction sums are
// int32 from the start and the scale is a 32-bit product.
//
// Up to kDirectRows rows, unpacking and multiplication are one loop: the unpacked registers of a step serve all rows and nothing
// is stored. For more, up to kRowsAtOnce, each block is unpacked once into a buffer in L1 (8 KB at most), in order of columns,
// and tiles of rows read it; blocks are the outer loop, so that the memory system streams on while the tiles compute. Partial
// sums (kPartials x 16 floats a row) lie in L1 all the time.

namespace foretoken {
namespace {

constexpr int kGroup = 16;       // kInterleave
constexpr int kPartials = 8;     // kPartialSums
constexpr int kDirectRows = 4;   // registers: 2 streams x 4 rows of sums, 4 totals, 2 weights, 1 mask
constexpr int kRowsAtOnce = 16;  // rows whose partial sums are kept: 8 KB
constexpr int kPrefetchAhead = 4096;

/// Rows of one tile over unpacked weights: a sum and a total each, one register of weights and one of activations.
template <class V>
constexpr int kTileRows = V::kLanes == 8 ? 6 : 8;

/// What one activation row brings to one block.
struct BlockRow {
  const int8_t* q;
  const int16_t* sums;  // one per run of the format
  float d;
  alignas(16) int16_t sums_of_32[8];
};

template <class F>
FT_INLINE const QuantisedRow& quantised(const RowView& row) {
  if constexpr (F::kBlockSize == 32) {
    return row.by32;
  } else {
    return row.by256;
  }
}

// Runs of 16 have their sums in the row; those of 32 are added up here, once for both halves of the group.
template <class F>
FT_INLINE void enter_block(const RowView& row, int64_t b, BlockRow& out) {
  const QuantisedRow& x = quantised<F>(row);
  out.q = x.q + b * F::kBlockSize;
  out.d = x.d[b];
  const int16_t* sums = x.sums + b * (F::kBlockSize / 16);
  if constexpr (F::kRuns == 8) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(sums));
    const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(sums + 8));
    _mm_store_si128(reinterpret_cast<__m128i*>(out.sums_of_32), _mm_hadd_epi16(low, high));
    out.sums = out.sums_of_32;
  } else {
    out.sums = sums;
  }
}

// sum over runs of weight * S: the offset of unsigned formats and the mins. |S| <= 4064 and |weights| <= 4096, so 16 runs stay
// below 2^28. Formats of one run have the same weight for all lanes.
template <class V, int kRuns>
FT_INLINE typename V::Int weigh_sums(const Header<V, kRuns>& h, const int16_t* sums, int single_weight) {
  if constexpr (kRuns == 1) {
    return V::madd(V::broadcast(sums), V::splat16(single_weight));
  } else {
    typename V::Int total = V::madd(h.pair[0], V::broadcast(sums));
#pragma GCC unroll 8
    for (int k = 1; k < kRuns / 2; ++k) total = V::add32(total, V::madd(h.pair[k], V::broadcast(sums + 2 * k)));
    return total;
  }
}

/// Steps that fit an int16 sum: each adds at most 2 * kMaxU * 127.
template <class V, class F>
constexpr int kFlush = V::kDot ? 8 : F::kSigned ? 1 : 32767 / (2 * F::kMaxU * 127);

template <class V, class F, int N, int kChunk, int... kStep>
FT_INLINE void add_chunk(const std::byte* p, int loop, const Header<V, F::kRuns>& h, const BlockRow* rows,
                         typename V::Int (&total)[N], std::integer_sequence<int, kStep...>) {
  using Int = typename V::Int;
  constexpr int kStreams = F::kStreams;
  Int sum[N][kStreams];
  const auto step = [&]<int kAt>(std::integral_constant<int, kAt>) __attribute__((always_inline)) {
    constexpr int kSince = kAt % kFlush<V, F>;
    constexpr bool kFlushNow = kSince == kFlush<V, F> - 1 || kAt == F::kSteps - 1;
    Int w[kStreams];
    F::template unpack<kChunk, kAt>(p, loop, w);
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) {
      const int column = F::template column<kChunk, kAt>(loop, s);
      const int run = F::template run<kChunk>(loop, s);
      if constexpr (V::kDot) {
#pragma GCC unroll 16
        for (int r = 0; r < N; ++r) {
          const Int a = V::broadcast(rows[r].q + column);
          if constexpr (F::kRuns == 1) {
            total[r] = V::dot(total[r], w[s], a);
          } else {
            sum[r][s] = V::dot(kSince == 0 ? V::zero() : sum[r][s], w[s], a);
            if constexpr (kFlushNow) total[r] = V::add32(total[r], V::mul32(sum[r][s], h.scale[run]));
          }
        }
      } else {
        const auto weights = [&]() __attribute__((always_inline)) {
          if constexpr (F::kSigned) {
            return V::signed_bytes(w[s]);
          } else {
            return w[s];
          }
        }();
        const Int scale = F::kRuns == 1 ? V::splat16(1) : h.scale[run];
#pragma GCC unroll 16
        for (int r = 0; r < N; ++r) {
          const Int product = V::pairs(weights, V::broadcast(rows[r].q + column));
          sum[r][s] = kSince == 0 ? product : V::add16(sum[r][s], product);
          if constexpr (kFlushNow) total[r] = V::add32(total[r], V::madd(sum[r][s], scale));
        }
      }
    }
  };
  (step(std::integral_constant<int, kStep>{}), ...);
}

// The float step of one block for N rows. partials: [N][kPartials][kGroup] from the block's partial and the lane on.
template <class V, int kRuns, bool kMins, int N>
FT_INLINE void add_to_partials(const Header<V, kRuns>& h, const BlockRow* rows, const typename V::Int (&total)[N],
                               float* partials) {
#pragma GCC unroll 16
  for (int r = 0; r < N; ++r) {
    float* const at = partials + r * (kPartials * kGroup);
    const typename V::Float d_a = V::broadcast_float(&rows[r].d);
    typename V::Float sum = V::fma(V::to_float(total[r]), V::mul(h.d, d_a), V::load_float(at));
    if constexpr (kMins) {
      const typename V::Int msum = weigh_sums<V, kRuns>(h, rows[r].sums, 1);
      sum = V::negative_fma(V::to_float(msum), V::mul(h.dmin, d_a), sum);
    }
    V::store_float(at, sum);
  }
}

/// Unpacks and adds one block, for the lanes of one register, to the partial sums of N rows.
template <class V, class F, int N>
FT_INLINE void add_block(const std::byte* p, const Header<V, F::kRuns>& h, const BlockRow* rows, float* partials,
                         const std::byte* prefetch) {
  typename V::Int total[N];
#pragma GCC unroll 16
  for (int r = 0; r < N; ++r) {
    total[r] = V::zero();
    if constexpr (F::kOffset != 0) total[r] = weigh_sums<V, F::kRuns>(h, rows[r].sums, -F::kOffset);
  }
#pragma GCC unroll 1
  for (int loop = 0; loop < F::kLoops; ++loop) {
    const auto chunks = [&]<int... kChunk>(std::integer_sequence<int, kChunk...>) __attribute__((always_inline)) {
      const auto chunk = [&]<int kAt>(std::integral_constant<int, kAt>) __attribute__((always_inline)) {
        // The group's registers and their chunks each fetch their share of a block further on.
        constexpr int kShare = F::kBlockBytes * V::kLanes / (F::kLoops * F::kChunks);
#pragma GCC unroll 16
        for (int line = 0; line < kShare; line += 64) {
          __builtin_prefetch(prefetch + (loop * F::kChunks + kAt) * kShare + line);
        }
        add_chunk<V, F, N, kAt>(p, loop, h, rows, total, std::make_integer_sequence<int, F::kSteps>{});
      };
      (chunk(std::integral_constant<int, kChunk>{}), ...);
    };
    chunks(std::make_integer_sequence<int, F::kChunks>{});
  }
  add_to_partials<V, F::kRuns, F::kMins, N>(h, rows, total, partials);
}

// Folds the partial sums of one row, 8 -> 4 -> 2 -> 1, for all lanes.
template <class V>
FT_INLINE void fold(const float* partials, float* y) {
#pragma GCC unroll 2
  for (int lane = 0; lane < kGroup; lane += V::kLanes) {
    typename V::Float sum[kPartials];
#pragma GCC unroll 8
    for (int i = 0; i < kPartials; ++i) sum[i] = V::load_float(partials + i * kGroup + lane);
#pragma GCC unroll 3
    for (int half = kPartials / 2; half > 0; half /= 2) {
#pragma GCC unroll 4
      for (int i = 0; i < half; ++i) sum[i] = V::add(sum[i], sum[i + half]);
    }
    V::store_unaligned(y + lane, sum[0]);
  }
}

struct Partials {
  alignas(64) float at[kRowsAtOnce][kPartials][kGroup];
};

template <class V>
FT_INLINE void clear(Partials& partials, int num_rows) {
  for (int r = 0; r < num_rows; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kPartials * kGroup; i += V::kLanes) V::store_float(&partials.at[r][0][0] + i, V::zero_float());
  }
}

/// One group, N <= kDirectRows rows from `begin` on: unpacks and multiplies in one loop.
template <class V, class F, int N>
__attribute__((noinline)) void matmul_group(const QuantMatmul& m, const std::byte* group, int64_t group_idx, int begin) {
  Partials partials;
  clear<V>(partials, N);
  for (int64_t b = 0; b < m.num_blocks; ++b) {
    const std::byte* const block = group + b * (F::kBlockBytes * kGroup);
    BlockRow rows[N];
#pragma GCC unroll 16
    for (int r = 0; r < N; ++r) enter_block<F>(m.x[begin + r], b, rows[r]);
#pragma GCC unroll 1
    for (int lane = 0; lane < kGroup; lane += V::kLanes) {
      Header<V, F::kRuns> h;
      F::header(block, lane, h);
      add_block<V, F, N>(block + F::kOddBytes * kGroup + 4 * lane, h, rows, &partials.at[0][b % kPartials][lane],
                         block + kPrefetchAhead + lane * F::kBlockBytes);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < N; ++r) fold<V>(&partials.at[r][0][0], m.y[begin + r] + group_idx * kGroup);
}

// --- More rows: unpack a block once, then tiles of rows. ---

/// What a tile must know of a format.
template <int kBlockSize_, int kRuns_, int kFlush_, bool kSigned_, bool kMins_>
struct Shape {
  static constexpr int kBlockSize = kBlockSize_, kRuns = kRuns_, kFlush = kFlush_;
  static constexpr bool kSigned = kSigned_, kMins = kMins_;
};

/// Formats that differ in less share one tile: an int16 sum is never longer than a run.
template <class V, class F>
using ShapeOf =
    Shape<F::kBlockSize, F::kRuns,
          (kFlush<V, F> < F::kBlockSize / F::kRuns / 4 ? kFlush<V, F> : F::kBlockSize / F::kRuns / 4), F::kSigned, F::kMins>;

/// Adds one unpacked block to the partial sums of N rows. unpacked: [kBlockSize / 4] registers in order of columns.
/// offset: of formats with one run; others have it in h.pair. has_offset is false where isum starts at zero.
template <class V, class S, int N>
__attribute__((noinline)) void add_unpacked(const std::byte* unpacked, const Header<V, S::kRuns>& h, const BlockRow* rows,
                                            bool has_offset, int offset, float* partials) {
  using Int = typename V::Int;
  constexpr int kSteps = S::kBlockSize / S::kRuns / 4;
  Int total[N];
  const int8_t* q[N];
#pragma GCC unroll 16
  for (int r = 0; r < N; ++r) {
    total[r] = V::zero();
    q[r] = rows[r].q;
  }
  if (!S::kMins && has_offset) {
#pragma GCC unroll 16
    for (int r = 0; r < N; ++r) total[r] = weigh_sums<V, S::kRuns>(h, rows[r].sums, -offset);
  }
#pragma GCC unroll 1
  for (int run = 0; run < S::kRuns; ++run) {
    const Int scale = S::kRuns == 1 ? V::splat16(1) : h.scale[run];
    Int sum[N];
#pragma GCC unroll 16
    for (int step = 0; step < kSteps; ++step) {
      const Int w = V::load(unpacked + (run * kSteps + step) * V::kLanes * 4);
      const int column = (run * kSteps + step) * 4;
      if constexpr (V::kDot) {
#pragma GCC unroll 16
        for (int r = 0; r < N; ++r) {
          Int& into = S::kRuns == 1 ? total[r] : sum[r];
          into = V::dot(S::kRuns > 1 && step == 0 ? V::zero() : into, w, V::broadcast(q[r] + column));
        }
      } else {
        const auto weights = [&]() __attribute__((always_inline)) {
          if constexpr (S::kSigned) {
            return V::signed_bytes(w);
          } else {
            return w;
          }
        }();
#pragma GCC unroll 16
        for (int r = 0; r < N; ++r) {
          const Int product = V::pairs(weights, V::broadcast(q[r] + column));
          sum[r] = step % S::kFlush == 0 ? product : V::add16(sum[r], product);
          if (step % S::kFlush == S::kFlush - 1) total[r] = V::add32(total[r], V::madd(sum[r], scale));
        }
      }
    }
    if constexpr (V::kDot && S::kRuns > 1) {
#pragma GCC unroll 16
      for (int r = 0; r < N; ++r) total[r] = V::add32(total[r], V::mul32(sum[r], scale));
    }
  }
  add_to_partials<V, S::kRuns, S::kMins, N>(h, rows, total, partials);
}

template <class V, class F>
FT_INLINE void unpack_block(const std::byte* p, std::byte* unpacked) {
  const auto step = [&]<int kChunk, int kAt>(int loop, std::integral_constant<int, kChunk>, std::integral_constant<int, kAt>)
      __attribute__((always_inline)) {
    typename V::Int w[F::kStreams];
    F::template unpack<kChunk, kAt>(p, loop, w);
#pragma GCC unroll 4
    for (int s = 0; s < F::kStreams; ++s) {
      V::store(unpacked + F::template column<kChunk, kAt>(loop, s) * V::kLanes, w[s]);
    }
  };
  const auto chunk = [&]<int kChunk, int... kStep>(int loop, std::integral_constant<int, kChunk> at,
                                                   std::integer_sequence<int, kStep...>) __attribute__((always_inline)) {
    (step(loop, at, std::integral_constant<int, kStep>{}), ...);
  };
  const auto chunks = [&]<int... kChunk>(int loop, std::integer_sequence<int, kChunk...>) __attribute__((always_inline)) {
    (chunk(loop, std::integral_constant<int, kChunk>{}, std::make_integer_sequence<int, F::kSteps>{}), ...);
  };
#pragma GCC unroll 1
  for (int loop = 0; loop < F::kLoops; ++loop) chunks(loop, std::make_integer_sequence<int, F::kChunks>{});
}

/// One group, num_rows <= kRowsAtOnce rows from `begin` on, in tiles over unpacked blocks.
template <class V, class F>
__attribute__((noinline)) void matmul_group_tiled(const QuantMatmul& m, const std::byte* group, int64_t group_idx, int begin,
                                                  int num_rows) {
  using S = ShapeOf<V, F>;
  static_assert(!F::kMins || F::kOffset == 0);
  Partials partials;
  alignas(64) std::byte unpacked[F::kBlockSize * V::kLanes];
  BlockRow rows[kRowsAtOnce];
  clear<V>(partials, num_rows);
  const int num_tiles = (num_rows + kTileRows<V> - 1) / kTileRows<V>;
  const int prefetch_share = F::kBlockBytes * V::kLanes / num_tiles + 1;
  for (int64_t b = 0; b < m.num_blocks; ++b) {
    const std::byte* const block = group + b * (F::kBlockBytes * kGroup);
    for (int r = 0; r < num_rows; ++r) enter_block<F>(m.x[begin + r], b, rows[r]);
    const std::byte* prefetch = block + kPrefetchAhead;
    for (int lane = 0; lane < kGroup; lane += V::kLanes) {
      Header<V, F::kRuns> h;
      F::header(block, lane, h);
      unpack_block<V, F>(block + F::kOddBytes * kGroup + 4 * lane, unpacked);
      for (int tile = 0; tile < num_tiles; ++tile) {
        for (int line = 0; line < prefetch_share; line += 64) __builtin_prefetch(prefetch + line);
        prefetch += prefetch_share;
        // Tiles as even as possible: seven rows are 4 + 3, not 6 + 1.
        const int first = num_rows * tile / num_tiles, count = num_rows * (tile + 1) / num_tiles - first;
        float* const at = &partials.at[first][b % kPartials][lane];
        const BlockRow* const r = rows + first;
        switch (count) {
          case 1: add_unpacked<V, S, 1>(unpacked, h, r, F::kOffset != 0, F::kOffset, at); break;
          case 2: add_unpacked<V, S, 2>(unpacked, h, r, F::kOffset != 0, F::kOffset, at); break;
          case 3: add_unpacked<V, S, 3>(unpacked, h, r, F::kOffset != 0, F::kOffset, at); break;
          case 4: add_unpacked<V, S, 4>(unpacked, h, r, F::kOffset != 0, F::kOffset, at); break;
          case 5: add_unpacked<V, S, 5>(unpacked, h, r, F::kOffset != 0, F::kOffset, at); break;
          case 6: add_unpacked<V, S, 6>(unpacked, h, r, F::kOffset != 0, F::kOffset, at); break;
          case 7:
            if constexpr (kTileRows<V> == 8) add_unpacked<V, S, 7>(unpacked, h, r, F::kOffset != 0, F::kOffset, at);
            break;
          case 8:
            if constexpr (kTileRows<V> == 8) add_unpacked<V, S, 8>(unpacked, h, r, F::kOffset != 0, F::kOffset, at);
            break;
        }
      }
    }
  }
  for (int r = 0; r < num_rows; ++r) fold<V>(&partials.at[r][0][0], m.y[begin + r] + group_idx * kGroup);
}

template <class V, class F>
void matmul_format(const QuantMatmul& m) {
  for (int64_t g = 0; g < m.num_outputs / kGroup; ++g) {
    const std::byte* const group = m.weights + g * m.num_blocks * (F::kBlockBytes * kGroup);
    for (int begin = 0; begin < m.num_rows; begin += kRowsAtOnce) {
      const int count = m.num_rows - begin < kRowsAtOnce ? m.num_rows - begin : kRowsAtOnce;
      switch (count) {
        case 1: matmul_group<V, F, 1>(m, group, g, begin); break;
        case 2: matmul_group<V, F, 2>(m, group, g, begin); break;
        case 3: matmul_group<V, F, 3>(m, group, g, begin); break;
        case 4: matmul_group<V, F, 4>(m, group, g, begin); break;
        default: matmul_group_tiled<V, F>(m, group, g, begin, count); break;
      }
    }
  }
}

template <class V>
void interleaved_matmul(const QuantMatmul& m) {
  switch (m.type) {
    case WeightType::kQ4_0: return matmul_format<V, Q4_0<V>>(m);
    case WeightType::kQ4_1: return matmul_format<V, Q4_1<V>>(m);
    case WeightType::kQ5_0: return matmul_format<V, Q5_0<V>>(m);
    case WeightType::kQ5_1: return matmul_format<V, Q5_1<V>>(m);
    case WeightType::kQ8_0: return matmul_format<V, Q8_0<V>>(m);
    case WeightType::kIQ4_NL: return matmul_format<V, Iq4Nl<V>>(m);
    case WeightType::kMXFP4: return matmul_format<V, Mxfp4<V>>(m);
    case WeightType::kQ2_K: return matmul_format<V, Q2K<V>>(m);
    case WeightType::kQ3_K: return matmul_format<V, Q3K<V>>(m);
    case WeightType::kQ4_K: return matmul_format<V, Q4K<V>>(m);
    case WeightType::kQ5_K: return matmul_format<V, Q5K<V>>(m);
    case WeightType::kQ6_K: return matmul_format<V, Q6K<V>>(m);
    case WeightType::kIQ4_XS: return matmul_format<V, Iq4Xs<V>>(m);
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16: break;
  }
  __builtin_unreachable();  // matmul_rows sends quantised types only
}

}  // namespace
}  // namespace foretoken
