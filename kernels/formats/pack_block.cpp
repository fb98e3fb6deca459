#include "kernels/formats/pack_block.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/base/error.h"
#include "kernels/base/half.h"

namespace foretoken {

namespace {

void put_half(uint8_t* p, float d) {
  const uint16_t h = float_to_half(d);
  p[0] = static_cast<uint8_t>(h);
  p[1] = static_cast<uint8_t>(h >> 8);
}

void or_bits(uint8_t& byte, int bits, int shift) {
  byte = static_cast<uint8_t>(byte | bits << shift);
}

/// 32 nibbles: value i is the low one of byte i for i < 16, the high one of byte i - 16 else.
void put_nibbles(uint8_t* qs, const int8_t* q, int offset) {
  for (int i = 0; i < 16; ++i) qs[i] = static_cast<uint8_t>(((q[i] + offset) & 15) | ((q[i + 16] + offset) & 15) << 4);
}

void put_fifth_bits(uint8_t* qh, const int8_t* q, int offset) {
  std::memset(qh, 0, 4);
  for (int i = 0; i < 32; ++i) or_bits(qh[i / 8], (q[i] + offset) >> 4, i % 8);
}

/// 32 values of a table as nibbles: of equal entries the first.
void put_table_nibbles(uint8_t* qs, const int8_t* q, const int8_t (&table)[16]) {
  int8_t indices[32];
  for (int i = 0; i < 32; ++i)
    indices[i] = static_cast<int8_t>(std::find(std::begin(table), std::end(table), q[i]) - std::begin(table));
  put_nibbles(qs, indices, 0);
}

void pack_q2_k(const QuantBlock& block, uint8_t* p) {
  for (int s = 0; s < 16; ++s) p[s] = static_cast<uint8_t>(block.scale[s] | block.min[s] << 4);
  for (int i = 0; i < 256; ++i) or_bits(p[16 + i / 128 * 32 + i % 32], block.q[i], 2 * (i / 32 % 4));
  put_half(p + 80, block.d);
  put_half(p + 82, block.dmin);
}

void pack_q3_k(const QuantBlock& block, uint8_t* p) {
  for (int s = 0; s < 16; ++s) {
    const int stored = block.scale[s] + 32;
    or_bits(p[96 + s % 8], stored & 15, s < 8 ? 0 : 4);
    or_bits(p[104 + s % 4], stored >> 4, 2 * (s / 4));
  }
  for (int i = 0; i < 256; ++i) {
    const int n = i / 128, j = i / 32 % 4, l = i % 32, stored = block.q[i] + 4;
    or_bits(p[32 + 32 * n + l], stored & 3, 2 * j);
    or_bits(p[l], stored >> 2, 4 * n + j);
  }
  put_half(p + 108, block.d);
}

/// 8 scales and 8 mins of six bits each in 12 bytes.
void pack_k_scales(const QuantBlock& block, uint8_t* p) {
  for (int s = 0; s < 8; ++s) {
    const int scale = block.scale[2 * s], min = block.min[2 * s];
    if (s < 4) {
      or_bits(p[s], scale, 0);
      or_bits(p[s + 4], min, 0);
    } else {
      p[s + 4] = static_cast<uint8_t>((scale & 15) | (min & 15) << 4);
      or_bits(p[s - 4], scale >> 4, 6);
      or_bits(p[s], min >> 4, 6);
    }
  }
}

/// Q4_K, and Q5_K with fifth bits.
void pack_q45_k(const QuantBlock& block, bool five_bits, uint8_t* p) {
  put_half(p, block.d);
  put_half(p + 2, block.dmin);
  pack_k_scales(block, p + 4);
  uint8_t* const qs = p + (five_bits ? 48 : 16);
  for (int i = 0; i < 256; ++i) {
    or_bits(qs[i / 64 * 32 + i % 32], block.q[i] & 15, i % 64 < 32 ? 0 : 4);
    if (five_bits) or_bits(p[16 + i % 32], block.q[i] >> 4, i / 32);
  }
}

void pack_q6_k(const QuantBlock& block, uint8_t* p) {
  for (int s = 0; s < 16; ++s) p[192 + s] = static_cast<uint8_t>(block.scale[s]);
  for (int i = 0; i < 256; ++i) {
    const int n = i / 128, j = i / 32 % 4, l = i % 32, stored = block.q[i] + 32;
    or_bits(p[64 * n + 32 * (j % 2) + l], stored & 15, j < 2 ? 0 : 4);
    or_bits(p[128 + 32 * n + l], stored >> 4, 2 * j);
  }
  put_half(p + 208, block.d);
}

void pack_iq4_xs(const QuantBlock& block, uint8_t* p) {
  put_half(p, block.d);
  for (int s = 0; s < 8; ++s) {
    const int stored = block.scale[2 * s] + 32;
    or_bits(p[4 + s / 2], stored & 15, 4 * (s % 2));
    or_bits(p[2 + s / 4], stored >> 4, 2 * (s % 4));
    put_table_nibbles(p + 8 + 16 * s, block.q + 32 * s, kIq4Table);
  }
}

}  // namespace

bool can_pack(WeightType type) {
  switch (type) {
    case WeightType::kQ4_0:
    case WeightType::kQ4_1:
    case WeightType::kQ5_0:
    case WeightType::kQ5_1:
    case WeightType::kQ8_0:
    case WeightType::kIQ4_NL:
    case WeightType::kMXFP4:
    case WeightType::kQ2_K:
    case WeightType::kQ3_K:
    case WeightType::kQ4_K:
    case WeightType::kQ5_K:
    case WeightType::kQ6_K:
    case WeightType::kIQ4_XS:
      return true;
    default:
      return false;
  }
}

void pack_block(WeightType type, const QuantBlock& block, std::byte* out) {
  auto* p = reinterpret_cast<uint8_t*>(out);
  std::memset(p, 0, static_cast<size_t>(weight_type_info(type).block_bytes));
  switch (type) {
    case WeightType::kQ4_0:
      put_half(p, block.d);
      return put_nibbles(p + 2, block.q, 8);
    case WeightType::kQ4_1:
      put_half(p, block.d);
      put_half(p + 2, -block.dmin);
      return put_nibbles(p + 4, block.q, 0);
    case WeightType::kQ5_0:
      put_half(p, block.d);
      put_fifth_bits(p + 2, block.q, 16);
      return put_nibbles(p + 6, block.q, 16);
    case WeightType::kQ5_1:
      put_half(p, block.d);
      put_half(p + 2, -block.dmin);
      put_fifth_bits(p + 4, block.q, 0);
      return put_nibbles(p + 8, block.q, 0);
    case WeightType::kQ8_0:
      put_half(p, block.d);
      std::memcpy(p + 2, block.q, 32);
      return;
    case WeightType::kIQ4_NL:
      put_half(p, block.d);
      return put_table_nibbles(p + 2, block.q, kIq4Table);
    case WeightType::kMXFP4: {
      const uint32_t bits = std::bit_cast<uint32_t>(block.d);  // 2^(e-128)
      p[0] = static_cast<uint8_t>(bits < 0x00800000u ? bits >> 22 : (bits >> 23) + 1);
      return put_table_nibbles(p + 1, block.q, kMxfp4Table);
    }
    case WeightType::kQ2_K:
      return pack_q2_k(block, p);
    case WeightType::kQ3_K:
      return pack_q3_k(block, p);
    case WeightType::kQ4_K:
      return pack_q45_k(block, /*five_bits=*/false, p);
    case WeightType::kQ5_K:
      return pack_q45_k(block, /*five_bits=*/true, p);
    case WeightType::kQ6_K:
      return pack_q6_k(block, p);
    case WeightType::kIQ4_XS:
      return pack_iq4_xs(block, p);
    default:
      FT_CHECK(false);
  }
}

}  // namespace foretoken
