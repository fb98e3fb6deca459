#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/formats/weight_type.h"

namespace foretoken {

// The integers inside every quantised format, and the one expression that all backends compute from them.
//
// A block of B weights (B = 32 or 256) is: two floats d and dmin, B small integers q[i], and for each run of 16 weights
// an integer scale and an integer min. A weight is worth
//
//     d * scale[i/16] * q[i] - dmin * min[i/16]
//
// It meets the B int8 values a[i] (|a| <= 127) of a quantised row, with their sums S[s] = sum of a over run s (|S| <=
// 2032) and their float scale d_a. Everything inside a block is exact in int32:
//
//     isum = sum_s scale[s] * sum_{i in s} q[i] * a[i]          msum = sum_s min[s] * S[s]
//
// and then come the only roundings, in this order, for block b and partial sum p = b mod kPartialSums:
//
//     acc[p] = fma(float(isum), d * d_a, acc[p])
//     acc[p] = fma(-float(msum), dmin * d_a, acc[p])             only formats with mins: Q2_K Q4_K Q5_K Q4_1 Q5_1
//
// float(int32) rounds to nearest even; d * d_a and dmin * d_a are one float product each. acc starts at +0. The result
// folds 8 -> 4 -> 2 -> 1: acc[i] += acc[i + half].
//
// Block layouts (bytes in a file; "half" is IEEE binary16, little endian), their integers, and the bounds that keep
// int32 from overflow (2^31 = 2147e6), with |a| <= 127:
//
// clang-format off
//  type    bytes                                           q[i]                    scale      min        max |isum|, max |msum|
//  Q4_0    d half, qs[16]                                  nibble - 8: -8..7       1          -          32*8*127 = 32512
//  Q4_1    d half, m half, qs[16]                          nibble: 0..15           1          1, dmin=-m 32*15*127 = 60960, 4064
//  Q5_0    d half, qh[4], qs[16]                           5 bits - 16: -16..15    1          -          32*16*127 = 65024
//  Q5_1    d half, m half, qh[4], qs[16]                   5 bits: 0..31           1          1, dmin=-m 32*31*127 = 125984, 4064
//  Q8_0    d half, qs[32]                                  int8: -128..127         1          -          32*128*127 = 520192
//  IQ4_NL  d half, qs[16]                                  kIq4Table[nibble]       1          -          32*127*127 = 516128
//  MXFP4   e, qs[16]; d = 2^(e-128)                        kMxfp4Table[nibble]     1          -          32*12*127 = 48768
//  Q2_K    scales[16], qs[64], d half, dmin half           2 bits: 0..3            0..15      0..15      256*15*3*127 = 1.5e6, 0.5e6
//  Q3_K    hmask[32], qs[64], scales[12], d half           3 bits - 4: -4..3       -32..31    -          256*32*4*127 = 4.2e6
//  Q4_K    d half, dmin half, scales[12], qs[128]          nibble: 0..15           0..63      0..63      256*63*15*127 = 30.8e6, 2.1e6
//  Q5_K    d half, dmin half, scales[12], qh[32], qs[128]  5 bits: 0..31           0..63      0..63      256*63*31*127 = 63.5e6, 2.1e6
//  Q6_K    ql[128], qh[64], scales[16], d half             6 bits - 32: -32..31    -128..127  -          256*128*32*127 = 133e6
//  IQ4_XS  d half, scales_h[2], scales_l[4], qs[128]       kIq4Table[nibble]       -32..31    -          256*32*127*127 = 132e6
//  TQ1_0   qs[48], qh[4], d half                           digit - 1: -1..1        1          -          256*1*127 = 32512
//  TQ2_0   qs[64], d half                                  2 bits - 1: -1..2       1          -          256*2*127 = 65024
//  Q1_0    d half, qs[16]: 128 values                      2 * bit - 1: -1, 1      1          -          32*1*127 = 4064
//  Q2_0    d half, qs[16]: 64 values                       2 bits - 1: -1..2       1          -          32*2*127 = 8128
//  NVFP4   e[4], qs[32]: 64 values                         kMxfp4Table[nibble]     floats     -          16*12*127 = 24384 a run
//  IQ3_S   d half, qs[64], qh[8], signs[32], scales[4]     +-1, 3 .. 15            1..31 odd  -          256*31*15*127 = 15.1e6
//  IQ3_XXS d half, qs[64], gas[32]; half d                 +-2, 6 .. 26, 31        1..31 odd  -          256*31*31*127 = 31.2e6
//  IQ2_S   d half, qs[32], signs[32], qh[8], scales[8]; d/8  +-8, 25, 43           1..31 odd  -          256*31*43*127 = 43.3e6
//  IQ2_XS  d half, qs[64], scales[8]; d/8                  +-8, 25, 43             1..31 odd  -          256*31*43*127 = 43.3e6
//  IQ2_XXS d half, qs[64]; d/8                             +-8, 25, 43             1..31 odd  -          256*31*43*127 = 43.3e6
//  IQ1_S   d half, qs[32], qh[16]; d/8                     8g +- 1, g = -1, 0, 1   1..15 odd  -          256*15*9*127 = 4.4e6
//  IQ1_M   qs[32], qh[16], scales[8]; d/8                  8g +- 1, g = -1, 0, 1   1..15 odd  -          256*15*9*127 = 4.4e6
// clang-format on
//
// Blocks of 64 and 128 weights (Q1_0, Q2_0, NVFP4) are two or four blocks of 32 to all of the above: part p of file
// block f is block b = f * parts + p, has values 32p..32p+31 and, in Q1_0 and Q2_0, the file block's d.
//
// NVFP4 has no d. Its runs have float scales s = half of the UE4M3 number e[run] (kMxfp4Table is twice the values):
// too far apart for integers of 32 bits. With the integer sums of the block's two runs,
//
//     t = fma(float(isum_1), s_1, float(isum_0) * s_0)           the product is exact: 15 and 4 bits
//     acc[p] = fma(t, d_a, acc[p])
//
// and since the product is exact, t is the same whichever run comes first.
//
// A kernel may split q into an unsigned part and an offset, q = u - off, u < 2 * max|q|: every intermediate sum then
// stays below twice these bounds, at most 266e6.
//
// Order of the bits. A nibble array qs[16] of a 32-value block: value i is the low nibble of byte i for i < 16, the
// high nibble of byte i-16 else; qh bit i is the fifth bit of value i. Q4_K, Q5_K: bytes 32c..32c+31 hold values 64c +
// l (low nibble) and 64c + 32 + l (high); bits 2c and 2c+1 of qh[l] are their fifth bits. IQ4_XS: bytes 16s..16s+15
// hold values 32s..32s+31 like a 32-value block. Q2_K, Q3_K: value 128n + 32j + l is bits 2j, 2j+1 of qs[32n + l];
// Q3_K's third bit is bit 4n + j of hmask[l]. Q6_K: value 128n + 32j + l has its low four bits in ql[64n + 32*(j mod 2)
// + l], low nibble for j < 2, and its high two in bits 2j, 2j+1 of qh[32n + l]. The 6-bit scales and mins of Q4_K and
// Q5_K (8 each, one per 32 values) and the scales of Q3_K are packed as unpack_block (quant_formats.cpp) shows.
//
// TQ2_0: value 128n + 32j + l is bits 2j, 2j+1 of qs[32n + l]. TQ1_0: digit k of a byte x is 3 * (x * 3^k mod 256) / 256,
// rounded down; value 32k + l is digit k of qs[l] (l < 32, k < 5), value 160 + 16k + l that of qs[32 + l] (l < 16, k < 5),
// value 240 + 4k + l that of qh[l] (l < 4, k < 4). Q1_0: value i is bit i mod 8 of qs[i / 8]. Q2_0: value i is bits
// 2 (i mod 4) and the next of qs[i / 4]. NVFP4: bytes 8s..8s+7 of qs hold values 16s..16s+7 (low nibbles) and
// 16s+8..16s+15 (high nibbles). UE4M3 e: bits 3..6 are an exponent x, bits 0..2 a fraction f; (8 + f) * 2^(x-10), or
// f * 2^-9 where x is 0; the byte 0x7f counts as 0, and bit 7 is not looked at but in that comparison.
// IQ1, IQ2 and IQ3 look eight (IQ3: four) values up at a time: an index names a point of the type's grid (grid_points.h),
// whose coordinates are magnitudes, or of IQ1 the g above. Group l is values 8l .. 8l+7, a run of 32 has four. Where signs
// are bits, bit i belongs to value i of its group, set for negative; where seven are stored, the eighth makes their
// number even. Scales are 2s + 1 of the s that is stored.
//   IQ2_XXS  a run has eight bytes of qs: four indices, then a word with seven signs of group l from bit 7l on and s
//            in its top four bits.
//   IQ2_XS   a group has 16 bits of qs: nine of the index, then seven signs. Byte r of scales has s of values
//            32r .. 32r+15 in its low nibble, of the next sixteen in the high one.
//   IQ2_S    eight bits of the index of group l in qs[l], the other two in qh[l/4] from bit 2(l mod 4) on; signs[l];
//            scales as in IQ2_XS.
//   IQ3_XXS  index of values 4j .. 4j+3 in qs[j]; gas is the words of signs and s of IQ2_XXS.
//   IQ3_S    eight bits of the index of values 4j .. 4j+3 in qs[j], the ninth is bit j mod 8 of qh[j/8]; signs[l];
//            s of run r is nibble r of scales.
//   IQ1_S    eight bits of the index in qs[l]; 16 bits of qh for a run: three more of each index from bit 3(l mod 4) on,
//            s in bits 12 .. 14, and bit 15 for -1 where +1 is added.
//   IQ1_M    qh has a nibble for each group: three bits of the index, and the fourth for -1. scales is four 16-bit words,
//            each with four s of three bits, one for 16 values; their top four bits together are d, the first word's the
//            lowest.
//
// A row is quantised (quantise_row) per block of B values: amax = max |x|; d = amax/127; a[i] = rint(x[i] *
// (127/amax)), ties to even. Edges, the same everywhere: where amax is so small (below 3.8e-37) that 127/amax is
// infinite, the block counts as zero, a = 0 and d = 0; where the block holds an infinity or NaN, a = 0 and d = NaN, so
// that the fault shows in the result.

/// Values of IQ4_NL and IQ4_XS nibbles.
inline constexpr int8_t kIq4Table[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/// Twice the values of MXFP4 nibbles (E2M1); the block's d is half of 2^(e-127) in return, so that all is integer.
inline constexpr int8_t kMxfp4Table[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/// Half of an UE4M3 number: what a run of NVFP4 is scaled by.
[[nodiscard]] float half_of_ue4m3(uint8_t e);

/// One block, unpacked. Formats of 32 values fill q[0..31], scale[0..1] and min[0..1]; formats without mins have dmin =
/// 0 and min = 0; NVFP4 has run_d and d = 0.
struct QuantBlock {
  float d;
  float dmin;
  float run_d[4];
  int8_t q[256];
  int16_t scale[16];
  int16_t min[16];
};

/// The definition of every format. REQUIRES: `type` is quantised; `block` has its block_bytes.
void unpack_block(WeightType type, const std::byte* block, QuantBlock& out);

/// True for formats with a second float step: Q2_K Q4_K Q5_K Q4_1 Q5_1.
[[nodiscard]] bool has_mins(WeightType type);

}  // namespace foretoken
