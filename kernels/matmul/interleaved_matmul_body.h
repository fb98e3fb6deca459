#pragma once

#include "kernels/formats/interleaved_formats.h"
#include "kernels/matmul/quant_matmul.h"

// Private: the interleaved kernels, included by one file per instruction set.
//
// A lane is an output row. A 64-byte word of the matrix holds the same four bytes of 16 rows, so after unpacking a
// register has four weights of each lane, and meets four activations of one row, broadcast. There are no horizontal
// sums.
//
// Few rows (a window): the registers of weights go from the unpacking straight into the products of all rows
// (add_block_direct). Many rows (a prompt): each block is unpacked once, into a buffer in L1 (8 KB at most) in order of
// columns; then tiles of rows read it (add_block). The buffer costs a store a register (32-byte stores go one a cycle
// on Zen 3, less than half the rate of anything else), which only many rows make up for: Q4_K at one row runs at 32
// GB/s directly and at 19 through the buffer, one thread, in cache.
//
// Blocks are the outer loop and rows the inner one, so that the memory system streams on while the tiles compute, and
// each byte of the matrix comes from memory once however many rows there are. Partial sums (kPartials x 16 floats a
// row) lie in L1 all the time.
//
// Sums stay in int16 while the bound of the format allows, then one multiply-add by the scale of the run, duplicated
// into both halves of the lane, widens to int32 and applies the scale at once. With the int8 dot product instruction
// sums are int32 from the start and the scale is a 32-bit product.

namespace foretoken {
namespace {

constexpr int kGroup = 16;       // kInterleave
constexpr int kPartials = 8;     // kPartialSums
constexpr int kRowsAtOnce = 16;  // rows whose partial sums are kept: 8 KB
constexpr int kPrefetchAhead = 4096;

/// Rows of one tile: a sum and a total each, one register of weights and one of activations.
template <class V>
constexpr int kTileRows = V::kLanes == 8 ? 6 : 8;

/// Most rows that are multiplied without the buffer. Formats whose block is unrolled as a whole (Q5_K, Q3_K) lose again
/// from five rows on: their code no longer fits the micro-op cache. Fewer in the emulation and under sanitizers, where
/// an instance takes the compiler many seconds.
template <class F>
#if defined(FORETOKEN_SIMD_EMULATION) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kDirectRows = 2;
#else
constexpr int kDirectRows = F::kLoops* F::kChunks > 2 && F::kLoops == 1 ? 4 : 6;
#endif

/// What one activation row brings to one block.
struct BlockRow {
  const int8_t* q;
  const int16_t* sums;  // one per run of the format; formats of one run have two here
  float d;
  alignas(16) int16_t sums_of_32[8];
  alignas(16) int8_t permuted[32];
};

// Runs of 16 have their sums in the row; those of 32 are added up here, once for all lanes.
template <class F>
FT_INLINE void enter_block(const RowView& row, int64_t b, BlockRow& out) {
  const QuantisedRow& x = F::kBlockSize == 32 ? row.by32 : row.by256;
  out.q = x.q + b * F::kBlockSize;
  out.d = x.d[b];
  const int16_t* sums = x.sums + b * (F::kBlockSize / 16);
  if constexpr (is_permuted<F>()) {
    F::permute_part(out.q, out.permuted);
    out.q = out.permuted;
  }
  if constexpr (F::kBlockSize == 256 && F::kRuns == 1) {
    // All in one: at most 256 * 127. Read as a pair with the 0 behind it.
    const __m128i both = _mm_add_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(sums)),
                                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(sums + 8)));
    const __m128i pairs = _mm_hadd_epi16(both, _mm_setzero_si128());
    const __m128i total = _mm_hadd_epi16(_mm_hadd_epi16(pairs, pairs), _mm_setzero_si128());
    _mm_store_si128(reinterpret_cast<__m128i*>(out.sums_of_32), total);
    out.sums = out.sums_of_32;
  } else if constexpr (F::kRuns == 8) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(sums));
    const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(sums + 8));
    _mm_store_si128(reinterpret_cast<__m128i*>(out.sums_of_32), _mm_hadd_epi16(low, high));
    out.sums = out.sums_of_32;
  } else {
    out.sums = sums;
  }
}

/// What the products of a format need to know of it. Formats that differ in less share one instance.
template <int kBlockSize_, int kRuns_, int kFlush_, bool kSigned_, bool kMins_, bool kFloatRuns_>
struct Shape {
  static constexpr int kBlockSize = kBlockSize_, kRuns = kRuns_;
  static constexpr int kStretches = kBlockSize / kRuns > 32 ? kBlockSize / 32 : kRuns;  // runs, cut to 32 values
  static constexpr int kSteps = kBlockSize / kStretches / 4;                            // registers of a stretch
  static constexpr bool kFloatRuns = kFloatRuns_;
  static constexpr int kTotals = kFloatRuns ? kRuns : 1;  // integer sums of a block that become floats
  static constexpr int kFlush = kFlush_;                  // registers whose products fit an int16 sum
  static constexpr bool kSigned = kSigned_, kMins = kMins_;
};

// The largest power of two of products, each a pair of at most 2 * kMaxU * 127, that an int16 holds.
constexpr int flush_after(int max_u, int steps) {
  int flush = steps;
  while (flush > 1 && flush * 2 * max_u * 127 > 32767) flush /= 2;
  return flush;
}

template <class V, class F>
using ShapeOf =
    Shape<F::kBlockSize, F::kRuns,
          V::kDot      ? F::kBlockSize / F::kRuns / 4
          : F::kSigned ? 1
                       : flush_after(F::kMaxU, F::kBlockSize / F::kRuns > 32 ? 8 : F::kBlockSize / F::kRuns / 4),
          F::kSigned, F::kMins, has_float_runs<F>()>;

/// A block of one register's lanes, unpacked.
template <class V, int kBlockSize, int kRuns>
struct Unpacked {
  alignas(64) std::byte weights[kBlockSize * V::kLanes];  // [kBlockSize / 4] registers in order of columns
  Header<V, kRuns> header;
  int offset;  // of the weights; 0 where isum starts at zero
};

/// x, and the compiler does not know it: a loop up to it stays a loop. GCC takes loops of two or four trips apart
/// whatever the pragma says, and bodies of 20 KB no longer come from the micro-op cache (Q6_K at four rows: 9.8 GB/s
/// instead of 12.9).
FT_INLINE int opaque(int x) {
  asm("" : "+r"(x));
  return x;
}

/// Memory that is about to be read, fetched a few lines at a time: a burst would fill the processor's miss buffers and
/// stall.
struct Prefetch {
  const std::byte* next;
  int bytes_per_step;
  FT_INLINE void fetch() {
    for (int line = 0; line < bytes_per_step; line += 64) __builtin_prefetch(next + line);
    next += bytes_per_step;
  }
  template <int kBytes>
  FT_INLINE void fetch_fixed() {
#pragma GCC unroll 16
    for (int line = 0; line < kBytes; line += 64) __builtin_prefetch(next + line);
    next += kBytes;
  }
};

template <class V, class F>
FT_INLINE void unpack(const std::byte* p, std::byte* weights) {
  const auto step = [&]<int kChunk, int kAt>(int loop, std::integral_constant<int, kChunk>,
                                             std::integral_constant<int, kAt>) __attribute__((always_inline)) {
    typename V::Int w[F::kStreams];
    F::template unpack<kChunk, kAt>(p, loop, w);
#pragma GCC unroll 2
    for (int s = 0; s < F::kStreams; ++s) {
      V::store(weights + F::template column<kChunk, kAt>(loop, s) * V::kLanes, w[s]);
    }
  };
  const auto chunk = [&]<int kChunk, int... kStep>(int loop, std::integral_constant<int, kChunk> at,
                                                   std::integer_sequence<int, kStep...>)
      __attribute__((always_inline)) {
    (step(loop, at, std::integral_constant<int, kStep>{}), ...);
  };
  const auto chunks = [&]<int... kChunk>(int loop, std::integer_sequence<int, kChunk...>)
      __attribute__((always_inline)) {
    (chunk(loop, std::integral_constant<int, kChunk>{}, std::make_integer_sequence<int, F::kSteps>{}), ...);
  };
#pragma GCC unroll 1
  for (int loop = 0; loop < F::kLoops; ++loop) chunks(loop, std::make_integer_sequence<int, F::kChunks>{});
}

// sum over runs of weight * S: the offset of unsigned formats, and the mins. |S| <= 4064 and |weight| <= 4096, so 16
// runs stay below 2^28. Formats of one run have the same weight for all lanes.
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

/// What the integer sums of a block begin with for N rows: what the offset of its weights makes of the row's sums.
template <class V, class S, int N>
FT_INLINE void begin_totals(const Header<V, S::kRuns>& h, const BlockRow* rows, int offset,
                            typename V::Int (&total)[N][S::kTotals]) {
#pragma GCC unroll 8
  for (int r = 0; r < N; ++r) {
    if constexpr (S::kFloatRuns) {
      const typename V::Int sums = V::broadcast(rows[r].sums);  // of both runs, int16
      total[r][0] = V::madd(sums, V::splat32(-offset & 0xffff));
      total[r][1] = V::madd(sums, V::splat32(static_cast<int>(static_cast<unsigned>(-offset) << 16)));
    } else {
      total[r][0] = S::kMins || offset == 0 ? V::zero() : weigh_sums<V, S::kRuns>(h, rows[r].sums, -offset);
    }
  }
}

/// The float step of a block: partial += total * d_w * d_a - msum * dmin_w * d_a, for N rows.
template <class V, class S, int N>
FT_INLINE void finish_block(const Header<V, S::kRuns>& h, const BlockRow* rows,
                            const typename V::Int (&total)[N][S::kTotals], float* partials) {
#pragma GCC unroll 8
  for (int r = 0; r < N; ++r) {
    float* const at = partials + r * (kPartials * kGroup);
    const typename V::Float d_a = V::broadcast_float(&rows[r].d);
    typename V::Float sum;
    if constexpr (S::kFloatRuns) {
      const typename V::Float first = V::mul(V::to_float(total[r][0]), h.d);
      sum = V::fma(V::fma(V::to_float(total[r][1]), h.second_d, first), d_a, V::load_float(at));
    } else {
      sum = V::fma(V::to_float(total[r][0]), V::mul(h.d, d_a), V::load_float(at));
    }
    if constexpr (S::kMins) {
      const typename V::Int msum = weigh_sums<V, S::kRuns>(h, rows[r].sums, 1);
      sum = V::negative_fma(V::to_float(msum), V::mul(h.dmin, d_a), sum);
    }
    V::store_float(at, sum);
  }
}

/// Adds an unpacked block to the partial sums of N rows: partials is [N][kPartials][kGroup] from the block's partial
/// and the register's first lane on.
template <class V, class S, int N>
__attribute__((noinline)) void add_block(const Unpacked<V, S::kBlockSize, S::kRuns>& w, const BlockRow* rows,
                                         float* partials, Prefetch& prefetch) {
  using Int = typename V::Int;
  Int total[N][S::kTotals];
  const int8_t* q[N];
#pragma GCC unroll 8
  for (int r = 0; r < N; ++r) q[r] = rows[r].q;
  begin_totals<V, S, N>(w.header, rows, w.offset, total);
  const std::byte* weights = w.weights;
  const auto add_stretch = [&](int stretch, int into_total) __attribute__((always_inline)) {
    constexpr bool kScaled = S::kRuns > 1 && !S::kFloatRuns;
    prefetch.fetch();
    const Int scale = kScaled ? w.header.scale[stretch] : V::splat16(1);
    Int sum[N];
#pragma GCC unroll 8
    for (int step = 0; step < S::kSteps; ++step) {
      const Int u = V::load(weights + step * V::kLanes * 4);
      if constexpr (V::kDot) {
#pragma GCC unroll 8
        for (int r = 0; r < N; ++r) {
          Int& into = kScaled ? sum[r] : total[r][into_total];
          into = V::dot(kScaled && step == 0 ? V::zero() : into, u, V::broadcast(q[r] + 4 * step));
        }
      } else {
        const auto factor = V::template factor<S::kSigned>(u);
#pragma GCC unroll 8
        for (int r = 0; r < N; ++r) {
          const Int product = V::pairs(factor, V::broadcast(q[r] + 4 * step));
          sum[r] = step % S::kFlush == 0 ? product : V::add16(sum[r], product);
          if (step % S::kFlush == S::kFlush - 1) {
            total[r][into_total] = V::add32(total[r][into_total], V::madd(sum[r], scale));
          }
        }
      }
    }
    if constexpr (V::kDot && kScaled) {
#pragma GCC unroll 8
      for (int r = 0; r < N; ++r) total[r][0] = V::add32(total[r][0], V::mul32(sum[r], scale));
    }
    weights += S::kSteps * V::kLanes * 4;
#pragma GCC unroll 8
    for (int r = 0; r < N; ++r) q[r] += S::kSteps * 4;
  };
  if constexpr (S::kFloatRuns) {
    add_stretch(0, 0);
    add_stretch(1, 1);
  } else {
#pragma GCC unroll 1
    for (int stretch = 0; stretch < S::kStretches; ++stretch) add_stretch(stretch, 0);
  }
  finish_block<V, S, N>(w.header, rows, total, partials);
}

/// The same from the block itself. Streams of a word (its two nibbles) are taken one after the other, each with its own
/// look at the word: both at once need twice the sums, more registers than there are from four rows on.
template <class V, class F, int N>
FT_INLINE void add_block_direct(const std::byte* block, int lane, int part, const BlockRow* rows, float* partials,
                                Prefetch& prefetch) {
  using Int = typename V::Int;
  using S = ShapeOf<V, F>;
  Header<V, F::kRuns> header;
  read_header<F>(block, lane, part, header);
  const std::byte* const words = block + F::kOddBytes * kGroup + 4 * lane + part_offset<F>(part);
  Int total[N][S::kTotals];
  const int8_t* q[N];
#pragma GCC unroll 8
  for (int r = 0; r < N; ++r) q[r] = rows[r].q;
  begin_totals<V, S, N>(header, rows, F::kOffset, total);

  const auto add_run = [&]<int kChunk, int kStream>(int loop) __attribute__((always_inline)) {
    const int column = F::template column<kChunk, 0>(loop, kStream);
    constexpr bool kScaled = S::kRuns > 1 && !S::kFloatRuns;
    const Int scale = kScaled ? header.scale[F::template run<kChunk>(loop, kStream)] : V::splat16(1);
    const int into_total = S::kFloatRuns ? F::template run<kChunk>(loop, kStream) : 0;
    Int sum[N];
    const auto step = [&]<int kStep>(std::integral_constant<int, kStep>) __attribute__((always_inline)) {
      Int u[F::kStreams];
      F::template unpack<kChunk, kStep>(words, loop, u);
      if constexpr (V::kDot) {
#pragma GCC unroll 8
        for (int r = 0; r < N; ++r) {
          Int& into = kScaled ? sum[r] : total[r][into_total];
          into = V::dot(kScaled && kStep == 0 ? V::zero() : into, u[kStream], V::broadcast(q[r] + column + 4 * kStep));
        }
      } else {
        const auto factor = V::template factor<S::kSigned>(u[kStream]);
#pragma GCC unroll 8
        for (int r = 0; r < N; ++r) {
          const Int product = V::pairs(factor, V::broadcast(q[r] + column + 4 * kStep));
          sum[r] = kStep % S::kFlush == 0 ? product : V::add16(sum[r], product);
          if (kStep % S::kFlush == S::kFlush - 1 || kStep == F::kSteps - 1) {
            total[r][into_total] = V::add32(total[r][into_total], V::madd(sum[r], scale));
          }
        }
      }
    };
    [&]<int... kStep>(std::integer_sequence<int, kStep...>) __attribute__((always_inline)) {
      (step(std::integral_constant<int, kStep>{}), ...);
    }
    (std::make_integer_sequence<int, F::kSteps>{});
    if constexpr (V::kDot && kScaled) {
#pragma GCC unroll 8
      for (int r = 0; r < N; ++r) total[r][0] = V::add32(total[r][0], V::mul32(sum[r], scale));
    }
  };
  const auto add_chunk = [&]<int kChunk>(int loop, std::integral_constant<int, kChunk>) __attribute__((always_inline)) {
    prefetch.template fetch_fixed<F::kBlockBytes * V::kLanes / (F::kLoops * F::kChunks * parts_of<F>())>();
    add_run.template operator()<kChunk, 0>(loop);
    if constexpr (F::kStreams == 2) add_run.template operator()<kChunk, 1>(loop);
  };
  for (int loop = 0; loop < (F::kLoops == 1 ? 1 : opaque(F::kLoops)); ++loop) {
    [&]<int... kChunk>(std::integer_sequence<int, kChunk...>) __attribute__((always_inline)) {
      (add_chunk(loop, std::integral_constant<int, kChunk>{}), ...);
    }
    (std::make_integer_sequence<int, F::kChunks>{});
  }
  finish_block<V, S, N>(header, rows, total, partials);
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

/// Calls with_count(std::integral_constant<int, count>) for 1 <= count <= kMost.
template <int kMost, class Body>
FT_INLINE void with_count(int count, const Body& body) {
  static_assert(kMost == 2 || kMost == 4 || kMost == 6 || kMost == 8);
  switch (count) {
    case 1:
      return body(std::integral_constant<int, 1>{});
    case 2:
      return body(std::integral_constant<int, 2>{});
  }
  if constexpr (kMost > 2) {
    switch (count) {
      case 3:
        return body(std::integral_constant<int, 3>{});
      case 4:
        return body(std::integral_constant<int, 4>{});
    }
  }
  if constexpr (kMost > 4) {
    if (count == 5) return body(std::integral_constant<int, 5>{});
    if (count == 6) return body(std::integral_constant<int, 6>{});
  }
  if constexpr (kMost == 8) {
    if (count == 7) return body(std::integral_constant<int, 7>{});
    return body(std::integral_constant<int, 8>{});
  }
}

/// Adds one block to the partial sums of num_rows rows.
template <class V, class F>
FT_INLINE void add_block_to_rows(const std::byte* block, int part, const BlockRow* rows, int num_rows,
                                 float* partials) {
  using S = ShapeOf<V, F>;
  static_assert(!F::kMins || F::kOffset == 0);
  const int num_tiles = (num_rows + kTileRows<V> - 1) / kTileRows<V>;
  constexpr int kPartBytes = F::kBlockBytes / parts_of<F>();
  Prefetch prefetch{block + kPrefetchAhead + kGroup * kPartBytes * part,
                    kPartBytes * V::kLanes / S::kStretches / num_tiles + 1};
  Unpacked<V, F::kBlockSize, F::kRuns> w;
  w.offset = F::kOffset;
  for (int lane = 0; lane < kGroup; lane += V::kLanes) {
    read_header<F>(block, lane, part, w.header);
    unpack<V, F>(block + F::kOddBytes * kGroup + 4 * lane + part_offset<F>(part), w.weights);
    for (int tile = 0; tile < num_tiles; ++tile) {
      // Tiles as even as possible: seven rows are 3 + 4, not 6 + 1.
      const int first = num_rows * tile / num_tiles, size = num_rows * (tile + 1) / num_tiles - first;
      with_count<kTileRows<V>>(
          size, [&](auto count) __attribute__((always_inline)) {
            add_block<V, S, count()>(w, rows + first, partials + first * (kPartials * kGroup) + lane, prefetch);
          });
    }
  }
}

/// All of a product with N rows, N <= kDirectRows<F>.
template <class V, class F, int N>
__attribute__((noinline)) void matmul_few(const QuantMatmul& m) {
  alignas(64) float partials[N][kPartials][kGroup];
  BlockRow rows[N];
  const std::byte* block = m.weights;
  for (int64_t g = 0; g < m.num_outputs / kGroup; ++g) {
    __builtin_memset(partials, 0, sizeof partials);
    for (int64_t f = 0; f < m.num_blocks; ++f) {
      Prefetch prefetch{block + kPrefetchAhead, 0};
      for (int part = 0; part < parts_of<F>(); ++part) {
        const int64_t b = f * parts_of<F>() + part;
#pragma GCC unroll 8
        for (int r = 0; r < N; ++r) enter_block<F>(m.x[r], b, rows[r]);
        for (int lane = 0; lane < (V::kLanes == kGroup ? kGroup : opaque(kGroup)); lane += V::kLanes) {
          add_block_direct<V, F, N>(block, lane, part, rows, partials[0][b % kPartials] + lane, prefetch);
        }
      }
      block += F::kBlockBytes * kGroup;
    }
    for (int r = 0; r < N; ++r) fold<V>(partials[r][0], m.y[r] + g * kGroup);
  }
}

template <class V, class F>
__attribute__((noinline)) void matmul_format(const QuantMatmul& m) {
  if (m.num_rows <= kDirectRows<F>) {
    return with_count<kDirectRows<F>>(m.num_rows, [&](auto count) { matmul_few<V, F, count()>(m); });
  }
  alignas(64) float partials[kRowsAtOnce][kPartials][kGroup];
  BlockRow rows[kRowsAtOnce];
  for (int64_t g = 0; g < m.num_outputs / kGroup; ++g) {
    const std::byte* const group = m.weights + g * m.num_blocks * (F::kBlockBytes * kGroup);
    for (int begin = 0; begin < m.num_rows; begin += kRowsAtOnce) {
      const int num_rows = m.num_rows - begin < kRowsAtOnce ? m.num_rows - begin : kRowsAtOnce;
      __builtin_memset(partials, 0, static_cast<size_t>(num_rows) * sizeof partials[0]);
      for (int64_t b = 0; b < m.num_blocks * parts_of<F>(); ++b) {
        for (int r = 0; r < num_rows; ++r) enter_block<F>(m.x[begin + r], b, rows[r]);
        add_block_to_rows<V, F>(group + b / parts_of<F>() * (F::kBlockBytes * kGroup),
                                static_cast<int>(b % parts_of<F>()), rows, num_rows, partials[0][b % kPartials]);
      }
      for (int r = 0; r < num_rows; ++r) fold<V>(partials[r][0], m.y[begin + r] + g * kGroup);
    }
  }
}

template <class V>
FT_INLINE void interleaved_matmul(const QuantMatmul& m) {
  switch (m.type) {
    case WeightType::kQ4_0:
      return matmul_format<V, Q4_0<V>>(m);
    case WeightType::kQ4_1:
      return matmul_format<V, Q4_1<V>>(m);
    case WeightType::kQ5_0:
      return matmul_format<V, Q5_0<V>>(m);
    case WeightType::kQ5_1:
      return matmul_format<V, Q5_1<V>>(m);
    case WeightType::kQ8_0:
      return matmul_format<V, Q8_0<V>>(m);
    case WeightType::kIQ4_NL:
      return matmul_format<V, Iq4Nl<V>>(m);
    case WeightType::kMXFP4:
      return matmul_format<V, Mxfp4<V>>(m);
    case WeightType::kTQ1_0:
      return matmul_format<V, Tq1_0<V>>(m);
    case WeightType::kTQ2_0:
      return matmul_format<V, Tq2_0<V>>(m);
    case WeightType::kNVFP4:
      return matmul_format<V, Nvfp4<V>>(m);
    case WeightType::kQ1_0:
      return matmul_format<V, Q1_0<V>>(m);
    case WeightType::kQ2_0:
      return matmul_format<V, Q2_0<V>>(m);
    case WeightType::kQ2_K:
      return matmul_format<V, Q2K<V>>(m);
    case WeightType::kQ3_K:
      return matmul_format<V, Q3K<V>>(m);
    case WeightType::kQ4_K:
      return matmul_format<V, Q4K<V>>(m);
    case WeightType::kQ5_K:
      return matmul_format<V, Q5K<V>>(m);
    case WeightType::kQ6_K:
      return matmul_format<V, Q6K<V>>(m);
    case WeightType::kIQ4_XS:
      return matmul_format<V, Iq4Xs<V>>(m);
    case WeightType::kIQ3_S:
      return matmul_format<V, Iq3S<V>>(m);
    case WeightType::kIQ3_XXS:
      return matmul_format<V, Iq3Xxs<V>>(m);
    case WeightType::kIQ2_S:
      return matmul_format<V, Iq2<V, 16>>(m);
    case WeightType::kIQ2_XS:
      return matmul_format<V, Iq2<V, 16>>(m);
    case WeightType::kIQ2_XXS:
      return matmul_format<V, Iq2<V, 8>>(m);
    case WeightType::kIQ1_S:
      return matmul_format<V, Iq1S<V>>(m);
    case WeightType::kIQ1_M:
      return matmul_format<V, Iq1M<V>>(m);
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16:
      break;
  }
  __builtin_unreachable();  // matmul_rows sends quantised types only
}

}  // namespace
}  // namespace foretoken
