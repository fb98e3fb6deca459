#include "kernels/formats/quant_formats.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>

#include "kernels/base/error.h"
#include "kernels/base/half.h"
#include "kernels/formats/block_bytes.h"
#include "kernels/formats/grids.h"

namespace foretoken {

namespace {

float half_at(const uint8_t* p) {
  return half_to_float(u16_at(p));
}

// Value i of a 32-value nibble array.
int nibble(const uint8_t* qs, int i) {
  return i < 16 ? qs[i] & 15 : qs[i - 16] >> 4;
}

void no_mins(QuantBlock& out) {
  out.dmin = 0;
  std::memset(out.min, 0, sizeof out.min);
}

void unit_scale(QuantBlock& out) {
  out.scale[0] = out.scale[1] = 1;
}

void unpack_q4_0(const uint8_t* p, QuantBlock& out) {
  out.d = half_at(p);
  for (int i = 0; i < 32; ++i) out.q[i] = static_cast<int8_t>(nibble(p + 2, i) - 8);
  unit_scale(out);
  no_mins(out);
}

void unpack_q4_1(const uint8_t* p, QuantBlock& out) {
  out.d = half_at(p);
  out.dmin = -half_at(p + 2);
  for (int i = 0; i < 32; ++i) out.q[i] = static_cast<int8_t>(nibble(p + 4, i));
  unit_scale(out);
  out.min[0] = out.min[1] = 1;
}

void unpack_q5_0(const uint8_t* p, QuantBlock& out) {
  out.d = half_at(p);
  const uint32_t high = u32_at(p + 2);
  for (int i = 0; i < 32; ++i) out.q[i] = static_cast<int8_t>((nibble(p + 6, i) | (high >> i & 1) << 4) - 16);
  unit_scale(out);
  no_mins(out);
}

void unpack_q5_1(const uint8_t* p, QuantBlock& out) {
  out.d = half_at(p);
  out.dmin = -half_at(p + 2);
  const uint32_t high = u32_at(p + 4);
  for (int i = 0; i < 32; ++i) out.q[i] = static_cast<int8_t>(nibble(p + 8, i) | (high >> i & 1) << 4);
  unit_scale(out);
  out.min[0] = out.min[1] = 1;
}

void unpack_q8_0(const uint8_t* p, QuantBlock& out) {
  out.d = half_at(p);
  std::memcpy(out.q, p + 2, 32);
  unit_scale(out);
  no_mins(out);
}

void unpack_iq4_nl(const uint8_t* p, QuantBlock& out) {
  out.d = half_at(p);
  for (int i = 0; i < 32; ++i) out.q[i] = kIq4Table[nibble(p + 2, i)];
  unit_scale(out);
  no_mins(out);
}

void unpack_mxfp4(const uint8_t* p, QuantBlock& out) {
  // 2^(e-128); the two smallest are denormal.
  out.d = std::bit_cast<float>(p[0] < 2 ? 0x00200000u << p[0] : static_cast<uint32_t>(p[0] - 1) << 23);
  for (int i = 0; i < 32; ++i) out.q[i] = kMxfp4Table[nibble(p + 1, i)];
  unit_scale(out);
  no_mins(out);
}

void unpack_q2_k(const uint8_t* p, QuantBlock& out) {
  const uint8_t* qs = p + 16;
  out.d = half_at(p + 80);
  out.dmin = half_at(p + 82);
  for (int s = 0; s < 16; ++s) {
    out.scale[s] = p[s] & 15;
    out.min[s] = p[s] >> 4;
  }
  for (int i = 0; i < 256; ++i) {
    const int n = i / 128, j = i / 32 % 4, l = i % 32;
    out.q[i] = static_cast<int8_t>(qs[32 * n + l] >> (2 * j) & 3);
  }
}

void unpack_q3_k(const uint8_t* p, QuantBlock& out) {
  const uint8_t* qs = p + 32;
  const uint8_t* scales = p + 96;
  out.d = half_at(p + 108);
  no_mins(out);
  for (int s = 0; s < 16; ++s) {
    const int low = s < 8 ? scales[s] & 15 : scales[s - 8] >> 4;
    const int high = scales[8 + s % 4] >> (2 * (s / 4)) & 3;
    out.scale[s] = static_cast<int16_t>((low | high << 4) - 32);
  }
  for (int i = 0; i < 256; ++i) {
    const int n = i / 128, j = i / 32 % 4, l = i % 32;
    out.q[i] = static_cast<int8_t>((qs[32 * n + l] >> (2 * j) & 3) + (p[l] >> (4 * n + j) & 1) * 4 - 4);
  }
}

// The 8 scales and 8 mins of Q4_K and Q5_K, six bits each in 12 bytes.
void unpack_k_scales(const uint8_t* scales, QuantBlock& out) {
  for (int s = 0; s < 8; ++s) {
    int scale, min;
    if (s < 4) {
      scale = scales[s] & 63;
      min = scales[s + 4] & 63;
    } else {
      scale = (scales[s + 4] & 15) | (scales[s - 4] >> 6) << 4;
      min = (scales[s + 4] >> 4) | (scales[s] >> 6) << 4;
    }
    out.scale[2 * s] = out.scale[2 * s + 1] = static_cast<int16_t>(scale);
    out.min[2 * s] = out.min[2 * s + 1] = static_cast<int16_t>(min);
  }
}

void unpack_q4_k(const uint8_t* p, QuantBlock& out) {
  out.d = half_at(p);
  out.dmin = half_at(p + 2);
  unpack_k_scales(p + 4, out);
  for (int i = 0; i < 256; ++i) {
    const int byte = p[16 + i / 64 * 32 + i % 32];
    out.q[i] = static_cast<int8_t>(i % 64 < 32 ? byte & 15 : byte >> 4);
  }
}

void unpack_q5_k(const uint8_t* p, QuantBlock& out) {
  out.d = half_at(p);
  out.dmin = half_at(p + 2);
  unpack_k_scales(p + 4, out);
  for (int i = 0; i < 256; ++i) {
    const int byte = p[48 + i / 64 * 32 + i % 32];
    const int high = p[16 + i % 32] >> (i / 32) & 1;
    out.q[i] = static_cast<int8_t>((i % 64 < 32 ? byte & 15 : byte >> 4) | high << 4);
  }
}

void unpack_q6_k(const uint8_t* p, QuantBlock& out) {
  out.d = half_at(p + 208);
  no_mins(out);
  for (int s = 0; s < 16; ++s) out.scale[s] = static_cast<int8_t>(p[192 + s]);
  for (int i = 0; i < 256; ++i) {
    const int n = i / 128, j = i / 32 % 4, l = i % 32;
    const int byte = p[64 * n + 32 * (j % 2) + l];
    const int high = p[128 + 32 * n + l] >> (2 * j) & 3;
    out.q[i] = static_cast<int8_t>(((j < 2 ? byte & 15 : byte >> 4) | high << 4) - 32);
  }
}

void unpack_iq4_xs(const uint8_t* p, QuantBlock& out) {
  out.d = half_at(p);
  no_mins(out);
  const uint32_t high = u16_at(p + 2);
  for (int s = 0; s < 8; ++s) {
    const int low = p[4 + s / 2] >> (4 * (s % 2)) & 15;
    out.scale[2 * s] = out.scale[2 * s + 1] = static_cast<int16_t>((low | (high >> (2 * s) & 3) << 4) - 32);
    for (int i = 0; i < 32; ++i) out.q[32 * s + i] = kIq4Table[nibble(p + 8 + 16 * s, i)];
  }
}

void unpack_tq1_0(const uint8_t* p, QuantBlock& out) {
  static constexpr int kPowers[] = {1, 3, 9, 27, 81};
  out.d = half_at(p + 52);
  no_mins(out);
  std::fill(std::begin(out.scale), std::end(out.scale), int16_t{1});
  const auto digit = [p](int byte, int k) { return static_cast<int8_t>((p[byte] * kPowers[k] % 256 * 3 >> 8) - 1); };
  for (int i = 0; i < 160; ++i) out.q[i] = digit(i % 32, i / 32);
  for (int i = 0; i < 80; ++i) out.q[160 + i] = digit(32 + i % 16, i / 16);
  for (int i = 0; i < 16; ++i) out.q[240 + i] = digit(48 + i % 4, i / 4);
}

void unpack_tq2_0(const uint8_t* p, QuantBlock& out) {
  out.d = half_at(p + 64);
  no_mins(out);
  std::fill(std::begin(out.scale), std::end(out.scale), int16_t{1});
  for (int i = 0; i < 256; ++i)
    out.q[i] = static_cast<int8_t>((p[i / 128 * 32 + i % 32] >> (2 * (i / 32 % 4)) & 3) - 1);
}

void unpack_q1_0(const uint8_t* p, QuantBlock& out) {
  out.d = half_at(p);
  no_mins(out);
  std::fill_n(out.scale, 8, int16_t{1});
  for (int i = 0; i < 128; ++i) out.q[i] = (p[2 + i / 8] >> (i % 8) & 1) != 0 ? 1 : -1;
}

void unpack_q2_0(const uint8_t* p, QuantBlock& out) {
  out.d = half_at(p);
  no_mins(out);
  std::fill_n(out.scale, 4, int16_t{1});
  for (int i = 0; i < 64; ++i) out.q[i] = static_cast<int8_t>((p[2 + i / 4] >> (2 * (i % 4)) & 3) - 1);
}

void unpack_nvfp4(const uint8_t* p, QuantBlock& out) {
  out.d = 0;
  no_mins(out);
  std::fill_n(out.scale, 4, int16_t{1});
  for (int s = 0; s < 4; ++s) {
    out.run_d[s] = half_of_ue4m3(p[s]);
    const uint8_t* qs = p + 4 + 8 * s;
    for (int i = 0; i < 16; ++i) out.q[16 * s + i] = kMxfp4Table[i < 8 ? qs[i] & 15 : qs[i - 8] >> 4];
  }
}

// --- Formats with a grid ---

// The magnitudes of one group of eight, a byte each, with their signs.
void put_signed(uint64_t magnitudes, uint32_t signs, int8_t* q) {
  for (int i = 0; i < 8; ++i) {
    const int magnitude = static_cast<int>(magnitudes >> (8 * i) & 255);
    q[i] = static_cast<int8_t>((signs >> i & 1) != 0 ? -magnitude : magnitude);
  }
}

uint64_t two_points(const uint32_t* grid, uint32_t first, uint32_t second) {
  return grid[first] | static_cast<uint64_t>(grid[second]) << 32;
}

int16_t odd_scale(uint32_t s) {
  return static_cast<int16_t>(2 * s + 1);
}

void unpack_iq2_xxs(const uint8_t* p, QuantBlock& out) {
  out.d = half_at(p) / 8;
  no_mins(out);
  for (int r = 0; r < 8; ++r) {
    const uint8_t* const indices = p + 2 + 8 * r;
    const uint32_t word = u32_at(indices + 4);
    out.scale[2 * r] = out.scale[2 * r + 1] = odd_scale(word >> 28);
    for (int l = 0; l < 4; ++l) {
      put_signed(kIq2XxsGrid.point[indices[l]], with_eighth_sign(word >> (7 * l) & 127), out.q + 32 * r + 8 * l);
    }
  }
}

// Scale s of sixteen in nibbles.
void unpack_nibble_scales(const uint8_t* scales, QuantBlock& out) {
  for (int s = 0; s < 16; ++s) out.scale[s] = odd_scale(scales[s / 2] >> (4 * (s % 2)) & 15u);
}

void unpack_iq2_xs(const uint8_t* p, QuantBlock& out) {
  out.d = half_at(p) / 8;
  no_mins(out);
  unpack_nibble_scales(p + 66, out);
  for (int l = 0; l < 32; ++l) {
    const uint32_t word = u16_at(p + 2 + 2 * l);
    put_signed(kIq2XsGrid.point[word & 511], with_eighth_sign(word >> 9), out.q + 8 * l);
  }
}

void unpack_iq2_s(const uint8_t* p, QuantBlock& out) {
  out.d = half_at(p) / 8;
  no_mins(out);
  unpack_nibble_scales(p + 74, out);
  for (int l = 0; l < 32; ++l) {
    const uint32_t high = p[66 + l / 4] >> (2 * (l % 4)) & 3u;
    put_signed(kIq2SGrid.point[p[2 + l] | high << 8], p[34 + l], out.q + 8 * l);
  }
}

void unpack_iq3_xxs(const uint8_t* p, QuantBlock& out) {
  out.d = half_at(p) / 2;
  no_mins(out);
  for (int r = 0; r < 8; ++r) {
    const uint32_t word = u32_at(p + 66 + 4 * r);
    out.scale[2 * r] = out.scale[2 * r + 1] = odd_scale(word >> 28);
    for (int l = 0; l < 4; ++l) {
      const uint8_t* const indices = p + 2 + 8 * r + 2 * l;
      put_signed(two_points(kIq3XxsGrid.point, indices[0], indices[1]), with_eighth_sign(word >> (7 * l) & 127),
                 out.q + 32 * r + 8 * l);
    }
  }
}

void unpack_iq3_s(const uint8_t* p, QuantBlock& out) {
  out.d = half_at(p);
  no_mins(out);
  for (int s = 0; s < 16; ++s) out.scale[s] = odd_scale(p[106 + s / 4] >> (4 * (s / 2 % 2)) & 15u);
  const auto index = [p](int j) { return p[2 + j] | (p[66 + j / 8] >> (j % 8) & 1u) << 8; };
  for (int l = 0; l < 32; ++l) {
    put_signed(two_points(kIq3SGrid.point, index(2 * l), index(2 * l + 1)), p[74 + l], out.q + 8 * l);
  }
}

// 8g + delta from 8 (g + 1).
void put_ternary(uint64_t point, int delta, int8_t* q) {
  for (int i = 0; i < 8; ++i) q[i] = static_cast<int8_t>(static_cast<int>(point >> (8 * i) & 255) - 8 + delta);
}

void unpack_iq1_s(const uint8_t* p, QuantBlock& out) {
  out.d = half_at(p) / 8;
  no_mins(out);
  for (int r = 0; r < 8; ++r) {
    const uint32_t high = u16_at(p + 34 + 2 * r);
    out.scale[2 * r] = out.scale[2 * r + 1] = odd_scale(high >> 12 & 7);
    for (int l = 4 * r; l < 4 * r + 4; ++l) {
      const uint32_t index = p[2 + l] | (high >> (3 * (l % 4)) & 7) << 8;
      put_ternary(kIq1Grid.point[index], (high >> 15) != 0 ? -1 : 1, out.q + 8 * l);
    }
  }
}

void unpack_iq1_m(const uint8_t* p, QuantBlock& out) {
  no_mins(out);
  uint32_t d = 0;
  for (int word = 0; word < 4; ++word) {
    const uint32_t packed = u16_at(p + 48 + 2 * word);
    d |= packed >> 12 << (4 * word);
    for (int i = 0; i < 4; ++i) out.scale[4 * word + i] = odd_scale(packed >> (3 * i) & 7);
  }
  out.d = half_to_float(static_cast<uint16_t>(d)) / 8;
  for (int l = 0; l < 32; ++l) {
    const uint32_t high = p[32 + l / 2] >> (4 * (l % 2)) & 15u;
    put_ternary(kIq1Grid.point[p[l] | (high & 7) << 8], high >= 8 ? -1 : 1, out.q + 8 * l);
  }
}

}  // namespace

float half_of_ue4m3(uint8_t e) {
  const int exponent = e >> 3 & 15, fraction = e & 7;
  if (e == 0x7f) return 0;
  return exponent == 0 ? std::ldexp(static_cast<float>(fraction), -10)
                       : std::ldexp(static_cast<float>(8 + fraction), exponent - 11);
}

void unpack_block(WeightType type, const std::byte* block, QuantBlock& out) {
  const auto* p = reinterpret_cast<const uint8_t*>(block);
  switch (type) {
    case WeightType::kQ4_0:
      return unpack_q4_0(p, out);
    case WeightType::kQ4_1:
      return unpack_q4_1(p, out);
    case WeightType::kQ5_0:
      return unpack_q5_0(p, out);
    case WeightType::kQ5_1:
      return unpack_q5_1(p, out);
    case WeightType::kQ8_0:
      return unpack_q8_0(p, out);
    case WeightType::kQ2_K:
      return unpack_q2_k(p, out);
    case WeightType::kQ3_K:
      return unpack_q3_k(p, out);
    case WeightType::kQ4_K:
      return unpack_q4_k(p, out);
    case WeightType::kQ5_K:
      return unpack_q5_k(p, out);
    case WeightType::kQ6_K:
      return unpack_q6_k(p, out);
    case WeightType::kIQ4_NL:
      return unpack_iq4_nl(p, out);
    case WeightType::kIQ4_XS:
      return unpack_iq4_xs(p, out);
    case WeightType::kMXFP4:
      return unpack_mxfp4(p, out);
    case WeightType::kTQ1_0:
      return unpack_tq1_0(p, out);
    case WeightType::kTQ2_0:
      return unpack_tq2_0(p, out);
    case WeightType::kNVFP4:
      return unpack_nvfp4(p, out);
    case WeightType::kQ1_0:
      return unpack_q1_0(p, out);
    case WeightType::kQ2_0:
      return unpack_q2_0(p, out);
    case WeightType::kIQ3_S:
      return unpack_iq3_s(p, out);
    case WeightType::kIQ3_XXS:
      return unpack_iq3_xxs(p, out);
    case WeightType::kIQ2_S:
      return unpack_iq2_s(p, out);
    case WeightType::kIQ2_XS:
      return unpack_iq2_xs(p, out);
    case WeightType::kIQ2_XXS:
      return unpack_iq2_xxs(p, out);
    case WeightType::kIQ1_S:
      return unpack_iq1_s(p, out);
    case WeightType::kIQ1_M:
      return unpack_iq1_m(p, out);
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16:
      break;
  }
  check_failed(__FILE__, __LINE__, "the type is quantised", std::string(weight_type_info(type).name));
}

bool has_mins(WeightType type) {
  return type == WeightType::kQ2_K || type == WeightType::kQ4_K || type == WeightType::kQ5_K ||
         type == WeightType::kQ4_1 || type == WeightType::kQ5_1;
}

}  // namespace foretoken
