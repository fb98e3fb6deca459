#pragma once

#include <utility>

#include "kernels/formats/quant_simd.h"

// Private to the interleaved kernels: how each format's words unpack, one struct a format. The formats themselves are
// defined in quant_formats.h.
//
// A block is `kLoops` times `kChunks` chunks of `kSteps` words; loops run, chunks and steps are unrolled. A step
// unpacks one word of every lane into `kStreams` registers of four weights (the two nibbles of a byte belong to
// different columns). column<chunk, step>(loop, stream) is the first of those four columns, run<chunk>(loop, stream)
// the run that scales them. Weights come as u = q + kOffset, 0 <= u <= kMaxU; formats with kSigned as int8 (a magnitude
// of 128 fits the unsigned side of the multiply), or plus 128 where the processor has the int8 dot product, which does
// not saturate.
//
// A block of 64 or 128 weights is kParts parts of kBlockSize (32) values, each with kPartWords words, which all come
// behind the kFirstWord-th; header() and unpack() see one part. With kPermuted the columns are those of a permuted
// part (permute_part): a word's fields then are four columns that follow each other. With kFloatRuns, both runs of a
// part have a float scale, d and second_d.

namespace foretoken {
namespace {

// Shuffle that gives each lane bytes b0..b3 of itself; a negative index gives zero.
FT_INLINE __m128i lane_pattern(int b0, int b1, int b2, int b3) {
  const auto at = [](int lane, int byte) __attribute__((always_inline)) {
    return static_cast<char>(byte < 0 ? -128 : 4 * lane + byte);
  };
  return _mm_setr_epi8(at(0, b0), at(0, b1), at(0, b2), at(0, b3), at(1, b0), at(1, b1), at(1, b2), at(1, b3),
                       at(2, b0), at(2, b1), at(2, b2), at(2, b3), at(3, b0), at(3, b1), at(3, b2), at(3, b3));
}

template <class V>
FT_INLINE typename V::Int word(const std::byte* p, int index) {
  return V::load(p + 64 * index);
}

/// A block's scales for the lanes of one register.
template <class V, int kRuns>
struct Header {
  typename V::Int scale[kRuns];           // of each run: twice as int16, or once as int32 for the dot product
  typename V::Int pair[(kRuns + 1) / 2];  // int16 weights of the row sums of runs 2k and 2k+1: mins, or -offset * scale
  typename V::Float d, dmin;
  typename V::Float second_d;  // of formats with float scales: d is the first run's
};

// What only some formats say of themselves, and what it is without that.
template <class F>
FT_INLINE constexpr int parts_of() {
  if constexpr (requires { F::kParts; }) return F::kParts;
  return 1;
}
template <class F>
FT_INLINE constexpr bool has_float_runs() {
  if constexpr (requires { F::kFloatRuns; }) return F::kFloatRuns;
  return false;
}
template <class F>
FT_INLINE constexpr bool is_permuted() {
  return requires {
    F::permute_part;
  };
}
/// Bytes from the words of a block of sixteen rows to those of part `part`.
template <class F>
FT_INLINE int part_offset(int part) {
  if constexpr (parts_of<F>() == 1)
    return 0;
  else
    return 64 * (F::kFirstWord + part * F::kPartWords);
}
template <class F, class V, int kRuns>
FT_INLINE void read_header(const std::byte* block, int lane, int part, Header<V, kRuns>& h) {
  if constexpr (has_float_runs<F>())
    F::header(block, lane, part, h);
  else
    F::header(block, lane, h);
}

/// Scale of a run from byte k of each lane's four.
template <class V, bool kNegative>
FT_INLINE typename V::Int widen_scale(typename V::Int bytes, int k) {
  if constexpr (V::kDot) {
    if constexpr (kNegative) return V::template arithmetic32<24>(V::shuffle(bytes, lane_pattern(-1, -1, -1, k)));
    return V::shuffle(bytes, lane_pattern(k, -1, -1, -1));
  } else {
    if constexpr (kNegative) return V::template arithmetic16<8>(V::shuffle(bytes, lane_pattern(-1, k, -1, k)));
    return V::shuffle(bytes, lane_pattern(k, -1, k, -1));
  }
}

/// Bytes k and k+1 of each lane as int16.
template <class V, bool kNegative>
FT_INLINE typename V::Int widen_pair(typename V::Int bytes, int k) {
  if constexpr (kNegative) return V::template arithmetic16<8>(V::shuffle(bytes, lane_pattern(-1, k, -1, k + 1)));
  return V::shuffle(bytes, lane_pattern(k, -1, k + 1, -1));
}

template <class V>
FT_INLINE void split_nibbles(typename V::Int w, typename V::Int (&out)[2]) {
  out[0] = V::and_(w, V::splat8(0x0f));
  out[1] = V::and_(V::template shift16<4>(w), V::splat8(0x0f));
}

// One run, its scale is d alone: a half, the block's odd bytes.
template <class V>
struct OneRun {
  static constexpr int kRuns = 1;
  static constexpr bool kMins = false;
  template <int kChunk>
  static FT_INLINE int run(int, int) {
    return 0;
  }
  static FT_INLINE void header(const std::byte* block, int lane, Header<V, 1>& h) { h.d = V::halves(block + 2 * lane); }
};

// --- 32 values: one run, its scale is d alone. Low nibbles are columns 0..15, high nibbles 16..31. ---

template <class V>
struct NibbleBlock : OneRun<V> {
  static constexpr int kBlockSize = 32, kLoops = 1, kChunks = 1, kSteps = 4, kStreams = 2;
  static constexpr bool kSigned = false;
  template <int kChunk, int kStep>
  static FT_INLINE int column(int /*loop*/, int stream) {
    return 16 * stream + 4 * kStep;
  }
};

template <class V>
struct Q4_0 : NibbleBlock<V> {
  static constexpr int kBlockBytes = 18, kOddBytes = 2, kOffset = 8, kMaxU = 15;
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int, typename V::Int (&u)[2]) {
    split_nibbles<V>(word<V>(p, kStep), u);
  }
};

// value = d * q + m: dmin is -m.
template <class V>
FT_INLINE void header_with_min(const std::byte* block, int lane, Header<V, 1>& h) {
  typename V::Float m;
  V::two_halves(V::load(block + 4 * lane), h.d, m);
  h.dmin = V::negate(m);
}

template <class V>
struct Q4_1 : NibbleBlock<V> {
  static constexpr int kBlockBytes = 20, kOddBytes = 0, kOffset = 0, kMaxU = 15;
  static constexpr bool kMins = true;
  static FT_INLINE void header(const std::byte* block, int lane, Header<V, 1>& h) { header_with_min(block, lane, h); }
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int, typename V::Int (&u)[2]) {
    split_nibbles<V>(word<V>(p, 1 + kStep), u);
  }
};

// Adds the fifth bits: bits 4*kStep + 16*stream + i of each lane's word go to byte i.
template <class V, int kStep>
FT_INLINE void add_fifth_bits(typename V::Int high, typename V::Int (&u)[2]) {
  const int shift = 4 * kStep % 8;
  const typename V::Int bit = V::splat32(static_cast<int>(0x08040201u << shift));
#pragma GCC unroll 2
  for (int s = 0; s < 2; ++s) {
    const int byte = (4 * kStep + 16 * s) / 8;
    const typename V::Int spread = V::shuffle(high, lane_pattern(byte, byte, byte, byte));
    u[s] = V::or_(u[s], V::where_set(spread, bit, 16));
  }
}

template <class V>
struct Q5_0 : NibbleBlock<V> {
  static constexpr int kBlockBytes = 22, kOddBytes = 2, kOffset = 16, kMaxU = 31;
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int, typename V::Int (&u)[2]) {
    split_nibbles<V>(word<V>(p, 1 + kStep), u);
    add_fifth_bits<V, kStep>(word<V>(p, 0), u);
  }
};

template <class V>
struct Q5_1 : NibbleBlock<V> {
  static constexpr int kBlockBytes = 24, kOddBytes = 0, kOffset = 0, kMaxU = 31;
  static constexpr bool kMins = true;
  static FT_INLINE void header(const std::byte* block, int lane, Header<V, 1>& h) { header_with_min(block, lane, h); }
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int, typename V::Int (&u)[2]) {
    split_nibbles<V>(word<V>(p, 2 + kStep), u);
    add_fifth_bits<V, kStep>(word<V>(p, 1), u);
  }
};

template <class V>
struct Q8_0 : OneRun<V> {
  static constexpr int kBlockSize = 32, kLoops = 1, kChunks = 1, kSteps = 8, kStreams = 1;
  static constexpr int kBlockBytes = 34, kOddBytes = 2, kOffset = V::kDot ? 128 : 0, kMaxU = 255;
  static constexpr bool kSigned = true;
  template <int kChunk, int kStep>
  static FT_INLINE int column(int, int) {
    return 4 * kStep;
  }
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int, typename V::Int (&u)[1]) {
    u[0] = word<V>(p, kStep);
    if constexpr (V::kDot) u[0] = V::xor_(u[0], V::splat8(0x80));
  }
};

// The table of IQ4_NL and IQ4_XS (kIq4Table), plus `bias`.
FT_INLINE __m128i iq4_table(int bias) {
  return _mm_add_epi8(_mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113),
                      _mm_set1_epi8(static_cast<char>(bias)));
}

// The table of MXFP4 and NVFP4 (kMxfp4Table) plus 16.
FT_INLINE __m128i mxfp4_table() {
  return _mm_setr_epi8(16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4);
}

template <class V>
struct Iq4Nl : NibbleBlock<V> {
  static constexpr int kBlockBytes = 18, kOddBytes = 2, kOffset = V::kDot ? 128 : 0, kMaxU = 241;
  static constexpr bool kSigned = true;
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int, typename V::Int (&u)[2]) {
    split_nibbles<V>(word<V>(p, kStep), u);
    u[0] = V::look_up(iq4_table(kOffset), u[0]);
    u[1] = V::look_up(iq4_table(kOffset), u[1]);
  }
};

template <class V>
struct Mxfp4 : NibbleBlock<V> {
  // The offset 16 and not 12: pairs of 28 leave room for the same four steps, and the product with 16 needs no thought.
  static constexpr int kBlockBytes = 17, kOddBytes = 1, kOffset = 16, kMaxU = 28;
  static FT_INLINE void header(const std::byte* block, int lane, Header<V, 1>& h) {
    // d = 2^(e-128); the two smallest are denormal: 0x00200000 << e for e < 2.
    const typename V::Int e = V::widen_bytes(block + lane);
    const typename V::Int normal = V::template shift32<-23>(V::add32(e, V::splat32(-1)));
    const typename V::Int denormal = V::template shift32<-21>(V::add32(e, V::splat32(1)));  // 1 << e for e in {0, 1}
    h.d = V::as_float(V::where_less(e, 2, denormal, normal));
  }
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int, typename V::Int (&u)[2]) {
    split_nibbles<V>(word<V>(p, kStep), u);
    u[0] = V::look_up(mxfp4_table(), u[0]);
    u[1] = V::look_up(mxfp4_table(), u[1]);
  }
};

// Part of 32 values: one word. Bit 8b + s of it is column 8b + s; permuted, columns s, 8+s, 16+s and 24+s are 4s..4s+3.
template <class V>
struct Q1_0 : OneRun<V> {
  static constexpr int kBlockSize = 32, kLoops = 1, kChunks = 1, kSteps = 8, kStreams = 1;
  static constexpr int kParts = 4, kFirstWord = 0, kPartWords = 1;
  static constexpr int kBlockBytes = 18, kOddBytes = 2, kOffset = 1, kMaxU = 2;
  static constexpr bool kSigned = false;
  template <int kChunk, int kStep>
  static FT_INLINE int column(int, int) {
    return 4 * kStep;
  }
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int, typename V::Int (&u)[1]) {
    u[0] = V::and_(V::template shift16<kStep - 1>(word<V>(p, 0)), V::splat8(2));
  }
  static FT_INLINE void permute_part(const int8_t* from, int8_t* to) {
    const __m128i pairs = _mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
    const __m128i front = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)), pairs);
    const __m128i back = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16)), pairs);
    _mm_store_si128(reinterpret_cast<__m128i*>(to), _mm_unpacklo_epi16(front, back));
    _mm_store_si128(reinterpret_cast<__m128i*>(to + 16), _mm_unpackhi_epi16(front, back));
  }
};

// Part of 32 values: two words. Bits 8b + 2s of word w are column 16w + 4b + s; permuted, columns 16w + s, + 4, + 8 and
// + 12 are 16w + 4s..4s+3.
template <class V>
struct Q2_0 : OneRun<V> {
  static constexpr int kBlockSize = 32, kLoops = 1, kChunks = 2, kSteps = 4, kStreams = 1;
  static constexpr int kParts = 2, kFirstWord = 0, kPartWords = 2;
  static constexpr int kBlockBytes = 18, kOddBytes = 2, kOffset = 1, kMaxU = 3;
  static constexpr bool kSigned = false;
  template <int kChunk, int kStep>
  static FT_INLINE int column(int, int) {
    return 16 * kChunk + 4 * kStep;
  }
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int, typename V::Int (&u)[1]) {
    u[0] = V::and_(V::template shift16<2 * kStep>(word<V>(p, kChunk)), V::splat8(3));
  }
  static FT_INLINE void permute_part(const int8_t* from, int8_t* to) {
    const __m128i transpose = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (int w = 0; w < 2; ++w) {
      const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16 * w));
      _mm_store_si128(reinterpret_cast<__m128i*>(to + 16 * w), _mm_shuffle_epi8(x, transpose));
    }
  }
};

// Chunk: run of the part. Its two words have columns 4 step.. of the run in their low nibbles and 8 + 4 step.. above.
template <class V>
struct Nvfp4 {
  static constexpr int kBlockSize = 32, kRuns = 2, kLoops = 1, kChunks = 2, kSteps = 2, kStreams = 2;
  static constexpr int kParts = 2, kFirstWord = 1, kPartWords = 4;
  static constexpr int kBlockBytes = 36, kOddBytes = 0, kOffset = 16, kMaxU = 28;
  static constexpr bool kSigned = false, kMins = false, kFloatRuns = true;
  static FT_INLINE void header(const std::byte* block, int lane, int part, Header<V, 2>& h) {
    using Int = typename V::Int;
    const Int scales = word<V>(block + 4 * lane, 0);  // bytes 2 part and 2 part + 1 are the part's
    const Int bytes =
        part == 0 ? V::shuffle(scales, lane_pattern(-1, 0, -1, 1)) : V::shuffle(scales, lane_pattern(-1, 2, -1, 3));
    // half_of_ue4m3(): exponent and fraction as those of a half, 2^7 too small. 0x7f is 0.
    const Int halves = V::and_(V::template shift16<1>(V::clear_where16(bytes, 0x7f00)), V::splat16(0x3f80));
    typename V::Float first, second;
    V::two_halves(halves, first, second);
    const typename V::Float unit = V::as_float(V::splat32(0x43000000));  // 128
    h.d = V::mul(first, unit);
    h.second_d = V::mul(second, unit);
  }
  template <int kChunk, int kStep>
  static FT_INLINE int column(int, int stream) {
    return 16 * kChunk + 8 * stream + 4 * kStep;
  }
  template <int kChunk>
  static FT_INLINE int run(int, int) {
    return kChunk;
  }
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int, typename V::Int (&u)[2]) {
    split_nibbles<V>(word<V>(p, 2 * kChunk + kStep), u);
    u[0] = V::look_up(mxfp4_table(), u[0]);
    u[1] = V::look_up(mxfp4_table(), u[1]);
  }
};

// --- 256 values ---

// One scale for the block: loop n, chunk 2t + half as in Q2_K.
template <class V>
struct Tq2_0 : OneRun<V> {
  static constexpr int kBlockSize = 256, kLoops = 2, kChunks = 4, kSteps = 4, kStreams = 2;
  static constexpr int kBlockBytes = 66, kOddBytes = 2, kOffset = 1, kMaxU = 3;
  static constexpr bool kSigned = false;
  template <int kChunk, int kStep>
  static FT_INLINE int column(int loop, int stream) {
    return 128 * loop + 32 * (kChunk / 2 * 2 + stream) + 16 * (kChunk % 2) + 4 * kStep;
  }
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int loop, typename V::Int (&u)[2]) {
    constexpr int kT = kChunk / 2, kHalf = kChunk % 2;
    const typename V::Int w = word<V>(p, 8 * loop + 4 * kHalf + kStep), bits = V::splat8(3);
    u[0] = V::and_(V::template shift16<4 * kT>(w), bits);
    u[1] = V::and_(V::template shift16<4 * kT + 2>(w), bits);
  }
};

// Bytes times 3^kDigit, modulo 256.
template <class V, int kDigit>
FT_INLINE typename V::Int times_power_of_three(typename V::Int x) {
  static_assert(0 <= kDigit && kDigit <= 4);
  if constexpr (kDigit == 0) {
    return x;
  } else if constexpr (kDigit % 2 == 1) {
    return times_power_of_three<V, kDigit - 1>(V::add8(x, V::add8(x, x)));
  } else {
    const typename V::Int eight = V::and_(V::template shift16<-3>(x), V::splat8(0xf8));
    return times_power_of_three<V, kDigit - 2>(V::add8(x, eight));
  }
}

// Chunks 0..9: digit chunk / 2 of bytes 16 (chunk mod 2).. of the first 32; chunks 10..14: digit chunk - 10 of the next
// 16; chunk 15: digits 0..3 of the last four.
template <class V>
struct Tq1_0 : OneRun<V> {
  static constexpr int kBlockSize = 256, kLoops = 1, kChunks = 16, kSteps = 4, kStreams = 1;
  static constexpr int kBlockBytes = 54, kOddBytes = 2, kOffset = 1, kMaxU = 2;
  static constexpr bool kSigned = false;
  template <int kChunk, int kStep>
  static FT_INLINE int column(int, int) {
    return 16 * kChunk + 4 * kStep;
  }
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int, typename V::Int (&u)[1]) {
    constexpr int kWord = kChunk < 10 ? 4 * (kChunk % 2) + kStep : kChunk < 15 ? 8 + kStep : 12;
    constexpr int kDigit = kChunk < 10 ? kChunk / 2 : kChunk < 15 ? kChunk - 10 : kStep;
    const typename V::Int x = times_power_of_three<V, kDigit>(word<V>(p, kWord)), one = V::splat8(1);
    // The leading base-3 digit: 1 from 86 on, 2 from 171 on.
    u[0] = V::add8(V::min8(V::subtract_or_zero8(x, V::splat8(85)), one),
                   V::min8(V::subtract_or_zero8(x, V::splat8(170)), one));
  }
};

template <class V>
FT_INLINE void k_scales(typename V::Int s0, typename V::Int s1, typename V::Int s2, Header<V, 8>& h) {
  using Int = typename V::Int;
  const Int six = V::splat8(0x3f), low = V::splat8(0x0f), high = V::splat8(0x30);
  const Int scales[2] = {V::and_(s0, six), V::or_(V::and_(s2, low), V::and_(V::template shift16<2>(s0), high))};
  const Int mins[2] = {V::and_(s1, six),
                       V::or_(V::and_(V::template shift16<4>(s2), low), V::and_(V::template shift16<2>(s1), high))};
#pragma GCC unroll 8
  for (int run = 0; run < 8; ++run) h.scale[run] = widen_scale<V, false>(scales[run / 4], run % 4);
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) h.pair[k] = widen_pair<V, false>(mins[k / 2], 2 * k % 4);
}

template <class V>
struct Q4K {
  static constexpr int kBlockSize = 256, kRuns = 8, kLoops = 4, kChunks = 1, kSteps = 8, kStreams = 2;
  static constexpr int kBlockBytes = 144, kOddBytes = 0, kOffset = 0, kMaxU = 15;
  static constexpr bool kSigned = false, kMins = true;
  static FT_INLINE void header(const std::byte* block, int lane, Header<V, 8>& h) {
    const std::byte* const p = block + 4 * lane;
    V::two_halves(word<V>(p, 0), h.d, h.dmin);
    k_scales<V>(word<V>(p, 1), word<V>(p, 2), word<V>(p, 3), h);
  }
  template <int kChunk, int kStep>
  static FT_INLINE int column(int loop, int stream) {
    return 64 * loop + 32 * stream + 4 * kStep;
  }
  template <int kChunk>
  static FT_INLINE int run(int loop, int stream) {
    return 2 * loop + stream;
  }
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int loop, typename V::Int (&u)[2]) {
    split_nibbles<V>(word<V>(p, 4 + 8 * loop + kStep), u);
  }
};

// The fifth bits of chunk c are bits 2c and 2c+1 of qh: chunks are unrolled, so that the shifts are constants.
template <class V>
struct Q5K {
  static constexpr int kBlockSize = 256, kRuns = 8, kLoops = 1, kChunks = 4, kSteps = 8, kStreams = 2;
  static constexpr int kBlockBytes = 176, kOddBytes = 0, kOffset = 0, kMaxU = 31;
  static constexpr bool kSigned = false, kMins = true;
  static FT_INLINE void header(const std::byte* block, int lane, Header<V, 8>& h) {
    const std::byte* const p = block + 4 * lane;
    V::two_halves(word<V>(p, 0), h.d, h.dmin);
    k_scales<V>(word<V>(p, 1), word<V>(p, 2), word<V>(p, 3), h);
  }
  template <int kChunk, int kStep>
  static FT_INLINE int column(int, int stream) {
    return 64 * kChunk + 32 * stream + 4 * kStep;
  }
  template <int kChunk>
  static FT_INLINE int run(int, int stream) {
    return 2 * kChunk + stream;
  }
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int, typename V::Int (&u)[2]) {
    const typename V::Int high = word<V>(p, 4 + kStep), bit = V::splat8(0x10);
    split_nibbles<V>(word<V>(p, 12 + 8 * kChunk + kStep), u);
    u[0] = V::or_(u[0], V::and_(V::template shift16<2 * kChunk - 4>(high), bit));
    u[1] = V::or_(u[1], V::and_(V::template shift16<2 * kChunk - 3>(high), bit));
  }
};

// Loop n, chunk 2t + half: columns 128n + 32t + 16half and, in the high nibbles, 64 further.
template <class V>
struct Q6K {
  static constexpr int kBlockSize = 256, kRuns = 16, kLoops = 2, kChunks = 4, kSteps = 4, kStreams = 2;
  static constexpr int kBlockBytes = 210, kOddBytes = 2, kOffset = 32, kMaxU = 63;
  static constexpr bool kSigned = false, kMins = false;
  static FT_INLINE void header(const std::byte* block, int lane, Header<V, 16>& h) {
    h.d = V::halves(block + 2 * lane);
    const std::byte* const p = block + kOddBytes * 16 + 4 * lane;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const typename V::Int bytes = word<V>(p, 48 + i);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) h.scale[4 * i + k] = widen_scale<V, true>(bytes, k);
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        h.pair[2 * i + k] = V::sub16(V::zero(), V::template shift16<-5>(widen_pair<V, true>(bytes, 2 * k)));
      }
    }
  }
  template <int kChunk, int kStep>
  static FT_INLINE int column(int loop, int stream) {
    return 128 * loop + 64 * stream + 32 * (kChunk / 2) + 16 * (kChunk % 2) + 4 * kStep;
  }
  template <int kChunk>
  static FT_INLINE int run(int loop, int stream) {
    return 8 * loop + 4 * stream + kChunk;
  }
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int loop, typename V::Int (&u)[2]) {
    constexpr int kT = kChunk / 2, kHalf = kChunk % 2;
    const typename V::Int high = word<V>(p, 32 + 8 * loop + 4 * kHalf + kStep), bits = V::splat8(0x30);
    split_nibbles<V>(word<V>(p, 16 * loop + 8 * kT + 4 * kHalf + kStep), u);
    u[0] = V::or_(u[0], V::and_(V::template shift16<2 * kT - 4>(high), bits));
    u[1] = V::or_(u[1], V::and_(V::template shift16<2 * kT>(high), bits));
  }
};

// Loop n, chunk 2t + half: columns 128n + 32(2t + stream) + 16half.
template <class V>
struct Q2K {
  static constexpr int kBlockSize = 256, kRuns = 16, kLoops = 2, kChunks = 4, kSteps = 4, kStreams = 2;
  static constexpr int kBlockBytes = 84, kOddBytes = 0, kOffset = 0, kMaxU = 3;
  static constexpr bool kSigned = false, kMins = true;
  static FT_INLINE void header(const std::byte* block, int lane, Header<V, 16>& h) {
    const std::byte* const p = block + 4 * lane;
    V::two_halves(word<V>(p, 20), h.d, h.dmin);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      typename V::Int halves[2];  // scales, mins
      split_nibbles<V>(word<V>(p, i), halves);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) h.scale[4 * i + k] = widen_scale<V, false>(halves[0], k);
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) h.pair[2 * i + k] = widen_pair<V, false>(halves[1], 2 * k);
    }
  }
  template <int kChunk, int kStep>
  static FT_INLINE int column(int loop, int stream) {
    return 128 * loop + 32 * (kChunk / 2 * 2 + stream) + 16 * (kChunk % 2) + 4 * kStep;
  }
  template <int kChunk>
  static FT_INLINE int run(int loop, int stream) {
    return 8 * loop + 2 * (kChunk / 2 * 2 + stream) + kChunk % 2;
  }
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int loop, typename V::Int (&u)[2]) {
    constexpr int kT = kChunk / 2, kHalf = kChunk % 2;
    const typename V::Int w = word<V>(p, 4 + 8 * loop + 4 * kHalf + kStep), bits = V::splat8(3);
    u[0] = V::and_(V::template shift16<4 * kT>(w), bits);
    u[1] = V::and_(V::template shift16<4 * kT + 2>(w), bits);
  }
};

// Chunk 4n + 2t + half: columns as in Q2_K. The third bit is bit 4n + 2t + stream of hmask, so n is unrolled too.
template <class V>
struct Q3K {
  static constexpr int kBlockSize = 256, kRuns = 16, kLoops = 1, kChunks = 8, kSteps = 4, kStreams = 2;
  static constexpr int kBlockBytes = 110, kOddBytes = 2, kOffset = 4, kMaxU = 7;
  static constexpr bool kSigned = false, kMins = false;
  static FT_INLINE void header(const std::byte* block, int lane, Header<V, 16>& h) {
    using Int = typename V::Int;
    h.d = V::halves(block + 2 * lane);
    const std::byte* const p = block + kOddBytes * 16 + 4 * lane;
    const Int a = word<V>(p, 24), b = word<V>(p, 25), c = word<V>(p, 26);
    const Int low = V::splat8(0x0f), high = V::splat8(0x30), offset = V::splat8(32);
    // Runs 4i..4i+3: four low bits from a nibble of a or b, two high bits from bits 2i, 2i+1 of c.
    const Int bytes[4] = {
        V::or_(V::and_(a, low), V::and_(V::template shift16<-4>(c), high)),
        V::or_(V::and_(b, low), V::and_(V::template shift16<-2>(c), high)),
        V::or_(V::and_(V::template shift16<4>(a), low), V::and_(c, high)),
        V::or_(V::and_(V::template shift16<4>(b), low), V::and_(V::template shift16<2>(c), high)),
    };
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Int scales = V::sub8(bytes[i], offset);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) h.scale[4 * i + k] = widen_scale<V, true>(scales, k);
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        h.pair[2 * i + k] = V::sub16(V::zero(), V::template shift16<-2>(widen_pair<V, true>(scales, 2 * k)));
      }
    }
  }
  template <int kChunk, int kStep>
  static FT_INLINE int column(int, int stream) {
    return 128 * (kChunk / 4) + 32 * (kChunk % 4 / 2 * 2 + stream) + 16 * (kChunk % 2) + 4 * kStep;
  }
  template <int kChunk>
  static FT_INLINE int run(int, int stream) {
    return 8 * (kChunk / 4) + 2 * (kChunk % 4 / 2 * 2 + stream) + kChunk % 2;
  }
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int, typename V::Int (&u)[2]) {
    constexpr int kN = kChunk / 4, kT = kChunk % 4 / 2, kHalf = kChunk % 2;
    const typename V::Int w = word<V>(p, 8 + 8 * kN + 4 * kHalf + kStep), high = word<V>(p, 4 * kHalf + kStep);
    const typename V::Int bits = V::splat8(3), bit = V::splat8(4);
    u[0] = V::or_(V::and_(V::template shift16<4 * kT>(w), bits),
                  V::and_(V::template shift16<4 * kN + 2 * kT - 2>(high), bit));
    u[1] = V::or_(V::and_(V::template shift16<4 * kT + 2>(w), bits),
                  V::and_(V::template shift16<4 * kN + 2 * kT - 1>(high), bit));
  }
};

template <class V>
struct Iq4Xs {
  static constexpr int kBlockSize = 256, kRuns = 8, kLoops = 8, kChunks = 1, kSteps = 4, kStreams = 2;
  static constexpr int kBlockBytes = 136, kOddBytes = 0, kOffset = V::kDot ? 128 : 0, kMaxU = 241;
  static constexpr bool kSigned = true, kMins = false;
  static FT_INLINE void header(const std::byte* block, int lane, Header<V, 8>& h) {
    using Int = typename V::Int;
    const std::byte* const p = block + 4 * lane;
    const Int first = word<V>(p, 0), nibbles = word<V>(p, 1);
    typename V::Float high_bits_as_half;
    V::two_halves(first, h.d, high_bits_as_half);
    // scales_h stands in bytes 2 and 3 of the first word, run r in bits 2r, 2r+1. Even runs 0 2 4 6 find theirs at bit
    // 0 and 4 of either byte, odd runs at bit 2 and 6; all go to bits 4 and 5.
    const Int high = V::shuffle(first, lane_pattern(2, 2, 3, 3));
    const Int at_first = V::splat32(0x00300030), at_second = V::splat32(0x30003000);
    Int even_odd[2];
    split_nibbles<V>(nibbles, even_odd);
    even_odd[0] =
        V::or_(even_odd[0], V::or_(V::and_(V::template shift16<-4>(high), at_first), V::and_(high, at_second)));
    even_odd[1] = V::or_(even_odd[1], V::or_(V::and_(V::template shift16<-2>(high), at_first),
                                             V::and_(V::template shift16<2>(high), at_second)));
    even_odd[0] = V::sub8(even_odd[0], V::splat8(32));
    even_odd[1] = V::sub8(even_odd[1], V::splat8(32));
#pragma GCC unroll 8
    for (int run = 0; run < 8; ++run) h.scale[run] = widen_scale<V, true>(even_odd[run % 2], run / 2);
    if constexpr (kOffset != 0) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const Int even = V::shuffle(even_odd[0], lane_pattern(-1, k, -1, -1)),
                  odd = V::shuffle(even_odd[1], lane_pattern(-1, -1, -1, k));
        const Int pair = V::template arithmetic16<8>(V::or_(even, odd));
        h.pair[k] = V::sub16(V::zero(), V::template shift16<-7>(pair));
      }
    }
  }
  template <int kChunk, int kStep>
  static FT_INLINE int column(int loop, int stream) {
    return 32 * loop + 16 * stream + 4 * kStep;
  }
  template <int kChunk>
  static FT_INLINE int run(int loop, int) {
    return loop;
  }
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int loop, typename V::Int (&u)[2]) {
    split_nibbles<V>(word<V>(p, 2 + 4 * loop + kStep), u);
    u[0] = V::look_up(iq4_table(kOffset), u[0]);
    u[1] = V::look_up(iq4_table(kOffset), u[1]);
  }
};

// --- Formats with a grid, as levels (grid_levels.h). Scales are 2s + 1. ---

/// 2s + 1 of the low and of the high nibbles of four bytes.
template <class V>
FT_INLINE void odd_scales(typename V::Int nibbles, typename V::Int (&out)[2]) {
  split_nibbles<V>(nibbles, out);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) out[i] = V::or_(V::template shift16<-1>(out[i]), V::splat8(1));
}

/// -kOffset times the scales of two runs, from both as widen_scale() gives them.
template <class V, int kOffset>
FT_INLINE typename V::Int offset_pair(typename V::Int first, typename V::Int second) {
  return V::mul16(V::join16(first, second), V::splat16(-kOffset));
}

/// Bytes k of both, as int16: the first in the lower half of the lane.
template <class V>
FT_INLINE typename V::Int widen_pair(typename V::Int first, typename V::Int second, int k) {
  return V::or_(V::shuffle(first, lane_pattern(k, -1, -1, -1)), V::shuffle(second, lane_pattern(-1, -1, k, -1)));
}

template <class V>
FT_INLINE typename V::Float halves_times(const std::byte* p, float factor) {
  return V::mul(V::halves(p), V::broadcast_float(&factor));
}

// Nibbles in the order of Q4_K, eight runs.
template <class V>
struct Iq3Block {
  static constexpr int kBlockSize = 256, kRuns = 8, kLoops = 4, kChunks = 1, kSteps = 8, kStreams = 2;
  static constexpr int kBlockBytes = 134, kOddBytes = 2;
  static constexpr bool kSigned = false, kMins = false;
  template <int kChunk, int kStep>
  static FT_INLINE int column(int loop, int stream) {
    return 64 * loop + 32 * stream + 4 * kStep;
  }
  template <int kChunk>
  static FT_INLINE int run(int loop, int stream) {
    return 2 * loop + stream;
  }
};

// q = 2c - 15: c meets twice the scale.
template <class V>
struct Iq3S : Iq3Block<V> {
  static constexpr int kOffset = 15, kMaxU = 15;
  static FT_INLINE void header(const std::byte* block, int lane, Header<V, 8>& h) {
    using Int = typename V::Int;
    h.d = V::halves(block + 2 * lane);
    Int scales[2];
    odd_scales<V>(word<V>(block + 32 + 4 * lane, 0), scales);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const Int pair = widen_pair<V>(scales[0], scales[1], k);
      h.pair[k] = V::sub16(pair, V::template shift16<-4>(pair));
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) scales[i] = V::template shift16<-1>(scales[i]);
#pragma GCC unroll 8
    for (int run = 0; run < 8; ++run) h.scale[run] = widen_scale<V, false>(scales[run % 2], run / 2);
  }
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int loop, typename V::Int (&u)[2]) {
    split_nibbles<V>(word<V>(p, 1 + 8 * loop + kStep), u);
  }
};

template <class V>
struct Iq3Xxs : Iq3Block<V> {
  static constexpr int kOffset = 32, kMaxU = 63;
  static FT_INLINE void header(const std::byte* block, int lane, Header<V, 8>& h) {
    using Int = typename V::Int;
    h.d = halves_times<V>(block + 2 * lane, 0.5f);
    Int scales[2];
    odd_scales<V>(word<V>(block + 32 + 4 * lane, 0), scales);
#pragma GCC unroll 8
    for (int run = 0; run < 8; ++run) h.scale[run] = widen_scale<V, false>(scales[run % 2], run / 2);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) h.pair[k] = offset_pair<V, kOffset>(h.scale[2 * k], h.scale[2 * k + 1]);
  }
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int loop, typename V::Int (&u)[2]) {
    const __m128i table = _mm_setr_epi8(34, 38, 42, 46, 50, 54, 58, 63, 30, 26, 22, 18, 14, 10, 6, 1);  // 32 +- level
    split_nibbles<V>(word<V>(p, 1 + 8 * loop + kStep), u);
    u[0] = V::look_up(table, u[0]);
    u[1] = V::look_up(table, u[1]);
  }
};

// Code k of the eight in three words from p on. Table entries are 64 +- magnitude. The look-up takes the low four bits of
// a byte, and 0 where its top bit is set: fields are cleared in place, before a shift, and what is left above them does
// not matter.
template <class V, int kCode>
FT_INLINE typename V::Int look_up_three_bits(const std::byte* p) {
  using Int = typename V::Int;
  const __m128i table = _mm_setr_epi8(72, 89, 107, 64, 56, 39, 21, 64, 0, 0, 0, 0, 0, 0, 0, 0);
  Int codes;  // two
  if constexpr (kCode < 6) {
    codes = V::and_(word<V>(p, kCode / 2), V::splat8(0x77));
  } else {
    const Int x = V::and_(word<V>(p, 0), V::splat8(0x88)), y = V::and_(word<V>(p, 1), V::splat8(0x88)),
              z = V::and_(word<V>(p, 2), V::splat8(0x88));
    codes = V::or_(V::or_(V::template shift16<3>(x), V::template shift16<2>(y)), V::template shift16<1>(z));
  }
  return V::look_up(table, V::template shift16<kCode % 2 * 4>(codes));
}

// IQ2_S and IQ2_XS have sixteen runs, IQ2_XXS eight. Loop n: columns 32n .. 32n+31, whose runs are its chunks.
template <class V, int kNumRuns>
struct Iq2 {
  static constexpr int kBlockSize = 256, kRuns = kNumRuns, kLoops = 8, kStreams = 1;
  static constexpr int kChunks = kRuns / 8, kSteps = 8 / kChunks;
  static constexpr int kBlockBytes = 98 + kRuns / 2, kOddBytes = 2, kOffset = 64, kMaxU = 107;
  static constexpr bool kSigned = false, kMins = false;
  static FT_INLINE void header(const std::byte* block, int lane, Header<V, kRuns>& h) {
    using Int = typename V::Int;
    h.d = halves_times<V>(block + 2 * lane, 0.125f);
#pragma GCC unroll 2
    for (int w = 0; w < kChunks; ++w) {
      Int scales[2];
      odd_scales<V>(word<V>(block + 32 + 4 * lane, w), scales);
#pragma GCC unroll 8
      for (int run = 0; run < 8; ++run) h.scale[8 * w + run] = widen_scale<V, false>(scales[run % 2], run / 2);
    }
#pragma GCC unroll 8
    for (int k = 0; k < kRuns / 2; ++k) h.pair[k] = offset_pair<V, kOffset>(h.scale[2 * k], h.scale[2 * k + 1]);
  }
  template <int kChunk, int kStep>
  static FT_INLINE int column(int loop, int) {
    return 32 * loop + 4 * (kSteps * kChunk + kStep);
  }
  template <int kChunk>
  static FT_INLINE int run(int loop, int) {
    return kChunks * loop + kChunk;
  }
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int loop, typename V::Int (&u)[1]) {
    u[0] = look_up_three_bits<V, kSteps * kChunk + kStep>(p + 64 * (kChunks + 3 * loop));
  }
};

// Loop n, chunk c: the run of columns 64n + 32c, bits 4c .. 4c+3 of four words. q = 8 (u - 1) +- 1 with u = g + 1: u meets
// eight times the scale, and the rest is a weight of the row's sums.
template <class V>
struct Iq1S {
  static constexpr int kBlockSize = 256, kRuns = 8, kLoops = 4, kChunks = 2, kSteps = 8, kStreams = 1;
  static constexpr int kBlockBytes = 70, kOddBytes = 2, kOffset = 1, kMaxU = 2;
  static constexpr bool kSigned = false, kMins = false;
  static FT_INLINE void header(const std::byte* block, int lane, Header<V, 8>& h) {
    using Int = typename V::Int;
    h.d = halves_times<V>(block + 2 * lane, 0.125f);
    Int nibbles[2], scales[2];
    split_nibbles<V>(word<V>(block + 32 + 4 * lane, 0), nibbles);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {  // 8 (2s + 1)
      scales[i] = V::or_(V::template shift16<-4>(V::and_(nibbles[i], V::splat8(7))), V::splat8(8));
    }
#pragma GCC unroll 8
    for (int run = 0; run < 8; ++run) h.scale[run] = widen_scale<V, false>(scales[run % 2], run / 2);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const Int eight = widen_pair<V>(scales[0], scales[1], k), one = V::template shift16<3>(eight);
      // All bits where 1/8 is taken away.
      const Int minus =
          V::template arithmetic16<15>(V::template shift16<-12>(widen_pair<V>(nibbles[0], nibbles[1], k)));
      h.pair[k] = V::sub16(V::sub16(V::xor_(one, minus), minus), eight);
    }
  }
  template <int kChunk, int kStep>
  static FT_INLINE int column(int loop, int) {
    return 64 * loop + 32 * kChunk + 4 * kStep;
  }
  template <int kChunk>
  static FT_INLINE int run(int loop, int) {
    return 2 * loop + kChunk;
  }
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int loop, typename V::Int (&u)[1]) {
    u[0] = V::and_(V::template shift16<4 * kChunk + kStep / 4 * 2>(word<V>(p, 1 + 4 * loop + kStep % 4)), V::splat8(3));
  }
};

// Loop n, chunk j: the run of columns 64n + 16j, bits 2j, 2j+1 of four words. q = 2u - 9 with u = 4 (g + 1), and one more
// where 1/8 is added: twice the scale.
template <class V>
struct Iq1M {
  static constexpr int kBlockSize = 256, kRuns = 16, kLoops = 4, kChunks = 4, kSteps = 4, kStreams = 1;
  static constexpr int kBlockBytes = 78, kOddBytes = 2, kOffset = 9, kMaxU = 9;
  static constexpr bool kSigned = false, kMins = false;
  static FT_INLINE void header(const std::byte* block, int lane, Header<V, 16>& h) {
    using Int = typename V::Int;
    h.d = halves_times<V>(block + 2 * lane, 0.125f);
#pragma GCC unroll 2
    for (int w = 0; w < 2; ++w) {
      Int scales[2];
      odd_scales<V>(word<V>(block + 32 + 4 * lane, w), scales);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const Int pair = widen_pair<V>(scales[0], scales[1], k);
        h.pair[4 * w + k] = V::sub16(V::sub16(V::zero(), pair), V::template shift16<-3>(pair));
      }
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) scales[i] = V::template shift16<-1>(scales[i]);
#pragma GCC unroll 8
      for (int run = 0; run < 8; ++run) h.scale[8 * w + run] = widen_scale<V, false>(scales[run % 2], run / 2);
    }
  }
  template <int kChunk, int kStep>
  static FT_INLINE int column(int loop, int) {
    return 64 * loop + 16 * kChunk + 4 * kStep;
  }
  template <int kChunk>
  static FT_INLINE int run(int loop, int) {
    return 4 * loop + kChunk;
  }
  template <int kChunk, int kStep>
  static FT_INLINE void unpack(const std::byte* p, int loop, typename V::Int (&u)[1]) {
    // Bits 8 loop .. 8 loop + 7 are those of these columns, one for eight.
    constexpr int kBit = 2 * kChunk + kStep / 2;
    const typename V::Int plus = V::shift_right32(word<V>(p, 2), 8 * loop);
    const typename V::Int levels = word<V>(p, 3 + 4 * loop + kStep % 4);
    u[0] = V::or_(V::and_(V::template shift16<2 * kChunk - 2>(levels), V::splat8(12)),
                  V::and_(V::template arithmetic32<31>(V::template shift32<kBit - 31>(plus)), V::splat8(1)));
  }
};

}  // namespace
}  // namespace foretoken
