#include "kernels/formats/grid_levels.h"

#include <cstring>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/formats/block_bytes.h"
#include "kernels/formats/grids.h"

namespace foretoken {

namespace {

constexpr uint64_t kEachByte = 0x0101010101010101u;

/// Levels of a point's coordinates, a byte each, and back.
template <class Word, int kCount, int kLevelBits>
class Levels {
 public:
  static constexpr int kCoordinates = static_cast<int>(sizeof(Word));

  /// level_of(byte of the grid)
  template <class LevelOf>
  Levels(const Grid<Word, kCount>& grid, const LevelOf& level_of)
      : index_of_(size_t{1} << (kCoordinates * kLevelBits)) {
    for (int index = 0; index < kCount; ++index) {
      Word levels = 0;
      for (int i = 0; i < kCoordinates; ++i) {
        levels |= static_cast<Word>(level_of(static_cast<int>(grid.point[index] >> (8 * i) & 255))) << (8 * i);
      }
      levels_[index] = levels;
      index_of_[key(levels)] = static_cast<uint16_t>(index);
    }
  }

  [[nodiscard]] Word of(uint32_t index) const { return levels_[index]; }
  [[nodiscard]] uint32_t index_of(Word levels) const { return index_of_[key(levels)]; }

 private:
  static size_t key(Word levels) {
    size_t key = 0;
    for (int i = 0; i < kCoordinates; ++i) key |= static_cast<size_t>(levels >> (8 * i) & 255) << (kLevelBits * i);
    return key;
  }

  Word levels_[kCount];
  std::vector<uint16_t> index_of_;  // [levels, kLevelBits each]
};

int level_of_iq2(int magnitude) {
  return magnitude / 20;  // 8 25 43
}

const auto& iq2_xxs_levels() {
  static const Levels<uint64_t, 256, 2> levels(kIq2XxsGrid, level_of_iq2);
  return levels;
}
const auto& iq2_xs_levels() {
  static const Levels<uint64_t, 512, 2> levels(kIq2XsGrid, level_of_iq2);
  return levels;
}
const auto& iq2_s_levels() {
  static const Levels<uint64_t, 1024, 2> levels(kIq2SGrid, level_of_iq2);
  return levels;
}
const auto& iq1_levels() {
  static const Levels<uint64_t, 2048, 2> levels(kIq1Grid, [](int byte) { return byte / 8; });
  return levels;
}
const auto& iq3_xxs_levels() {
  static const Levels<uint32_t, 256, 3> levels(kIq3XxsGrid, [](int magnitude) { return magnitude / 4; });
  return levels;
}
const auto& iq3_s_levels() {
  static const Levels<uint32_t, 512, 3> levels(kIq3SGrid, [](int magnitude) { return magnitude / 2; });
  return levels;
}

// Bit i of `bits` to bit 0 of byte i.
uint64_t spread(uint32_t bits) {
  const uint64_t low = (bits & 15u) * 0x00204081u & 0x01010101u, high = (bits >> 4 & 15u) * 0x00204081u & 0x01010101u;
  return low | high << 32;
}
// And back.
uint32_t gather(uint64_t bytes) {
  return static_cast<uint32_t>((bytes & kEachByte) * 0x0102040810204080u >> 56);
}

template <class Table>
uint64_t two_of(const Table& table, uint32_t first, uint32_t second) {
  return table.of(first) | static_cast<uint64_t>(table.of(second)) << 32;
}

// --- Codes of a block, a byte each: the level, with its sign in the bit above (IQ2, IQ3_XXS), c of IQ3_S, g + 1 of IQ1.

void codes_of_iq3_s(const uint8_t* p, uint8_t* codes) {
  const auto& table = iq3_s_levels();
  for (int l = 0; l < 32; ++l) {
    const uint32_t high = p[66 + l / 4] >> (2 * (l % 4));
    const uint64_t levels = two_of(table, p[2 + 2 * l] | (high & 1u) << 8, p[3 + 2 * l] | (high & 2u) << 7);
    // q = 2 * level + 1 is c = 8 + level, its negative c = 7 - level: all four bits turned.
    put_u64(codes + 8 * l, (levels | 8 * kEachByte) ^ 15 * spread(p[74 + l]));
  }
}

void iq3_s_from_codes(const uint8_t* codes, uint8_t* p) {
  const auto& table = iq3_s_levels();
  std::memset(p + 66, 0, 8);
  for (int l = 0; l < 32; ++l) {
    const uint64_t c = u64_at(codes + 8 * l), minus = ~c >> 3 & kEachByte, levels = (c ^ 15 * minus) & 7 * kEachByte;
    const uint32_t first = table.index_of(static_cast<uint32_t>(levels)),
                   second = table.index_of(static_cast<uint32_t>(levels >> 32));
    p[2 + 2 * l] = static_cast<uint8_t>(first);
    p[3 + 2 * l] = static_cast<uint8_t>(second);
    p[66 + l / 4] = static_cast<uint8_t>(p[66 + l / 4] | (first >> 8 | second >> 8 << 1) << (2 * (l % 4)));
    p[74 + l] = static_cast<uint8_t>(gather(minus));
  }
}

void codes_of_iq3_xxs(const uint8_t* p, uint8_t* codes) {
  const auto& table = iq3_xxs_levels();
  for (int l = 0; l < 32; ++l) {
    const uint32_t signs = with_eighth_sign(u32_at(p + 66 + l / 4 * 4) >> (7 * (l % 4)) & 127u);
    put_u64(codes + 8 * l, two_of(table, p[2 + 2 * l], p[3 + 2 * l]) | spread(signs) << 3);
  }
}

void iq3_xxs_from_codes(const uint8_t* codes, uint8_t* p) {
  const auto& table = iq3_xxs_levels();
  for (int l = 0; l < 32; ++l) {
    const uint64_t c = u64_at(codes + 8 * l), levels = c & 7 * kEachByte;
    p[2 + 2 * l] = static_cast<uint8_t>(table.index_of(static_cast<uint32_t>(levels)));
    p[3 + 2 * l] = static_cast<uint8_t>(table.index_of(static_cast<uint32_t>(levels >> 32)));
    uint8_t* const word = p + 66 + l / 4 * 4;
    put_u32(word, u32_at(word) | (gather(c >> 3) & 127u) << (7 * (l % 4)));
  }
}

void codes_of_iq2_s(const uint8_t* p, uint8_t* codes) {
  const auto& table = iq2_s_levels();
  for (int l = 0; l < 32; ++l) {
    const uint32_t high = p[66 + l / 4] >> (2 * (l % 4)) & 3u;
    put_u64(codes + 8 * l, table.of(p[2 + l] | high << 8) | spread(p[34 + l]) << 2);
  }
}

void iq2_s_from_codes(const uint8_t* codes, uint8_t* p) {
  const auto& table = iq2_s_levels();
  std::memset(p + 66, 0, 8);
  for (int l = 0; l < 32; ++l) {
    const uint64_t c = u64_at(codes + 8 * l);
    const uint32_t index = table.index_of(c & 3 * kEachByte);
    p[2 + l] = static_cast<uint8_t>(index);
    p[34 + l] = static_cast<uint8_t>(gather(c >> 2));
    p[66 + l / 4] = static_cast<uint8_t>(p[66 + l / 4] | index >> 8 << (2 * (l % 4)));
  }
}

void codes_of_iq2_xs(const uint8_t* p, uint8_t* codes) {
  const auto& table = iq2_xs_levels();
  for (int l = 0; l < 32; ++l) {
    const uint32_t word = u16_at(p + 2 + 2 * l);
    put_u64(codes + 8 * l, table.of(word & 511u) | spread(with_eighth_sign(word >> 9)) << 2);
  }
}

void iq2_xs_from_codes(const uint8_t* codes, uint8_t* p) {
  const auto& table = iq2_xs_levels();
  for (int l = 0; l < 32; ++l) {
    const uint64_t c = u64_at(codes + 8 * l);
    put_u16(p + 2 + 2 * l, table.index_of(c & 3 * kEachByte) | (gather(c >> 2) & 127u) << 9);
  }
}

void codes_of_iq2_xxs(const uint8_t* p, uint8_t* codes) {
  const auto& table = iq2_xxs_levels();
  for (int l = 0; l < 32; ++l) {
    const uint8_t* const run = p + 2 + l / 4 * 8;
    const uint32_t signs = with_eighth_sign(u32_at(run + 4) >> (7 * (l % 4)) & 127u);
    put_u64(codes + 8 * l, table.of(run[l % 4]) | spread(signs) << 2);
  }
}

void iq2_xxs_from_codes(const uint8_t* codes, uint8_t* p) {
  const auto& table = iq2_xxs_levels();
  for (int l = 0; l < 32; ++l) {
    const uint64_t c = u64_at(codes + 8 * l);
    uint8_t* const run = p + 2 + l / 4 * 8;
    run[l % 4] = static_cast<uint8_t>(table.index_of(c & 3 * kEachByte));
    put_u32(run + 4, u32_at(run + 4) | (gather(c >> 2) & 127u) << (7 * (l % 4)));
  }
}

// --- Scales: s as nibbles of out[4] or out[8]. ---

// s of a run of 32 from the words that have it in their top four bits.
void scales_from_words(const uint8_t* words, int step, uint8_t* out) {
  for (int r = 0; r < 8; r += 2) {
    out[r / 2] = static_cast<uint8_t>(words[step * r + 3] >> 4 | (words[step * (r + 1) + 3] & 0xf0));
  }
}

// REQUIRES: the words are zero.
void scales_to_words(const uint8_t* in, int step, uint8_t* words) {
  for (int r = 0; r < 8; ++r) words[step * r + 3] = static_cast<uint8_t>((in[r / 2] >> (4 * (r % 2)) & 15) << 4);
}

// --- The order of the codes ---

// As the nibbles of Q4_K: values 64c + l low, 64c + 32 + l high.
void put_nibbles(const uint8_t* codes, uint8_t* out) {
  for (int at = 0; at < 128; at += 8) {
    const uint8_t* const low = codes + at / 32 * 64 + at % 32;
    put_u64(out + at, u64_at(low) | u64_at(low + 32) << 4);
  }
}

void get_nibbles(const uint8_t* in, uint8_t* codes) {
  for (int at = 0; at < 128; at += 8) {
    uint8_t* const low = codes + at / 32 * 64 + at % 32;
    put_u64(low, u64_at(in + at) & 15 * kEachByte);
    put_u64(low + 32, u64_at(in + at) >> 4 & 15 * kEachByte);
  }
}

void put_threes(const uint8_t* codes, uint8_t* out) {
  for (int r = 0; r < 8; ++r, codes += 32, out += 12) {
    uint32_t c[8];
    std::memcpy(c, codes, sizeof c);
    const uint32_t last = c[6] | c[7] << 4;
    for (int w = 0; w < 3; ++w) {
      put_u32(out + 4 * w, c[2 * w] | c[2 * w + 1] << 4 | (last >> w & 0x11111111u) << 3);
    }
  }
}

void get_threes(const uint8_t* in, uint8_t* codes) {
  constexpr uint32_t kThree = 0x07070707u;
  for (int r = 0; r < 8; ++r, codes += 32, in += 12) {
    uint32_t c[8], last = 0;
    for (int w = 0; w < 3; ++w) {
      const uint32_t word = u32_at(in + 4 * w);
      c[2 * w] = word & kThree;
      c[2 * w + 1] = word >> 4 & kThree;
      last |= (word >> 3 & 0x11111111u) << w;
    }
    c[6] = last & kThree;
    c[7] = last >> 4 & kThree;
    std::memcpy(codes, c, sizeof c);
  }
}

void put_twos(const uint8_t* codes, uint8_t* out) {
  for (int n = 0; n < 4; ++n) {
    for (int at = 0; at < 16; at += 8) {
      const uint8_t* const c = codes + 64 * n + at;
      put_u64(out + 16 * n + at, u64_at(c) | u64_at(c + 16) << 2 | u64_at(c + 32) << 4 | u64_at(c + 48) << 6);
    }
  }
}

void get_twos(const uint8_t* in, uint8_t* codes) {
  for (int n = 0; n < 4; ++n) {
    for (int at = 0; at < 16; at += 8) {
      for (int j = 0; j < 4; ++j) {
        put_u64(codes + 64 * n + 16 * j + at, u64_at(in + 16 * n + at) >> (2 * j) & 3 * kEachByte);
      }
    }
  }
}

void iq1_s_to_levels(const uint8_t* p, uint8_t* out) {
  const auto& table = iq1_levels();
  uint8_t codes[256];
  std::memcpy(out, p, 2);
  std::memset(out + 2, 0, 4);
  for (int r = 0; r < 8; ++r) {
    const uint32_t high = u16_at(p + 34 + 2 * r);
    out[2 + r / 2] = static_cast<uint8_t>(out[2 + r / 2] | high >> 12 << (4 * (r % 2)));
    for (int l = 0; l < 4; ++l) {
      put_u64(codes + 32 * r + 8 * l, table.of(p[2 + 4 * r + l] | (high >> (3 * l) & 7u) << 8));
    }
  }
  put_twos(codes, out + 6);
}

void iq1_s_from_levels(const uint8_t* in, uint8_t* p) {
  const auto& table = iq1_levels();
  uint8_t codes[256];
  std::memcpy(p, in, 2);
  get_twos(in + 6, codes);
  for (int r = 0; r < 8; ++r) {
    uint32_t high = (in[2 + r / 2] >> (4 * (r % 2)) & 15u) << 12;
    for (int l = 0; l < 4; ++l) {
      const uint32_t index = table.index_of(u64_at(codes + 32 * r + 8 * l));
      p[2 + 4 * r + l] = static_cast<uint8_t>(index);
      high |= index >> 8 << (3 * l);
    }
    put_u16(p + 34 + 2 * r, high);
  }
}

void iq1_m_to_levels(const uint8_t* p, uint8_t* out) {
  const auto& table = iq1_levels();
  uint8_t codes[256];
  uint32_t d = 0, plus = 0;
  for (int word = 0; word < 4; ++word) {
    const uint32_t packed = u16_at(p + 48 + 2 * word);
    d |= packed >> 12 << (4 * word);
    put_u16(out + 2 + 2 * word,
            (packed & 7) | (packed >> 3 & 7) << 4 | (packed >> 6 & 7) << 8 | (packed >> 9 & 7) << 12);
  }
  put_u16(out, d);
  for (int l = 0; l < 32; ++l) {
    const uint32_t high = p[32 + l / 2] >> (4 * (l % 2)) & 15u;
    put_u64(codes + 8 * l, table.of(p[l] | (high & 7u) << 8));
    plus |= (~high >> 3 & 1u) << l;
  }
  put_u32(out + 10, plus);
  put_twos(codes, out + 14);
}

void iq1_m_from_levels(const uint8_t* in, uint8_t* p) {
  const auto& table = iq1_levels();
  uint8_t codes[256];
  const uint32_t d = u16_at(in), plus = u32_at(in + 10);
  for (int word = 0; word < 4; ++word) {
    const uint32_t s = u16_at(in + 2 + 2 * word);
    put_u16(p + 48 + 2 * word,
            (s & 7) | (s >> 4 & 7) << 3 | (s >> 8 & 7) << 6 | (s >> 12 & 7) << 9 | (d >> (4 * word) & 15u) << 12);
  }
  get_twos(in + 14, codes);
  std::memset(p + 32, 0, 16);
  for (int l = 0; l < 32; ++l) {
    const uint32_t index = table.index_of(u64_at(codes + 8 * l));
    p[l] = static_cast<uint8_t>(index);
    const uint32_t high = index >> 8 | (~plus >> l & 1u) << 3;
    p[32 + l / 2] = static_cast<uint8_t>(p[32 + l / 2] | high << (4 * (l % 2)));
  }
}

}  // namespace

void block_to_levels(WeightType type, const std::byte* block, std::byte* levels) {
  const auto* p = reinterpret_cast<const uint8_t*>(block);
  auto* out = reinterpret_cast<uint8_t*>(levels);
  uint8_t codes[256];
  switch (type) {
    case WeightType::kIQ3_S:
      codes_of_iq3_s(p, codes);
      std::memcpy(out + 2, p + 106, 4);
      put_nibbles(codes, out + 6);
      break;
    case WeightType::kIQ3_XXS:
      codes_of_iq3_xxs(p, codes);
      scales_from_words(p + 66, 4, out + 2);
      put_nibbles(codes, out + 6);
      break;
    case WeightType::kIQ2_S:
      codes_of_iq2_s(p, codes);
      std::memcpy(out + 2, p + 74, 8);
      put_threes(codes, out + 10);
      break;
    case WeightType::kIQ2_XS:
      codes_of_iq2_xs(p, codes);
      std::memcpy(out + 2, p + 66, 8);
      put_threes(codes, out + 10);
      break;
    case WeightType::kIQ2_XXS:
      codes_of_iq2_xxs(p, codes);
      scales_from_words(p + 6, 8, out + 2);
      put_threes(codes, out + 6);
      break;
    case WeightType::kIQ1_S:
      return iq1_s_to_levels(p, out);
    case WeightType::kIQ1_M:
      return iq1_m_to_levels(p, out);
    default:
      FT_CHECK(has_levels(type));
  }
  std::memcpy(out, p, 2);
}

void block_from_levels(WeightType type, const std::byte* levels, std::byte* block) {
  const auto* in = reinterpret_cast<const uint8_t*>(levels);
  auto* p = reinterpret_cast<uint8_t*>(block);
  uint8_t codes[256];
  switch (type) {
    case WeightType::kIQ3_S:
      get_nibbles(in + 6, codes);
      iq3_s_from_codes(codes, p);
      std::memcpy(p + 106, in + 2, 4);
      break;
    case WeightType::kIQ3_XXS:
      get_nibbles(in + 6, codes);
      std::memset(p + 66, 0, 32);
      scales_to_words(in + 2, 4, p + 66);
      iq3_xxs_from_codes(codes, p);
      break;
    case WeightType::kIQ2_S:
      get_threes(in + 10, codes);
      iq2_s_from_codes(codes, p);
      std::memcpy(p + 74, in + 2, 8);
      break;
    case WeightType::kIQ2_XS:
      get_threes(in + 10, codes);
      iq2_xs_from_codes(codes, p);
      std::memcpy(p + 66, in + 2, 8);
      break;
    case WeightType::kIQ2_XXS:
      get_threes(in + 6, codes);
      std::memset(p + 2, 0, 64);
      scales_to_words(in + 2, 8, p + 6);
      iq2_xxs_from_codes(codes, p);
      break;
    case WeightType::kIQ1_S:
      return iq1_s_from_levels(in, p);
    case WeightType::kIQ1_M:
      return iq1_m_from_levels(in, p);
    default:
      FT_CHECK(has_levels(type));
  }
  std::memcpy(p, in, 2);
}

}  // namespace foretoken
