#include "kernels/formats/quant_formats.h"
#include "kernels/matmul/quant_matmul.h"

#include <type_traits>

// Quantised weights in the file's own layout. A lane of the float step is a block, not an output row: eight blocks are
// unpacked to int8, run scales and mins, each block of a row becomes one register of int32, eight registers are folded
// into one, whose lane p is the isum of block 8c + p. That is partial sum p, so the eight partial sums of an output are
// one register.
//
// The int8 product takes |w| as its unsigned side and gives the signs of w to the activation: |w| <= 128, so a pair is
// at most 2 * 128 * 127 = 32512 and never saturates. One multiply-add by the run scales widens to int32.
//
// Sixteen AVX-512 lanes would need sixteen blocks in flight for the same eight partial sums; this is the path of
// --no-repack and of shapes that do not interleave, so AVX-512 machines run it as it stands.

namespace foretoken {

namespace {

constexpr int kBlocksAtOnce = 8;  // kPartialSums
constexpr int kRowsAtOnce = 16;   // rows that share one unpacking

__m256i load(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
__m128i load_half_register(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
void store(void* p, __m256i x) {
  _mm256_store_si256(static_cast<__m256i*>(p), x);
}
__m256i low_nibbles(__m256i x) {
  return _mm256_and_si256(x, _mm256_set1_epi8(0x0f));
}
__m256i high_nibbles(__m256i x) {
  return low_nibbles(_mm256_srli_epi16(x, 4));
}

uint32_t u32_at(const std::byte* p) {
  uint32_t x;
  __builtin_memcpy(&x, p, 4);
  return x;
}

float half_at(const std::byte* p) {
  uint16_t h;
  __builtin_memcpy(&h, p, 2);
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h)));
}

// half_of_ue4m3(): exponent and fraction as those of a half, 2^7 too small.
float half_of_ue4m3_at(const std::byte* p) {
  const int e = static_cast<int>(*p);
  return e == 0x7f ? 0.0f : _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128((e & 0x7f) << 7))) * 128.0f;
}

// Sixteen bytes of nibbles: low ones are values 0..15, high ones 16..31.
__m256i nibble_array(const std::byte* p) {
  const __m128i x = load_half_register(p);
  return low_nibbles(_mm256_set_m128i(_mm_srli_epi16(x, 4), x));
}

// 0x10 in byte i where bit i is set.
__m256i fifth_bits(uint32_t bits) {
  const __m256i spread =
      _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)),
                          _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303));
  const __m256i mask = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
  return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(spread, mask), mask), _mm256_set1_epi8(0x10));
}

__m256i look_up(__m128i table, __m256i index) {
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), index);
}

__m128i iq4_table() {
  return _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);  // kIq4Table
}

__m128i mxfp4_table() {
  return _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);  // kMxfp4Table
}

// --- Formats of 32 values: d, dmin and 32 int8. Blocks of 64 and 128 are two or four parts of 32. ---

struct Small {
  static constexpr int kBlockSize = 32, kParts = 1;
};

struct Q4_0 : Small {
  static constexpr int kBlockBytes = 18;
  static constexpr bool kMins = false;
  static void unpack(const std::byte* p, int8_t* w, float& d, float&) {
    d = half_at(p);
    store(w, _mm256_sub_epi8(nibble_array(p + 2), _mm256_set1_epi8(8)));
  }
};

struct Q4_1 : Small {
  static constexpr int kBlockBytes = 20;
  static constexpr bool kMins = true;
  static void unpack(const std::byte* p, int8_t* w, float& d, float& dmin) {
    d = half_at(p);
    dmin = -half_at(p + 2);
    store(w, nibble_array(p + 4));
  }
};

struct Q5_0 : Small {
  static constexpr int kBlockBytes = 22;
  static constexpr bool kMins = false;
  static void unpack(const std::byte* p, int8_t* w, float& d, float&) {
    d = half_at(p);
    const __m256i u = _mm256_or_si256(nibble_array(p + 6), fifth_bits(u32_at(p + 2)));
    store(w, _mm256_sub_epi8(u, _mm256_set1_epi8(16)));
  }
};

struct Q5_1 : Small {
  static constexpr int kBlockBytes = 24;
  static constexpr bool kMins = true;
  static void unpack(const std::byte* p, int8_t* w, float& d, float& dmin) {
    d = half_at(p);
    dmin = -half_at(p + 2);
    store(w, _mm256_or_si256(nibble_array(p + 8), fifth_bits(u32_at(p + 4))));
  }
};

struct Q8_0 : Small {
  static constexpr int kBlockBytes = 34;
  static constexpr bool kMins = false;
  static void unpack(const std::byte* p, int8_t* w, float& d, float&) {
    d = half_at(p);
    store(w, load(p + 2));
  }
};

struct Iq4Nl : Small {
  static constexpr int kBlockBytes = 18;
  static constexpr bool kMins = false;
  static void unpack(const std::byte* p, int8_t* w, float& d, float&) {
    d = half_at(p);
    store(w, look_up(iq4_table(), nibble_array(p + 2)));
  }
};

struct Mxfp4 : Small {
  static constexpr int kBlockBytes = 17;
  static constexpr bool kMins = false;
  static void unpack(const std::byte* p, int8_t* w, float& d, float&) {
    const auto e = static_cast<uint32_t>(p[0]);
    const uint32_t bits = e < 2 ? 0x00200000u << e : (e - 1) << 23;  // 2^(e-128); the two smallest are denormal
    __builtin_memcpy(&d, &bits, 4);
    store(w, look_up(mxfp4_table(), nibble_array(p + 1)));
  }
};

// Two bits a value, 32 values of eight bytes: value i is bits 2 (i mod 4) and the next of byte i / 4.
__m256i two_bit_array(const std::byte* p) {
  const __m256i x = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m256i low = _mm256_or_si256(x, _mm256_slli_epi32(x, 6));
  return _mm256_and_si256(_mm256_or_si256(low, _mm256_slli_epi32(low, 12)), _mm256_set1_epi8(3));
}

struct Q1_0 : Small {
  static constexpr int kBlockBytes = 18, kParts = 4;
  static constexpr bool kMins = false;
  static void unpack(const std::byte* p, int part, int8_t* w, float& d, float&) {
    d = half_at(p);
    // 0x10 where a bit is set: an eighth of that is the bit's value times two.
    const __m256i twice_bit = _mm256_srli_epi16(fifth_bits(u32_at(p + 2 + 4 * part)), 3);
    store(w, _mm256_sub_epi8(twice_bit, _mm256_set1_epi8(1)));
  }
};

struct Q2_0 : Small {
  static constexpr int kBlockBytes = 18, kParts = 2;
  static constexpr bool kMins = false;
  static void unpack(const std::byte* p, int part, int8_t* w, float& d, float&) {
    d = half_at(p);
    store(w, _mm256_sub_epi8(two_bit_array(p + 2 + 8 * part), _mm256_set1_epi8(1)));
  }
};

// d is the scale of the first run, dmin that of the second.
struct Nvfp4 : Small {
  static constexpr int kBlockBytes = 36, kParts = 2;
  static constexpr bool kMins = false;
  static void unpack(const std::byte* p, int part, int8_t* w, float& d, float& dmin) {
    d = half_of_ue4m3_at(p + 2 * part);
    dmin = half_of_ue4m3_at(p + 2 * part + 1);
    const __m128i x = load_half_register(p + 4 + 16 * part), high = _mm_srli_epi16(x, 4);
    // A run's eight bytes: their low nibbles, then their high ones.
    const __m256i nibbles = _mm256_set_m128i(_mm_unpackhi_epi64(x, high), _mm_unpacklo_epi64(x, high));
    store(w, look_up(mxfp4_table(), low_nibbles(nibbles)));
  }
};

// --- Formats of 256 values: also 16 scales and, where they have them, 16 mins, as int16. ---

struct Large {
  static constexpr int kBlockSize = 256, kParts = 1;
};

// Eight int16, each twice.
__m256i twice(__m128i x) {
  return _mm256_set_m128i(_mm_unpackhi_epi16(x, x), _mm_unpacklo_epi16(x, x));
}

// The packed scales of Q4_K and Q5_K, see unpack_block.
void unpack_k_scales(const std::byte* p, int16_t* scales, int16_t* mins) {
  const uint32_t a = u32_at(p), b = u32_at(p + 4), c = u32_at(p + 8);
  const uint64_t scale_high = (c & 0x0f0f0f0fu) | (a >> 6 & 0x03030303u) << 4;
  const uint64_t min_high = (c >> 4 & 0x0f0f0f0fu) | (b >> 6 & 0x03030303u) << 4;
  const uint64_t scale_bytes = (a & 0x3f3f3f3fu) | scale_high << 32, min_bytes = (b & 0x3f3f3f3fu) | min_high << 32;
  store(scales, twice(_mm_cvtepu8_epi16(_mm_cvtsi64_si128(static_cast<int64_t>(scale_bytes)))));
  store(mins, twice(_mm_cvtepu8_epi16(_mm_cvtsi64_si128(static_cast<int64_t>(min_bytes)))));
}

struct Q4K : Large {
  static constexpr int kBlockBytes = 144;
  static constexpr bool kMins = true;
  static void unpack(const std::byte* p, int8_t* w, float& d, float& dmin, int16_t* scales, int16_t* mins) {
    d = half_at(p);
    dmin = half_at(p + 2);
    unpack_k_scales(p + 4, scales, mins);
    for (int c = 0; c < 4; ++c) {
      const __m256i x = load(p + 16 + 32 * c);
      store(w + 64 * c, low_nibbles(x));
      store(w + 64 * c + 32, high_nibbles(x));
    }
  }
};

struct Q5K : Large {
  static constexpr int kBlockBytes = 176;
  static constexpr bool kMins = true;
  static void unpack(const std::byte* p, int8_t* w, float& d, float& dmin, int16_t* scales, int16_t* mins) {
    d = half_at(p);
    dmin = half_at(p + 2);
    unpack_k_scales(p + 4, scales, mins);
    __m256i high = load(p + 16);
    for (int c = 0; c < 4; ++c) {
      const __m256i x = load(p + 48 + 32 * c), bit = _mm256_set1_epi8(0x10);
      const __m256i first = _mm256_and_si256(_mm256_slli_epi16(high, 4), bit);
      const __m256i second = _mm256_and_si256(_mm256_slli_epi16(high, 3), bit);
      store(w + 64 * c, _mm256_or_si256(low_nibbles(x), first));
      store(w + 64 * c + 32, _mm256_or_si256(high_nibbles(x), second));
      high = _mm256_srli_epi16(high, 2);
    }
  }
};

struct Q6K : Large {
  static constexpr int kBlockBytes = 210;
  static constexpr bool kMins = false;
  static void unpack(const std::byte* p, int8_t* w, float& d, float&, int16_t* scales, int16_t*) {
    d = half_at(p + 208);
    store(scales, _mm256_cvtepi8_epi16(load_half_register(p + 192)));
    const __m256i bits = _mm256_set1_epi8(0x30), offset = _mm256_set1_epi8(32);
    for (int n = 0; n < 2; ++n) {
      const __m256i a = load(p + 64 * n), b = load(p + 64 * n + 32), high = load(p + 128 + 32 * n);
      const __m256i u[4] = {
          _mm256_or_si256(low_nibbles(a), _mm256_and_si256(_mm256_slli_epi16(high, 4), bits)),
          _mm256_or_si256(low_nibbles(b), _mm256_and_si256(_mm256_slli_epi16(high, 2), bits)),
          _mm256_or_si256(high_nibbles(a), _mm256_and_si256(high, bits)),
          _mm256_or_si256(high_nibbles(b), _mm256_and_si256(_mm256_srli_epi16(high, 2), bits)),
      };
      for (int j = 0; j < 4; ++j) store(w + 128 * n + 32 * j, _mm256_sub_epi8(u[j], offset));
    }
  }
};

struct Q2K : Large {
  static constexpr int kBlockBytes = 84;
  static constexpr bool kMins = true;
  static void unpack(const std::byte* p, int8_t* w, float& d, float& dmin, int16_t* scales, int16_t* mins) {
    d = half_at(p + 80);
    dmin = half_at(p + 82);
    const __m128i packed = load_half_register(p), low = _mm_set1_epi8(0x0f);
    store(scales, _mm256_cvtepu8_epi16(_mm_and_si128(packed, low)));
    store(mins, _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(packed, 4), low)));
    for (int n = 0; n < 2; ++n) {
      __m256i x = load(p + 16 + 32 * n);
      for (int j = 0; j < 4; ++j) {
        store(w + 128 * n + 32 * j, _mm256_and_si256(x, _mm256_set1_epi8(3)));
        x = _mm256_srli_epi16(x, 2);
      }
    }
  }
};

struct Q3K : Large {
  static constexpr int kBlockBytes = 110;
  static constexpr bool kMins = false;
  static void unpack(const std::byte* p, int8_t* w, float& d, float&, int16_t* scales, int16_t*) {
    d = half_at(p + 108);
    const uint32_t a = u32_at(p + 96), b = u32_at(p + 100), c = u32_at(p + 104);
    const __m128i bytes = _mm_setr_epi32(static_cast<int>((a & 0x0f0f0f0fu) | (c & 0x03030303u) << 4),
                                         static_cast<int>((b & 0x0f0f0f0fu) | (c >> 2 & 0x03030303u) << 4),
                                         static_cast<int>((a >> 4 & 0x0f0f0f0fu) | (c >> 4 & 0x03030303u) << 4),
                                         static_cast<int>((b >> 4 & 0x0f0f0f0fu) | (c >> 6 & 0x03030303u) << 4));
    store(scales, _mm256_cvtepi8_epi16(_mm_sub_epi8(bytes, _mm_set1_epi8(32))));
    __m256i high = load(p);
    const __m256i four = _mm256_set1_epi8(4);
    for (int n = 0; n < 2; ++n) {
      __m256i x = load(p + 32 + 32 * n);
      for (int j = 0; j < 4; ++j) {
        const __m256i third = _mm256_and_si256(_mm256_slli_epi16(high, 2), four);
        const __m256i u = _mm256_or_si256(_mm256_and_si256(x, _mm256_set1_epi8(3)), third);
        store(w + 128 * n + 32 * j, _mm256_sub_epi8(u, four));
        x = _mm256_srli_epi16(x, 2);
        high = _mm256_srli_epi16(high, 1);
      }
    }
  }
};

struct Iq4Xs : Large {
  static constexpr int kBlockBytes = 136;
  static constexpr bool kMins = false;
  static void unpack(const std::byte* p, int8_t* w, float& d, float&, int16_t* scales, int16_t*) {
    d = half_at(p);
    const uint32_t high = u32_at(p) >> 16, low = u32_at(p + 4);
    alignas(16) int16_t scale[8];
    for (int s = 0; s < 8; ++s) {
      scale[s] = static_cast<int16_t>(static_cast<int>((low >> (4 * s) & 15) | (high >> (2 * s) & 3) << 4) - 32);
      store(w + 32 * s, look_up(iq4_table(), nibble_array(p + 8 + 16 * s)));
    }
    store(scales, twice(load_half_register(scale)));
  }
};

// Runs without scales of their own.
void unit_scales(int16_t* scales) {
  store(scales, _mm256_set1_epi16(1));
}

struct Tq2_0 : Large {
  static constexpr int kBlockBytes = 66;
  static constexpr bool kMins = false;
  static void unpack(const std::byte* p, int8_t* w, float& d, float&, int16_t* scales, int16_t*) {
    d = half_at(p + 64);
    unit_scales(scales);
    for (int n = 0; n < 2; ++n) {
      __m256i x = load(p + 32 * n);
      for (int j = 0; j < 4; ++j) {
        store(w + 128 * n + 32 * j, _mm256_sub_epi8(_mm256_and_si256(x, _mm256_set1_epi8(3)), _mm256_set1_epi8(1)));
        x = _mm256_srli_epi16(x, 2);
      }
    }
  }
};

// The leading base-3 digit of each byte, less one.
__m256i digits(__m256i x) {
  const __m256i one = _mm256_set1_epi8(1);
  const __m256i from_86 = _mm256_min_epu8(_mm256_subs_epu8(x, _mm256_set1_epi8(85)), one);
  const __m256i from_171 = _mm256_min_epu8(_mm256_subs_epu8(x, _mm256_set1_epi8(static_cast<char>(170))), one);
  return _mm256_sub_epi8(_mm256_add_epi8(from_86, from_171), one);
}

__m256i times_three(__m256i x) {
  return _mm256_add_epi8(x, _mm256_add_epi8(x, x));
}

struct Tq1_0 : Large {
  static constexpr int kBlockBytes = 54;
  static constexpr bool kMins = false;
  static void unpack(const std::byte* p, int8_t* w, float& d, float&, int16_t* scales, int16_t*) {
    d = half_at(p + 52);
    unit_scales(scales);
    __m256i x = load(p), y = _mm256_broadcastsi128_si256(load_half_register(p + 32)),
            z = _mm256_set1_epi32(static_cast<int>(u32_at(p + 48)));
    for (int k = 0; k < 5; ++k) {
      store(w + 32 * k, digits(x));
      _mm_store_si128(reinterpret_cast<__m128i*>(w + 160 + 16 * k), _mm256_castsi256_si128(digits(y)));
      if (k < 4) {
        const int four = _mm_cvtsi128_si32(_mm256_castsi256_si128(digits(z)));
        __builtin_memcpy(w + 240 + 4 * k, &four, 4);
      }
      x = times_three(x);
      y = times_three(y);
      z = times_three(z);
    }
  }
};

// Formats with a grid: the look-ups are those of the definition, whatever the registers.
template <WeightType kType, int kBytes>
struct Unpacked : Large {
  static constexpr int kBlockBytes = kBytes;
  static constexpr bool kMins = false;
  static void unpack(const std::byte* p, int8_t* w, float& d, float&, int16_t* scales, int16_t*) {
    QuantBlock block;
    unpack_block(kType, p, block);
    d = block.d;
    __builtin_memcpy(w, block.q, sizeof block.q);
    __builtin_memcpy(scales, block.scale, sizeof block.scale);
  }
};

// --- The products ---

/// Two runs with a float scale each.
template <class F>
constexpr bool kFloatRuns = std::is_same_v<F, Nvfp4>;

/// Eight blocks of one output, unpacked. Lanes past the last block hold old values and are never stored.
template <class F>
struct Blocks {
  static constexpr bool kScales = F::kBlockSize == 256;
  alignas(32) int8_t w[kBlocksAtOnce][F::kBlockSize];
  alignas(32) float d[kBlocksAtOnce] = {};
  alignas(32) float dmin[kBlocksAtOnce] = {};
  // Eight times scale 2k and eight times scale 2k+1, for columns 32k..32k+31.
  alignas(32) int16_t scales[kScales ? kBlocksAtOnce : 1][F::kBlockSize / 32][16];
  alignas(32) int16_t mins[kScales ? kBlocksAtOnce : 1][16];
};

template <class F>
void unpack_blocks(const std::byte* p, int count, Blocks<F>& blocks) {
  for (int b = 0; b < count; ++b) {
    const std::byte* const block = p + b / F::kParts * F::kBlockBytes;
    if constexpr (F::kParts > 1) {
      F::unpack(block, b % F::kParts, blocks.w[b], blocks.d[b], blocks.dmin[b]);
    } else if constexpr (F::kBlockSize == 32) {
      F::unpack(block, blocks.w[b], blocks.d[b], blocks.dmin[b]);
    } else {
      alignas(32) int16_t scales[16];
      F::unpack(block, blocks.w[b], blocks.d[b], blocks.dmin[b], scales, blocks.mins[b]);
      for (int k = 0; k < 8; ++k) {
        store(blocks.scales[b][k], _mm256_set_m128i(_mm_set1_epi16(scales[2 * k + 1]), _mm_set1_epi16(scales[2 * k])));
      }
    }
  }
}

// Lane i: the sums of x[i]'s four low and of its four high lanes.
struct HalfSums {
  __m256i low, high;
};

HalfSums fold_halves(const __m256i (&x)[8]) {
  const __m256i front = _mm256_hadd_epi32(_mm256_hadd_epi32(x[0], x[1]), _mm256_hadd_epi32(x[2], x[3]));
  const __m256i back = _mm256_hadd_epi32(_mm256_hadd_epi32(x[4], x[5]), _mm256_hadd_epi32(x[6], x[7]));
  return {_mm256_permute2x128_si256(front, back, 0x20), _mm256_permute2x128_si256(front, back, 0x31)};
}

// Lane i: the sum of x[i]'s eight lanes.
__m256i fold_registers(const __m256i (&x)[8]) {
  const HalfSums sums = fold_halves(x);
  return _mm256_add_epi32(sums.low, sums.high);
}

// |sum| of 32 columns of one lane <= 32512 * scale: 256 columns stay below the bounds of quant_formats.h.
template <class F>
__m256i block_product(const Blocks<F>& blocks, int b, const int8_t* a) {
  __m256i total = _mm256_setzero_si256();
  for (int k = 0; k < F::kBlockSize / 32; ++k) {
    const __m256i w = load(blocks.w[b] + 32 * k);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(load(a + 32 * k), w));
    const __m256i scale = Blocks<F>::kScales ? load(blocks.scales[b][k]) : _mm256_set1_epi16(1);
    total = _mm256_add_epi32(total, _mm256_madd_epi16(pairs, scale));
  }
  return total;
}

// Adds `count` blocks of one row to its partial sums.
template <class F>
void add_blocks(const Blocks<F>& blocks, int count, const int8_t* a, const float* d, const int16_t* sums,
                float* partials) {
  __m256i products[8], mins[8];
  for (int b = 0; b < count; ++b) products[b] = block_product<F>(blocks, b, a + b * F::kBlockSize);
  for (int b = count; b < 8; ++b) products[b] = _mm256_setzero_si256();
  const __m256i lanes = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  const __m256 d_a = _mm256_maskload_ps(d, lanes);
  const __m256 old = _mm256_load_ps(partials);
  __m256 sum;
  if constexpr (kFloatRuns<F>) {
    // The low lanes of a product are the first run's.
    const HalfSums runs = fold_halves(products);
    const __m256 first = _mm256_mul_ps(_mm256_cvtepi32_ps(runs.low), _mm256_load_ps(blocks.d));
    const __m256 both = _mm256_fmadd_ps(_mm256_cvtepi32_ps(runs.high), _mm256_load_ps(blocks.dmin), first);
    sum = _mm256_fmadd_ps(both, d_a, old);
  } else {
    const __m256 isum = _mm256_cvtepi32_ps(fold_registers(products));
    sum = _mm256_fmadd_ps(isum, _mm256_mul_ps(_mm256_load_ps(blocks.d), d_a), old);
  }
  if constexpr (F::kMins) {
    __m256i msum;
    if constexpr (F::kBlockSize == 32) {
      // Two runs a block: their sums lie side by side.
      msum = _mm256_madd_epi16(_mm256_maskload_epi32(reinterpret_cast<const int*>(sums), lanes), _mm256_set1_epi16(1));
    } else {
      for (int b = 0; b < count; ++b) mins[b] = _mm256_madd_epi16(load(blocks.mins[b]), load(sums + 16 * b));
      for (int b = count; b < 8; ++b) mins[b] = _mm256_setzero_si256();
      msum = fold_registers(mins);
    }
    sum = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(msum), _mm256_mul_ps(_mm256_load_ps(blocks.dmin), d_a), sum);
  }
  // Lanes without a block keep even the sign of their zero.
  _mm256_store_ps(partials, _mm256_blendv_ps(old, sum, _mm256_castsi256_ps(lanes)));
}

// Folds 8 -> 4 -> 2 -> 1, lane i adding lane i + half.
float fold(const float* partials) {
  const __m128 four = _mm_add_ps(_mm_load_ps(partials), _mm_load_ps(partials + 4));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

template <class F>
void matmul_format(const QuantMatmul& m) {
  const int64_t row_bytes = m.num_blocks * F::kBlockBytes;
  for (int64_t o = 0; o < m.num_outputs; ++o) {
    const std::byte* const weights = m.weights + o * row_bytes;
    for (int begin = 0; begin < m.num_rows; begin += kRowsAtOnce) {
      const int num_rows = m.num_rows - begin < kRowsAtOnce ? m.num_rows - begin : kRowsAtOnce;
      alignas(32) float partials[kRowsAtOnce][kBlocksAtOnce];
      for (int r = 0; r < num_rows; ++r) _mm256_store_ps(partials[r], _mm256_setzero_ps());
      Blocks<F> blocks;
      const int64_t num_blocks = m.num_blocks * F::kParts;
      for (int64_t b = 0; b < num_blocks; b += kBlocksAtOnce) {
        const int count = num_blocks - b < kBlocksAtOnce ? static_cast<int>(num_blocks - b) : kBlocksAtOnce;
        unpack_blocks<F>(weights + b / F::kParts * F::kBlockBytes, count, blocks);
        for (int r = 0; r < num_rows; ++r) {
          const QuantisedRow& x = F::kBlockSize == 32 ? m.x[begin + r].by32 : m.x[begin + r].by256;
          const int64_t column = b * F::kBlockSize;
          add_blocks<F>(blocks, count, x.q + column, x.d + b, x.sums + column / 16, partials[r]);
        }
      }
      for (int r = 0; r < num_rows; ++r) m.y[begin + r][o] = fold(partials[r]);
    }
  }
}

}  // namespace

void avx2_quant_matmul(const QuantMatmul& m) {
  switch (m.type) {
    case WeightType::kQ4_0:
      return matmul_format<Q4_0>(m);
    case WeightType::kQ4_1:
      return matmul_format<Q4_1>(m);
    case WeightType::kQ5_0:
      return matmul_format<Q5_0>(m);
    case WeightType::kQ5_1:
      return matmul_format<Q5_1>(m);
    case WeightType::kQ8_0:
      return matmul_format<Q8_0>(m);
    case WeightType::kIQ4_NL:
      return matmul_format<Iq4Nl>(m);
    case WeightType::kMXFP4:
      return matmul_format<Mxfp4>(m);
    case WeightType::kTQ1_0:
      return matmul_format<Tq1_0>(m);
    case WeightType::kTQ2_0:
      return matmul_format<Tq2_0>(m);
    case WeightType::kNVFP4:
      return matmul_format<Nvfp4>(m);
    case WeightType::kQ1_0:
      return matmul_format<Q1_0>(m);
    case WeightType::kQ2_0:
      return matmul_format<Q2_0>(m);
    case WeightType::kQ2_K:
      return matmul_format<Q2K>(m);
    case WeightType::kQ3_K:
      return matmul_format<Q3K>(m);
    case WeightType::kQ4_K:
      return matmul_format<Q4K>(m);
    case WeightType::kQ5_K:
      return matmul_format<Q5K>(m);
    case WeightType::kQ6_K:
      return matmul_format<Q6K>(m);
    case WeightType::kIQ4_XS:
      return matmul_format<Iq4Xs>(m);
    case WeightType::kIQ3_S:
      return matmul_format<Unpacked<WeightType::kIQ3_S, 110>>(m);
    case WeightType::kIQ3_XXS:
      return matmul_format<Unpacked<WeightType::kIQ3_XXS, 98>>(m);
    case WeightType::kIQ2_S:
      return matmul_format<Unpacked<WeightType::kIQ2_S, 82>>(m);
    case WeightType::kIQ2_XS:
      return matmul_format<Unpacked<WeightType::kIQ2_XS, 74>>(m);
    case WeightType::kIQ2_XXS:
      return matmul_format<Unpacked<WeightType::kIQ2_XXS, 66>>(m);
    case WeightType::kIQ1_S:
      return matmul_format<Unpacked<WeightType::kIQ1_S, 50>>(m);
    case WeightType::kIQ1_M:
      return matmul_format<Unpacked<WeightType::kIQ1_M, 56>>(m);
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16:
      break;
  }
  __builtin_unreachable();  // matmul_rows sends quantised types only
}

}  // namespace foretoken
