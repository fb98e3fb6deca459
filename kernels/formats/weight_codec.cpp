#include "kernels/formats/weight_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/base/error.h"
#include "kernels/base/half.h"
#include "kernels/formats/block_bytes.h"
#include "kernels/formats/grid_encoder.h"
#include "kernels/formats/quant_formats.h"

namespace foretoken {

namespace {

// --- Encoding: one scale per run from its extremes, then rounding. Scales are rounded to what the block stores before
// the weights are
// --- divided by them, so that the error of the scale does not add to that of the weights.

int round_to(float x, int low, int high) {
  return static_cast<int>(std::clamp(std::nearbyint(x), float(low), float(high)));
}

float ratio(float x, float d) {
  return d == 0 ? 0.0f : x / d;
}

// Stores a scale and returns what it is worth now. Clamped: a block must not hold an infinity.
float put_half(uint8_t* p, float d) {
  const uint16_t h = float_to_half(std::clamp(d, -65504.0f, 65504.0f));
  put_u16(p, h);
  return half_to_float(h);
}

// The value of greatest magnitude, with its sign: formats whose integers reach one further down than up map it to their
// lowest.
float extreme(const float* x, int n) {
  float found = 0;
  for (int i = 0; i < n; ++i) {
    if (std::fabs(x[i]) > std::fabs(found)) found = x[i];
  }
  return found;
}

int nearest(const int8_t (&table)[16], float x) {
  int best = 0;
  for (int i = 1; i < 16; ++i) {
    if (std::fabs(x - table[i]) < std::fabs(x - table[best])) best = i;
  }
  return best;
}

void put_nibble(uint8_t* qs, int i, int q) {
  uint8_t& byte = qs[i % 16];
  byte = static_cast<uint8_t>(i < 16 ? (byte & 0xf0) | q : (byte & 0x0f) | q << 4);
}

void encode_q4_0(const float* x, uint8_t* p) {
  const float d = put_half(p, extreme(x, 32) / -8);
  for (int i = 0; i < 32; ++i) put_nibble(p + 2, i, round_to(ratio(x[i], d), -8, 7) + 8);
}

void encode_q5_0(const float* x, uint8_t* p) {
  const float d = put_half(p, extreme(x, 32) / -16);
  std::memset(p + 2, 0, 4);
  for (int i = 0; i < 32; ++i) {
    const int q = round_to(ratio(x[i], d), -16, 15) + 16;
    put_nibble(p + 6, i, q & 15);
    p[2 + i / 8] = static_cast<uint8_t>(p[2 + i / 8] | (q >> 4) << (i % 8));
  }
}

void encode_q4_1(const float* x, uint8_t* p) {
  const auto [low, high] = std::minmax_element(x, x + 32);
  const float d = put_half(p, (*high - *low) / 15);
  const float m = put_half(p + 2, *low);
  for (int i = 0; i < 32; ++i) put_nibble(p + 4, i, round_to(ratio(x[i] - m, d), 0, 15));
}

void encode_q5_1(const float* x, uint8_t* p) {
  const auto [low, high] = std::minmax_element(x, x + 32);
  const float d = put_half(p, (*high - *low) / 31);
  const float m = put_half(p + 2, *low);
  std::memset(p + 4, 0, 4);
  for (int i = 0; i < 32; ++i) {
    const int q = round_to(ratio(x[i] - m, d), 0, 31);
    put_nibble(p + 8, i, q & 15);
    p[4 + i / 8] = static_cast<uint8_t>(p[4 + i / 8] | (q >> 4) << (i % 8));
  }
}

void encode_q8_0(const float* x, uint8_t* p) {
  const float d = put_half(p, std::fabs(extreme(x, 32)) / 127);
  for (int i = 0; i < 32; ++i) p[2 + i] = static_cast<uint8_t>(round_to(ratio(x[i], d), -127, 127));
}

void encode_iq4_nl(const float* x, uint8_t* p) {
  const float d = put_half(p, extreme(x, 32) / -127);
  for (int i = 0; i < 32; ++i) put_nibble(p + 2, i, nearest(kIq4Table, ratio(x[i], d)));
}

void encode_mxfp4(const float* x, uint8_t* p) {
  // The largest magnitude lands in [4, 8) of E2M1, whose largest is 6.
  const float amax = std::fabs(extreme(x, 32));
  const int e = amax == 0 ? 0 : std::clamp(std::ilogb(amax) - 2 + 127, 0, 254);
  p[0] = static_cast<uint8_t>(e);
  for (int i = 0; i < 32; ++i) put_nibble(p + 1, i, nearest(kMxfp4Table, std::ldexp(x[i], 128 - e)));
}

// Scale and min of one run for x = scale * q - min, q in 0..max_q, min >= 0.
struct RunRange {
  float scale;
  float min;
};

RunRange run_range(const float* x, int n, int max_q) {
  const float low = std::min(0.0f, *std::min_element(x, x + n)), high = std::max(low, *std::max_element(x, x + n));
  return {(high - low) / static_cast<float>(max_q), -low};
}

void encode_q2_k(const float* x, uint8_t* p) {
  RunRange runs[16];
  float max_scale = 0, max_min = 0;
  for (int s = 0; s < 16; ++s) {
    runs[s] = run_range(x + 16 * s, 16, 3);
    max_scale = std::max(max_scale, runs[s].scale);
    max_min = std::max(max_min, runs[s].min);
  }
  const float d = put_half(p + 80, max_scale / 15), dmin = put_half(p + 82, max_min / 15);
  std::memset(p + 16, 0, 64);
  for (int s = 0; s < 16; ++s) {
    const int scale = round_to(ratio(runs[s].scale, d), 0, 15), min = round_to(ratio(runs[s].min, dmin), 0, 15);
    p[s] = static_cast<uint8_t>(scale | min << 4);
    for (int i = 16 * s; i < 16 * s + 16; ++i) {
      const int q = round_to(ratio(x[i] + dmin * static_cast<float>(min), d * static_cast<float>(scale)), 0, 3);
      uint8_t& byte = p[16 + i / 128 * 32 + i % 32];
      byte = static_cast<uint8_t>(byte | q << (2 * (i / 32 % 4)));
    }
  }
}

void encode_q3_k(const float* x, uint8_t* p) {
  float scales[16];
  for (int s = 0; s < 16; ++s) scales[s] = extreme(x + 16 * s, 16) / -4;
  const float d = put_half(p + 108, extreme(scales, 16) / -32);
  std::memset(p, 0, 108);
  for (int s = 0; s < 16; ++s) {
    const int scale = round_to(ratio(scales[s], d), -32, 31), stored = scale + 32;
    uint8_t& low = p[96 + s % 8];
    low = static_cast<uint8_t>(low | (stored & 15) << (s < 8 ? 0 : 4));
    uint8_t& high = p[104 + s % 4];
    high = static_cast<uint8_t>(high | (stored >> 4) << (2 * (s / 4)));
    for (int i = 16 * s; i < 16 * s + 16; ++i) {
      const int n = i / 128, j = i / 32 % 4, l = i % 32;
      const int q = round_to(ratio(x[i], d * static_cast<float>(scale)), -4, 3) + 4;
      uint8_t& byte = p[32 + 32 * n + l];
      byte = static_cast<uint8_t>(byte | (q & 3) << (2 * j));
      p[l] = static_cast<uint8_t>(p[l] | (q >> 2) << (4 * n + j));
    }
  }
}

// Q4_K (5 bits false) and Q5_K.
void encode_q45_k(const float* x, bool five_bits, uint8_t* p) {
  const int max_q = five_bits ? 31 : 15;
  uint8_t* const qs = p + (five_bits ? 48 : 16);
  uint8_t* const packed = p + 4;
  RunRange runs[8];
  float max_scale = 0, max_min = 0;
  for (int s = 0; s < 8; ++s) {
    runs[s] = run_range(x + 32 * s, 32, max_q);
    max_scale = std::max(max_scale, runs[s].scale);
    max_min = std::max(max_min, runs[s].min);
  }
  const float d = put_half(p, max_scale / 63), dmin = put_half(p + 2, max_min / 63);
  std::memset(packed, 0, 12);
  if (five_bits) std::memset(p + 16, 0, 32);
  for (int s = 0; s < 8; ++s) {
    const int scale = round_to(ratio(runs[s].scale, d), 0, 63), min = round_to(ratio(runs[s].min, dmin), 0, 63);
    if (s < 4) {
      packed[s] = static_cast<uint8_t>(packed[s] | scale);
      packed[s + 4] = static_cast<uint8_t>(packed[s + 4] | min);
    } else {
      packed[s + 4] = static_cast<uint8_t>((scale & 15) | (min & 15) << 4);
      packed[s - 4] = static_cast<uint8_t>(packed[s - 4] | (scale >> 4) << 6);
      packed[s] = static_cast<uint8_t>(packed[s] | (min >> 4) << 6);
    }
    for (int l = 0; l < 32; ++l) {
      const float scaled = ratio(x[32 * s + l] + dmin * static_cast<float>(min), d * static_cast<float>(scale));
      const int q = round_to(scaled, 0, max_q);
      uint8_t& byte = qs[32 * (s / 2) + l];
      byte = static_cast<uint8_t>(s % 2 == 0 ? (q & 15) : byte | (q & 15) << 4);
      if (five_bits) p[16 + l] = static_cast<uint8_t>(p[16 + l] | (q >> 4) << s);
    }
  }
}

void encode_q6_k(const float* x, uint8_t* p) {
  float scales[16];
  for (int s = 0; s < 16; ++s) scales[s] = extreme(x + 16 * s, 16) / -32;
  const float d = put_half(p + 208, extreme(scales, 16) / -128);
  std::memset(p, 0, 208);
  for (int s = 0; s < 16; ++s) {
    const int scale = round_to(ratio(scales[s], d), -128, 127);
    p[192 + s] = static_cast<uint8_t>(scale);
    for (int i = 16 * s; i < 16 * s + 16; ++i) {
      const int n = i / 128, j = i / 32 % 4, l = i % 32;
      const int q = round_to(ratio(x[i], d * static_cast<float>(scale)), -32, 31) + 32;
      uint8_t& low = p[64 * n + 32 * (j % 2) + l];
      low = static_cast<uint8_t>(low | (q & 15) << (j < 2 ? 0 : 4));
      uint8_t& high = p[128 + 32 * n + l];
      high = static_cast<uint8_t>(high | (q >> 4) << (2 * j));
    }
  }
}

void encode_iq4_xs(const float* x, uint8_t* p) {
  float scales[8];
  for (int s = 0; s < 8; ++s) scales[s] = extreme(x + 32 * s, 32) / -127;
  const float d = put_half(p, extreme(scales, 8) / -32);
  std::memset(p + 2, 0, 6);
  uint32_t high = 0;
  for (int s = 0; s < 8; ++s) {
    const int scale = round_to(ratio(scales[s], d), -32, 31), stored = scale + 32;
    p[4 + s / 2] = static_cast<uint8_t>(p[4 + s / 2] | (stored & 15) << (4 * (s % 2)));
    high |= static_cast<uint32_t>(stored >> 4) << (2 * s);
    for (int i = 0; i < 32; ++i) {
      put_nibble(p + 8 + 16 * s, i, nearest(kIq4Table, ratio(x[32 * s + i], d * static_cast<float>(scale))));
    }
  }
  put_u16(p + 2, static_cast<uint16_t>(high));
}

float root_mean_square(const float* x, int n) {
  double squares = 0;
  for (int i = 0; i < n; ++i) squares += double{x[i]} * double{x[i]};
  return static_cast<float>(std::sqrt(squares / n));
}

// The scale that leaves the least error of three levels on normal data: 1.22 deviations, so that levels change at 0.61.
constexpr float kTernaryScale = 1.22f;

void encode_tq1_0(const float* x, uint8_t* p) {
  const float d = put_half(p + 52, kTernaryScale * root_mean_square(x, 256));
  // Digits are read from the top: byte / 256 = 0.ddddd in base 3, rounded up.
  const auto put_digits = [&](int byte, int count, int first, int step) {
    int value = 0;
    for (int k = 0; k < 5; ++k)
      value = 3 * value + (k < count ? round_to(ratio(x[first + k * step], d), -1, 1) + 1 : 0);
    p[byte] = static_cast<uint8_t>((value * 256 + 242) / 243);
  };
  for (int i = 0; i < 32; ++i) put_digits(i, 5, i, 32);
  for (int i = 0; i < 16; ++i) put_digits(32 + i, 5, 160 + i, 16);
  for (int i = 0; i < 4; ++i) put_digits(48 + i, 4, 240 + i, 4);
}

void encode_tq2_0(const float* x, uint8_t* p) {
  const float d = put_half(p + 64, kTernaryScale * root_mean_square(x, 256));
  std::memset(p, 0, 64);
  for (int i = 0; i < 256; ++i) {
    uint8_t& byte = p[i / 128 * 32 + i % 32];
    byte = static_cast<uint8_t>(byte | (round_to(ratio(x[i], d), -1, 1) + 1) << (2 * (i / 32 % 4)));
  }
}

void encode_q1_0(const float* x, uint8_t* p) {
  double sum = 0;
  for (int i = 0; i < 128; ++i) sum += std::fabs(double{x[i]});
  (void)put_half(p, static_cast<float>(sum / 128));
  std::memset(p + 2, 0, 16);
  for (int i = 0; i < 128; ++i) p[2 + i / 8] = static_cast<uint8_t>(p[2 + i / 8] | (x[i] >= 0 ? 1 : 0) << (i % 8));
}

void encode_q2_0(const float* x, uint8_t* p) {
  // Levels -1, 0, 1, 2: the two go to the side of the extreme value.
  const float deviation = root_mean_square(x, 64);
  const float d = put_half(p, extreme(x, 64) < 0 ? -deviation : deviation);
  std::memset(p + 2, 0, 16);
  for (int i = 0; i < 64; ++i) {
    uint8_t& byte = p[2 + i / 4];
    byte = static_cast<uint8_t>(byte | (round_to(ratio(x[i], d), -1, 2) + 1) << (2 * (i % 4)));
  }
}

void encode_nvfp4(const float* x, uint8_t* p) {
  std::memset(p + 4, 0, 32);
  for (int s = 0; s < 4; ++s) {
    // The code whose scale brings the largest magnitude nearest to 6, the largest E2M1 number; codes rise with scales.
    const float* const run = x + 16 * s;
    const float wanted = std::fabs(extreme(run, 16)) / 12;
    int code = 0;
    while (code < 0x7e && half_of_ue4m3(static_cast<uint8_t>(code)) < wanted) ++code;
    p[s] = static_cast<uint8_t>(code);
    const float d = half_of_ue4m3(p[s]);
    for (int i = 0; i < 16; ++i) {
      uint8_t& byte = p[4 + 8 * s + i % 8];
      byte = static_cast<uint8_t>(byte | nearest(kMxfp4Table, ratio(run[i], d)) << (i < 8 ? 0 : 4));
    }
  }
}

void encode_block(WeightType type, const float* x, uint8_t* p) {
  switch (type) {
    case WeightType::kQ4_0:
      return encode_q4_0(x, p);
    case WeightType::kQ4_1:
      return encode_q4_1(x, p);
    case WeightType::kQ5_0:
      return encode_q5_0(x, p);
    case WeightType::kQ5_1:
      return encode_q5_1(x, p);
    case WeightType::kQ8_0:
      return encode_q8_0(x, p);
    case WeightType::kQ2_K:
      return encode_q2_k(x, p);
    case WeightType::kQ3_K:
      return encode_q3_k(x, p);
    case WeightType::kQ4_K:
      return encode_q45_k(x, /*five_bits=*/false, p);
    case WeightType::kQ5_K:
      return encode_q45_k(x, /*five_bits=*/true, p);
    case WeightType::kQ6_K:
      return encode_q6_k(x, p);
    case WeightType::kIQ4_NL:
      return encode_iq4_nl(x, p);
    case WeightType::kIQ4_XS:
      return encode_iq4_xs(x, p);
    case WeightType::kMXFP4:
      return encode_mxfp4(x, p);
    case WeightType::kTQ1_0:
      return encode_tq1_0(x, p);
    case WeightType::kTQ2_0:
      return encode_tq2_0(x, p);
    case WeightType::kNVFP4:
      return encode_nvfp4(x, p);
    case WeightType::kQ1_0:
      return encode_q1_0(x, p);
    case WeightType::kQ2_0:
      return encode_q2_0(x, p);
    case WeightType::kIQ3_S:
    case WeightType::kIQ3_XXS:
    case WeightType::kIQ2_S:
    case WeightType::kIQ2_XS:
    case WeightType::kIQ2_XXS:
    case WeightType::kIQ1_S:
    case WeightType::kIQ1_M:
      return encode_grid_block(type, x, p);
    case WeightType::kF32:
      std::memcpy(p, x, 4);
      return;
    case WeightType::kF16:
      return put_u16(p, float_to_half(*x));
    case WeightType::kBF16:
      return put_u16(p, float_to_bfloat(*x));
  }
  FT_CHECK(false);
}

// --- Checks ---

bool half_is_finite(const uint8_t* p) {
  return (u16_at(p) & 0x7c00) != 0x7c00;
}

bool block_is_finite(WeightType type, const uint8_t* p) {
  switch (type) {
    case WeightType::kQ4_0:
    case WeightType::kQ5_0:
    case WeightType::kQ8_0:
    case WeightType::kIQ4_NL:
    case WeightType::kIQ4_XS:
    case WeightType::kQ1_0:
    case WeightType::kQ2_0:
    case WeightType::kIQ3_S:
    case WeightType::kIQ3_XXS:
    case WeightType::kIQ2_S:
    case WeightType::kIQ2_XS:
    case WeightType::kIQ2_XXS:
    case WeightType::kIQ1_S:
    case WeightType::kF16:
      return half_is_finite(p);
    case WeightType::kTQ1_0:
      return half_is_finite(p + 52);
    case WeightType::kTQ2_0:
      return half_is_finite(p + 64);
    case WeightType::kNVFP4:
      return true;  // the only NaN of its scales counts as 0
    case WeightType::kIQ1_M:
      // The exponent's five bits are three of the last scale word's top nibble and two of that before.
      return (p[55] & 0x70) != 0x70 || (p[53] & 0xc0) != 0xc0;
    case WeightType::kQ4_1:
    case WeightType::kQ5_1:
    case WeightType::kQ4_K:
    case WeightType::kQ5_K:
      return half_is_finite(p) && half_is_finite(p + 2);
    case WeightType::kQ2_K:
      return half_is_finite(p + 80) && half_is_finite(p + 82);
    case WeightType::kQ3_K:
      return half_is_finite(p + 108);
    case WeightType::kQ6_K:
      return half_is_finite(p + 208);
    case WeightType::kMXFP4:
      return p[0] != 255;  // E8M0's only NaN (OCP Microscaling Formats 1.0)
    case WeightType::kF32:
      return (u16_at(p + 2) & 0x7f80) != 0x7f80;
    case WeightType::kBF16:
      return (u16_at(p) & 0x7f80) != 0x7f80;
  }
  FT_CHECK(false);
  return false;
}

}  // namespace

void decode_row(WeightType type, const std::byte* blocks, int64_t num_values, float* values) {
  const WeightTypeInfo& info = weight_type_info(type);
  FT_CHECK(num_values % info.block_size == 0);
  const auto* p = reinterpret_cast<const uint8_t*>(blocks);
  switch (type) {
    case WeightType::kF32:
      std::memcpy(values, p, static_cast<size_t>(num_values) * 4);
      return;
    case WeightType::kF16:
      for (int64_t i = 0; i < num_values; ++i) values[i] = half_to_float(u16_at(p + 2 * i));
      return;
    case WeightType::kBF16:
      for (int64_t i = 0; i < num_values; ++i) values[i] = bfloat_to_float(u16_at(p + 2 * i));
      return;
    default:
      break;
  }
  // (d*scale)*q - dmin*min is ggml's order for every format: where it has no scale or no min the product with one and
  // the difference with zero are exact.
  QuantBlock block;
  for (int64_t b = 0; b < num_values / info.block_size; ++b) {
    unpack_block(type, blocks + b * info.block_bytes, block);
    for (int i = 0; i < info.block_size; ++i) {
      const float scale = type == WeightType::kNVFP4 ? block.run_d[i / 16] : block.d * block.scale[i / 16];
      const float min = block.dmin * block.min[i / 16];
      values[b * info.block_size + i] = scale * block.q[i] - min;
    }
  }
}

void encode_row(WeightType type, const float* values, int64_t num_values, std::byte* blocks) {
  const WeightTypeInfo& info = weight_type_info(type);
  FT_CHECK(num_values % info.block_size == 0);
  auto* p = reinterpret_cast<uint8_t*>(blocks);
  for (int64_t b = 0; b < num_values / info.block_size; ++b) {
    encode_block(type, values + b * info.block_size, p + b * info.block_bytes);
  }
}

bool row_is_finite(WeightType type, const std::byte* blocks, int64_t num_values) {
  const WeightTypeInfo& info = weight_type_info(type);
  FT_CHECK(num_values % info.block_size == 0);
  const auto* p = reinterpret_cast<const uint8_t*>(blocks);
  bool finite = true;
  for (int64_t b = 0; b < num_values / info.block_size; ++b) finite &= block_is_finite(type, p + b * info.block_bytes);
  return finite;
}

}  // namespace foretoken
