#pragma once

#include "kernels/cuda/cuda_language.h"
#include "kernels/cuda/cuda_matrix.h"
#include "kernels/cuda/cuda_rows.h"
#include "kernels/formats/grid_levels.h"
#include "kernels/formats/grid_points.h"
#include "kernels/formats/quant_formats.h"

// The share of a lane in a block of quantised weights, as integers: four lanes t = 0..3 take a quarter of the block
// each (run_of_lane for 256-value formats, values 4t.. and 16+4t.. of 32). quant_formats.h has the formats,
// cuda_matrix.h where their fields lie.

namespace foretoken::cuda {

/// The quarter of one quantised row that meets a lane's weights.
template <int kBlock>
struct LaneRow;

template <>
struct LaneRow<256> {
  uint4 run[4];  // 16 int8 each
  uint2 sums;    // four int16
};

template <>
struct LaneRow<32> {
  uint2 words;  // values 4t.. and 16+4t..
  int sum;      // of the whole block
};

template <int kBlock>
__device__ __forceinline__ LaneRow<kBlock> load_lane_row(const QuantRows& rows, int64_t row, int64_t block, int t) {
  LaneRow<kBlock> lane;
  const int8_t* q = rows.q + row * q_stride(kBlock, rows.num_blocks);
  const int16_t* sums = rows.sums + row * sums_stride(kBlock, rows.num_blocks);
  if constexpr (kBlock == 256) {
    for (int j = 0; j < 4; ++j) lane.run[j] = load_global(reinterpret_cast<const uint4*>(q + run_offset(block, t, j)));
    lane.sums = load_global(reinterpret_cast<const uint2*>(sums + block * 16 + t * 4));
  } else {
    lane.words = load_global(reinterpret_cast<const uint2*>(q + block * 32 + t * 8));
    lane.sum = load_global(sums + block);
  }
  return lane;
}

__device__ __forceinline__ int dot_words(uint32_t w, uint32_t a, int sum) {
  return __dp4a(static_cast<int>(w), static_cast<int>(a), sum);
}

__device__ __forceinline__ uint32_t word_of(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Plane `index` of a row.
template <WeightType kType>
__device__ __forceinline__ const uint8_t* plane_of(const std::byte* row, int index, int64_t num_blocks) {
  return reinterpret_cast<const uint8_t*>(row) + plane_offset(kType, index, num_blocks);
}
__device__ __forceinline__ uint4 load_uint4(const uint8_t* p) {
  return load_constant(reinterpret_cast<const uint4*>(p));
}
__device__ __forceinline__ uint2 load_uint2(const uint8_t* p) {
  return load_constant(reinterpret_cast<const uint2*>(p));
}
__device__ __forceinline__ uint32_t load_word(const uint8_t* p) {
  return load_constant(reinterpret_cast<const uint32_t*>(p));
}
__device__ __forceinline__ float load_half(const uint8_t* p) {
  return half_bits_to_float(load_constant(reinterpret_cast<const uint16_t*>(p)));
}

/// Asks for a block's bytes, of each plane one lane of the quad. A row and its planes begin at multiples of 16 bytes.
template <WeightType kType>
__device__ __forceinline__ void prefetch_block(const std::byte* row, int64_t num_blocks, int64_t b, int t) {
  constexpr Planes kPlanes = planes_of(kType);
  FT_UNROLL
  for (int i = 0; i < kPlanes.count; ++i) {
    if (t != i) continue;
    const int64_t begin = plane_offset(kType, i, num_blocks) + b * kPlanes.planes[i].bytes;
    const int64_t first = begin & ~int64_t{15};
    prefetch_constant(row + first, static_cast<unsigned>(round_up(begin + kPlanes.planes[i].bytes, 16) - first));
  }
}

/// Bytes of `word` less `offset`, for bytes below 128.
__device__ __forceinline__ uint32_t subtract_bytes(uint32_t word, uint32_t offset) {
  return ((word | 0x80808080u) - offset * 0x01010101u) ^ 0x80808080u;
}

// Sixteen table bytes in four words.
struct ByteTable {
  uint32_t word[4];
};

FORETOKEN_HD constexpr ByteTable table_of(const int8_t (&values)[16]) {
  ByteTable table{};
  for (int i = 0; i < 16; ++i)
    table.word[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(values[i])) << (8 * (i % 4));
  return table;
}

// The entries that the four lower nibbles of `nibbles` name.
__device__ __forceinline__ uint32_t look_up_four(const ByteTable& table, uint32_t nibbles) {
  const uint32_t within = nibbles & 0x7777u;  // the instruction would take the fourth bit for a sign
  const uint32_t low = __byte_perm(table.word[0], table.word[1], within);
  const uint32_t high = __byte_perm(table.word[2], table.word[3], within);
  return __byte_perm(low, high, 0x3210u | (nibbles & 0x8888u) >> 1);
}

/// Entries for the low and for the high nibbles of the four bytes of `word`.
__device__ __forceinline__ void look_up(const ByteTable& table, uint32_t word, uint32_t& low, uint32_t& high) {
  const uint32_t front = look_up_four(table, word & 0xffffu), back = look_up_four(table, word >> 16);
  low = __byte_perm(front, back, 0x6420u);
  high = __byte_perm(front, back, 0x7531u);
}

template <WeightType kType>
FORETOKEN_HD constexpr bool has_lane_mins() {
  return kType == WeightType::kQ2_K || kType == WeightType::kQ4_K || kType == WeightType::kQ5_K ||
         kType == WeightType::kQ4_1 || kType == WeightType::kQ5_1;
}

/// Two runs of 16 with a float scale each instead of d.
template <WeightType kType>
FORETOKEN_HD constexpr bool has_float_runs() {
  return kType == WeightType::kNVFP4;
}

/// Values of a block, or of a part of a block of 64 or 128.
template <WeightType kType>
FORETOKEN_HD constexpr int block_size_of() {
  return kType == WeightType::kQ2_K || kType == WeightType::kQ3_K || kType == WeightType::kQ4_K ||
                 kType == WeightType::kQ5_K || kType == WeightType::kQ6_K || kType == WeightType::kIQ4_XS ||
                 kType == WeightType::kTQ1_0 || kType == WeightType::kTQ2_0 || has_levels(kType)
             ? 256
             : 32;
}

__device__ __forceinline__ uint2 two_words(uint64_t x) {
  return {static_cast<uint32_t>(x), static_cast<uint32_t>(x >> 32)};
}

/// Eight weights of a format with a grid, as magnitudes or, of IQ1, 8 (g + 1).
template <WeightType kType>
__device__ __forceinline__ uint2 look_up_point(uint32_t index) {
  if constexpr (kType == WeightType::kIQ2_S) {
    static constexpr auto kGrid = grid_of<uint64_t, 1024>(kIq2SPoints, kIq2Levels);
    return two_words(kGrid.point[index]);
  } else if constexpr (kType == WeightType::kIQ2_XS) {
    static constexpr auto kGrid = grid_of<uint64_t, 512>(kIq2XsPoints, kIq2Levels);
    return two_words(kGrid.point[index]);
  } else if constexpr (kType == WeightType::kIQ2_XXS) {
    static constexpr auto kGrid = grid_of<uint64_t, 256>(kIq2XxsPoints, kIq2Levels);
    return two_words(kGrid.point[index]);
  } else {
    static_assert(kType == WeightType::kIQ1_S || kType == WeightType::kIQ1_M);
    static constexpr auto kGrid = grid_of<uint64_t, 2048>(kIq1Points, kIq1Levels);
    return two_words(kGrid.point[index]);
  }
}

/// Four weights of IQ3, as magnitudes.
template <WeightType kType>
__device__ __forceinline__ uint32_t look_up_half_point(uint32_t index) {
  if constexpr (kType == WeightType::kIQ3_S) {
    static constexpr auto kGrid = grid_of<uint32_t, 512>(kIq3SPoints, kIq3SLevels);
    return kGrid.point[index];
  } else {
    static_assert(kType == WeightType::kIQ3_XXS);
    static constexpr auto kGrid = grid_of<uint32_t, 256>(kIq3XxsPoints, kIq3XxsLevels);
    return kGrid.point[index];
  }
}

/// Four magnitudes, none of them 0, negated where bits 0..3 of `signs` are set.
__device__ __forceinline__ uint32_t with_signs(uint32_t magnitudes, uint32_t signs) {
  const uint32_t ones = (signs & 15u) * 0x00204081u & 0x01010101u;  // a bit to each byte
  return (magnitudes ^ ones * 255u) + ones;
}

/// The eighth of seven stored signs makes their number even.
__device__ __forceinline__ uint32_t with_eighth_sign(uint32_t signs) {
  return signs | (0x6996u >> ((signs ^ signs >> 4) & 15u) & 1u) << 7;
}

/// A lane's quarter of one block of weights.
template <WeightType kType, int kBlock = block_size_of<kType>()>
struct LaneBlock;

__device__ __forceinline__ uint32_t power_of_three(int k) {
  return k == 0 ? 1 : k == 1 ? 3 : k == 2 ? 9 : k == 3 ? 27 : 81;
}

/// Four bytes times `power`, modulo 256, and of each its leading base-3 digit less one.
__device__ __forceinline__ uint32_t leading_digits(uint32_t bytes, uint32_t power) {
  // Two bytes at a time, each with eight bits of room.
  const uint32_t even = (bytes & 0x00ff00ffu) * power & 0x00ff00ffu;
  const uint32_t odd = (bytes >> 8 & 0x00ff00ffu) * power & 0x00ff00ffu;
  return subtract_bytes((even * 3 >> 8 & 0x00030003u) | (odd * 3 & 0x03000300u), 1);
}

template <WeightType kType>
struct LaneBlock<kType, 256> {
  uint32_t q[4][4];  // [run][4 values]
  int scale[4];      // of each run
  uint32_t mins;     // four bytes
  float d, dmin;

  __device__ __forceinline__ int isum(const LaneRow<256>& row) const {
    int total = 0;
    for (int j = 0; j < 4; ++j) {
      int sum = 0;
      for (int i = 0; i < 4; ++i) sum = dot_words(q[j][i], word_of(row.run[j], i), sum);
      total += scale[j] * sum;
    }
    return total;
  }
  __device__ __forceinline__ int msum(const LaneRow<256>& row) const {
    const int m = static_cast<int>(mins);
    return __dp2a_hi(static_cast<int>(row.sums.y), m, __dp2a_lo(static_cast<int>(row.sums.x), m, 0));
  }

  __device__ __forceinline__ void load(const std::byte* row, int64_t num_blocks, int64_t b, int t) {
    const int n = t / 2, u = t % 2;
    if constexpr (kType == WeightType::kQ4_K || kType == WeightType::kQ5_K) {
      const uint8_t* qs = plane_of<kType>(row, 0, num_blocks) + b * 128 + 64 * n + 16 * u;
      const uint4 header = load_uint4(plane_of<kType>(row, kType == WeightType::kQ4_K ? 1 : 2, num_blocks) + b * 16);
      const uint4 front = load_uint4(qs), back = load_uint4(qs + 32);
      for (int i = 0; i < 4; ++i) {
        const uint32_t x = word_of(front, i), y = word_of(back, i);
        q[0][i] = x & 0x0f0f0f0fu;
        q[1][i] = x >> 4 & 0x0f0f0f0fu;
        q[2][i] = y & 0x0f0f0f0fu;
        q[3][i] = y >> 4 & 0x0f0f0f0fu;
      }
      if constexpr (kType == WeightType::kQ5_K) {
        const uint4 fifth = load_uint4(plane_of<kType>(row, 1, num_blocks) + b * 32 + 16 * u);
        for (int i = 0; i < 4; ++i) {
          const uint32_t bits = word_of(fifth, i) >> (4 * n);
          for (int j = 0; j < 4; ++j) q[j][i] |= (bits >> j & 0x01010101u) << 4;
        }
      }
      d = half_bits_to_float(static_cast<uint16_t>(header.x));
      dmin = half_bits_to_float(static_cast<uint16_t>(header.x >> 16));
      // Scales and mins 4n .. 4n+3, a byte each.
      const uint32_t scales =
          n == 0 ? header.y & 0x3f3f3f3fu : (header.w & 0x0f0f0f0fu) | (header.y >> 2 & 0x30303030u);
      mins = n == 0 ? header.z & 0x3f3f3f3fu : (header.w >> 4 & 0x0f0f0f0fu) | (header.z >> 2 & 0x30303030u);
      for (int j = 0; j < 4; ++j) scale[j] = static_cast<int>(scales >> (8 * j) & 0xffu);
    } else if constexpr (kType == WeightType::kQ6_K) {
      const uint8_t* ql = plane_of<kType>(row, 0, num_blocks) + b * 128 + 64 * n + 16 * u;
      const uint4 front = load_uint4(ql), back = load_uint4(ql + 32);
      const uint4 high = load_uint4(plane_of<kType>(row, 1, num_blocks) + b * 64 + 32 * n + 16 * u);
      for (int i = 0; i < 4; ++i) {
        const uint32_t x = word_of(front, i), y = word_of(back, i), h = word_of(high, i);
        q[0][i] = subtract_bytes((x & 0x0f0f0f0fu) | (h & 0x03030303u) << 4, 32);
        q[1][i] = subtract_bytes((y & 0x0f0f0f0fu) | (h >> 2 & 0x03030303u) << 4, 32);
        q[2][i] = subtract_bytes((x >> 4 & 0x0f0f0f0fu) | (h >> 4 & 0x03030303u) << 4, 32);
        q[3][i] = subtract_bytes((y >> 4 & 0x0f0f0f0fu) | (h >> 6 & 0x03030303u) << 4, 32);
      }
      const uint2 scales = load_uint2(plane_of<kType>(row, 2, num_blocks) + b * 16 + 8 * n);
      for (int j = 0; j < 4; ++j) {
        scale[j] = static_cast<int8_t>((j < 2 ? scales.x : scales.y) >> (8 * (u + 2 * (j % 2))));
      }
      d = load_half(plane_of<kType>(row, 3, num_blocks) + b * 2);
    } else if constexpr (kType == WeightType::kQ3_K) {
      const uint4 low = load_uint4(plane_of<kType>(row, 0, num_blocks) + b * 64 + 32 * n + 16 * u);
      const uint4 mask = load_uint4(plane_of<kType>(row, 1, num_blocks) + b * 32 + 16 * u);
      for (int i = 0; i < 4; ++i) {
        const uint32_t x = word_of(low, i), h = word_of(mask, i) >> (4 * n);
        for (int j = 0; j < 4; ++j)
          q[j][i] = subtract_bytes((x >> (2 * j) & 0x03030303u) | (h >> j & 0x01010101u) << 2, 4);
      }
      // Six bits of scale 8n + u + 2j: four in a nibble of the first eight bytes, two in the last four.
      const uint8_t* packed = plane_of<kType>(row, 2, num_blocks) + b * 12;
      const uint32_t first = load_word(packed), second = load_word(packed + 4), top = load_word(packed + 8);
      for (int j = 0; j < 4; ++j) {
        const int byte = 8 * (u + 2 * (j % 2));
        const uint32_t nibble = (j < 2 ? first : second) >> (byte + 4 * n) & 15u;
        const uint32_t upper = top >> (byte + 4 * n + j / 2 * 2) & 3u;
        scale[j] = static_cast<int>(nibble | upper << 4) - 32;
      }
      d = load_half(plane_of<kType>(row, 3, num_blocks) + b * 2);
    } else if constexpr (kType == WeightType::kQ2_K) {
      const uint4 low = load_uint4(plane_of<kType>(row, 0, num_blocks) + b * 64 + 32 * n + 16 * u);
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) q[j][i] = word_of(low, i) >> (2 * j) & 0x03030303u;
      }
      const uint2 packed = load_uint2(plane_of<kType>(row, 1, num_blocks) + b * 16 + 8 * n);
      mins = 0;
      for (int j = 0; j < 4; ++j) {
        const uint32_t byte = (j < 2 ? packed.x : packed.y) >> (8 * (u + 2 * (j % 2))) & 0xffu;
        scale[j] = static_cast<int>(byte & 15u);
        mins |= byte >> 4 << (8 * j);
      }
      const uint32_t header = load_word(plane_of<kType>(row, 2, num_blocks) + b * 4);
      d = half_bits_to_float(static_cast<uint16_t>(header));
      dmin = half_bits_to_float(static_cast<uint16_t>(header >> 16));
    } else if constexpr (kType == WeightType::kTQ2_0) {
      const uint4 low = load_uint4(plane_of<kType>(row, 0, num_blocks) + b * 64 + 32 * n + 16 * u);
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) q[j][i] = subtract_bytes(word_of(low, i) >> (2 * j) & 0x03030303u, 1);
      }
      for (int j = 0; j < 4; ++j) scale[j] = 1;
      d = load_half(plane_of<kType>(row, 1, num_blocks) + b * 2);
    } else if constexpr (kType == WeightType::kTQ1_0) {
      const uint8_t* qs = plane_of<kType>(row, 0, num_blocks) + b * 48;
      for (int j = 0; j < 4; ++j) {
        const int run = run_of_lane(t, j);
        if (run < 15) {  // one digit of 16 bytes
          const uint4 bytes = load_uint4(qs + (run < 10 ? 16 * (run % 2) : 32));
          const uint32_t power = power_of_three(run < 10 ? run / 2 : run - 10);
          for (int i = 0; i < 4; ++i) q[j][i] = leading_digits(word_of(bytes, i), power);
        } else {  // four digits of four bytes
          const uint32_t bytes = load_word(plane_of<kType>(row, 1, num_blocks) + b * 4);
          for (int i = 0; i < 4; ++i) q[j][i] = leading_digits(bytes, power_of_three(i));
        }
        scale[j] = 1;
      }
      d = load_half(plane_of<kType>(row, 2, num_blocks) + b * 2);
    } else if constexpr (has_levels(kType)) {
      for (int j = 0; j < 4; ++j) load_grid_run(row, num_blocks, b, 4 * n + j, u, j);
      if constexpr (kType == WeightType::kIQ1_M) {
        const uint2 scales = load_uint2(plane_of<kType>(row, 1, num_blocks) + b * 8);
        d = half_bits_to_float(static_cast<uint16_t>((scales.x >> 12 & 0xfu) | (scales.x >> 24 & 0xf0u) |
                                                     (scales.y >> 4 & 0xf00u) | (scales.y >> 16 & 0xf000u)));
      } else {
        d = load_half(plane_of<kType>(row, planes_of(kType).count - 1, num_blocks) + b * 2);
      }
      d *= kType == WeightType::kIQ3_S ? 1.0f : kType == WeightType::kIQ3_XXS ? 0.5f : 0.125f;
    } else {
      static_assert(kType == WeightType::kIQ4_XS);
      constexpr ByteTable kTable = table_of(kIq4Table);
      const uint8_t* qs = plane_of<kType>(row, 0, num_blocks) + b * 128 + 64 * n + 16 * u;
      const uint2 header = load_uint2(plane_of<kType>(row, 1, num_blocks) + b * 8);
      const uint4 front = load_uint4(qs), back = load_uint4(qs + 32);
      for (int i = 0; i < 4; ++i) {
        look_up(kTable, word_of(front, i), q[0][i], q[1][i]);
        look_up(kTable, word_of(back, i), q[2][i], q[3][i]);
      }
      d = half_bits_to_float(static_cast<uint16_t>(header.x));
      for (int j = 0; j < 4; ++j) {
        const int s = 4 * n + j;
        scale[j] = static_cast<int>((header.y >> (4 * s) & 15u) | (header.x >> (16 + 2 * s) & 3u) << 4) - 32;
      }
    }
  }

 private:
  // Half u of the 32 values `run`, to q[j] and scale[j].
  __device__ __forceinline__ void load_grid_run(const std::byte* row, int64_t num_blocks, int64_t b, int run, int u,
                                                int j) {
    const uint8_t* qs = plane_of<kType>(row, 0, num_blocks) + b * planes_of(kType).planes[0].bytes;
    if constexpr (kType == WeightType::kIQ3_S) {
      const uint8_t* rest = plane_of<kType>(row, 1, num_blocks) + b * 44;
      const uint32_t low = load_word(qs + 8 * run + 4 * u), high = load_constant(rest + run) >> (4 * u);
      const uint32_t signs = load_word(rest + 8 + 4 * run) >> (16 * u);
      for (int i = 0; i < 4; ++i) {
        const uint32_t index = (low >> (8 * i) & 255u) | (high >> i & 1u) << 8;
        q[j][i] = with_signs(look_up_half_point<kType>(index), signs >> (4 * i));
      }
      scale[j] = odd_scale(load_word(rest + 40) >> (4 * run) & 15u);
    } else if constexpr (kType == WeightType::kIQ3_XXS) {
      const uint32_t indices = load_word(qs + 8 * run + 4 * u), word = load_word(qs + 64 + 4 * run);
      for (int i = 0; i < 4; ++i) {
        const uint32_t signs = with_eighth_sign(word >> (7 * (2 * u + i / 2)) & 127u);
        q[j][i] = with_signs(look_up_half_point<kType>(indices >> (8 * i) & 255u), signs >> (4 * (i % 2)));
      }
      scale[j] = odd_scale(word >> 28);
    } else if constexpr (kType == WeightType::kIQ2_S) {
      const uint8_t* rest = plane_of<kType>(row, 1, num_blocks) + b * 16;
      for (int i = 0; i < 2; ++i) {
        const int l = 4 * run + 2 * u + i;
        const uint32_t index = load_constant(qs + l) | (load_constant(rest + run) >> (4 * u + 2 * i) & 3u) << 8;
        put_group(look_up_point<kType>(index), load_constant(qs + 32 + l), j, i);
      }
      scale[j] = odd_scale(load_constant(rest + 8 + run) >> (4 * u) & 15u);
    } else if constexpr (kType == WeightType::kIQ2_XS) {
      const uint32_t words = load_word(qs + 8 * run + 4 * u);
      for (int i = 0; i < 2; ++i) {
        const uint32_t word = words >> (16 * i) & 0xffffu;
        put_group(look_up_point<kType>(word & 511u), with_eighth_sign(word >> 9), j, i);
      }
      scale[j] = odd_scale(load_constant(plane_of<kType>(row, 1, num_blocks) + b * 8 + run) >> (4 * u) & 15u);
    } else if constexpr (kType == WeightType::kIQ2_XXS) {
      const uint2 words = load_uint2(qs + 8 * run);
      for (int i = 0; i < 2; ++i) {
        const uint32_t signs = with_eighth_sign(words.y >> (7 * (2 * u + i)) & 127u);
        put_group(look_up_point<kType>(words.x >> (8 * (2 * u + i)) & 255u), signs, j, i);
      }
      scale[j] = odd_scale(words.y >> 28);
    } else if constexpr (kType == WeightType::kIQ1_S) {
      const uint8_t* rest = plane_of<kType>(row, 1, num_blocks) + b * 16;
      const uint32_t high = load_constant(reinterpret_cast<const uint16_t*>(rest + 2 * run));
      for (int i = 0; i < 2; ++i) {
        const uint32_t index = load_constant(qs + 4 * run + 2 * u + i) | (high >> (3 * (2 * u + i)) & 7u) << 8;
        put_ternary(look_up_point<kType>(index), high >> 15 & 1u, j, i);
      }
      scale[j] = odd_scale(high >> 12 & 7u);
    } else {
      static_assert(kType == WeightType::kIQ1_M);
      const uint32_t high = load_constant(qs + 32 + 2 * run + u);
      for (int i = 0; i < 2; ++i) {
        const uint32_t index = load_constant(qs + 4 * run + 2 * u + i) | (high >> (4 * i) & 7u) << 8;
        put_ternary(look_up_point<kType>(index), high >> (4 * i + 3) & 1u, j, i);
      }
      const uint2 scales = load_uint2(plane_of<kType>(row, 1, num_blocks) + b * 8);
      const int s = 2 * run + u;
      scale[j] = odd_scale((s < 8 ? scales.x : scales.y) >> (16 * (s / 4 % 2) + 3 * (s % 4)) & 7u);
    }
  }

  // Group i of q[j].
  __device__ __forceinline__ void put_group(const uint2& magnitudes, uint32_t signs, int j, int i) {
    q[j][2 * i] = with_signs(magnitudes.x, signs);
    q[j][2 * i + 1] = with_signs(magnitudes.y, signs >> 4);
  }

  // 8g + 1 or, with minus, 8g - 1, from 8 (g + 1).
  __device__ __forceinline__ void put_ternary(const uint2& point, uint32_t minus, int j, int i) {
    q[j][2 * i] = subtract_bytes(point.x, 7 + 2 * minus);
    q[j][2 * i + 1] = subtract_bytes(point.y, 7 + 2 * minus);
  }

  static __device__ __forceinline__ int odd_scale(uint32_t s) { return static_cast<int>(2 * s + 1); }
};

template <WeightType kType>
struct LaneBlock<kType, 32> {
  uint32_t q[2];
  float d, dmin;   // with float runs: d is the first run's
  float second_d;  // the second run's

  __device__ __forceinline__ int isum(const LaneRow<32>& row) const {
    return dot_words(q[1], row.words.y, dot_words(q[0], row.words.x, 0));
  }
  /// Of run 0 or 1 alone.
  __device__ __forceinline__ int run_isum(const LaneRow<32>& row, int run) const {
    return run == 0 ? dot_words(q[0], row.words.x, 0) : dot_words(q[1], row.words.y, 0);
  }

  __device__ __forceinline__ void load(const std::byte* row, int64_t num_blocks, int64_t b, int t) {
    const uint8_t* qs = plane_of<kType>(row, 0, num_blocks);
    if constexpr (parts_of(kType) > 1) {
      load_part(row, qs, num_blocks, b, t);
      return;
    } else if constexpr (kType == WeightType::kQ8_0) {
      const uint2 words = load_uint2(qs + b * 32 + t * 8);
      q[0] = words.x;
      q[1] = words.y;
    } else {
      const uint32_t word = load_word(qs + b * 16 + t * 4);
      if constexpr (kType == WeightType::kIQ4_NL || kType == WeightType::kMXFP4) {
        constexpr ByteTable kTable = kType == WeightType::kIQ4_NL ? table_of(kIq4Table) : table_of(kMxfp4Table);
        look_up(kTable, word, q[0], q[1]);
      } else {
        q[0] = word & 0x0f0f0f0fu;
        q[1] = word >> 4 & 0x0f0f0f0fu;
      }
      if constexpr (kType == WeightType::kQ5_0 || kType == WeightType::kQ5_1) {
        const uint32_t fifth = load_word(plane_of<kType>(row, 1, num_blocks) + b * 4);
        q[0] |= spread_bits(fifth >> (4 * t));
        q[1] |= spread_bits(fifth >> (16 + 4 * t));
      }
      if constexpr (kType == WeightType::kQ4_0) {
        q[0] = subtract_bytes(q[0], 8);
        q[1] = subtract_bytes(q[1], 8);
      }
      if constexpr (kType == WeightType::kQ5_0) {
        q[0] = subtract_bytes(q[0], 16);
        q[1] = subtract_bytes(q[1], 16);
      }
    }
    if constexpr (kType == WeightType::kMXFP4) {
      const uint32_t e = load_constant(plane_of<kType>(row, 1, num_blocks) + b);
      d = math::float_from_bits(e < 2 ? 0x00200000u << e : (e - 1) << 23);  // 2^(e-128); the two smallest are denormal
    } else if constexpr (kType == WeightType::kQ4_1 || kType == WeightType::kQ5_1) {
      const uint32_t header = load_word(plane_of<kType>(row, kType == WeightType::kQ4_1 ? 1 : 2, num_blocks) + b * 4);
      d = half_bits_to_float(static_cast<uint16_t>(header));
      dmin = -half_bits_to_float(static_cast<uint16_t>(header >> 16));
    } else {
      d = load_half(plane_of<kType>(row, kType == WeightType::kQ5_0 ? 2 : 1, num_blocks) + b * 2);
    }
  }

  // Part b mod parts of a block of 64 or 128.
  __device__ __forceinline__ void load_part(const std::byte* row, const uint8_t* qs, int64_t num_blocks, int64_t b,
                                            int t) {
    if constexpr (kType == WeightType::kNVFP4) {
      constexpr ByteTable kTable = table_of(kMxfp4Table);
      const int shift = 4 * (t / 2);  // values 4t.. of a run: low nibbles of its eight bytes, then high ones
      for (int run = 0; run < 2; ++run) {
        uint32_t above;
        look_up(kTable, load_word(qs + b * 16 + 8 * run + 4 * (t % 2)) >> shift, q[run], above);
      }
      const uint8_t* scales = plane_of<kType>(row, 1, num_blocks) + b * 2;
      d = half_of_ue4m3_code(scales[0]);
      second_d = half_of_ue4m3_code(scales[1]);
    } else {
      for (int half = 0; half < 2; ++half) {  // values 4t.. and 16 + 4t..
        if constexpr (kType == WeightType::kQ2_0) {
          const uint32_t x = qs[b * 8 + 4 * half + t];
          q[half] = subtract_bytes((x | x << 6 | x << 12 | x << 18) & 0x03030303u, 1);
        } else {
          static_assert(kType == WeightType::kQ1_0);
          const uint32_t x = static_cast<uint32_t>(qs[b * 4 + 2 * half + t / 2]) >> (4 * (t % 2)) & 15u;
          q[half] = subtract_bytes(((x | x << 7 | x << 14 | x << 21) & 0x01010101u) << 1, 1);
        }
      }
      d = load_half(plane_of<kType>(row, 1, num_blocks) + b / parts_of(kType) * 2);
    }
  }

  // half_of_ue4m3(), by the exponent of a float: its codes of exponent 0 are multiples of 2^-10.
  static __device__ __forceinline__ float half_of_ue4m3_code(uint32_t e) {
    if (e == 0x7fu) return 0.0f;
    const uint32_t fraction = e & 7u, exponent = e >> 3 & 15u;
    if (exponent == 0) return static_cast<float>(fraction) * 0.0009765625f;
    return math::float_from_bits((exponent + 119u) << 23 | fraction << 20);
  }

  // Bits 0..3 to the fifth bits of four bytes.
  static __device__ __forceinline__ uint32_t spread_bits(uint32_t bits) {
    return (bits & 1u) << 4 | (bits & 2u) << 11 | (bits & 4u) << 18 | (bits & 8u) << 25;
  }
};

}  // namespace foretoken::cuda
