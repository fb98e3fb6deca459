#pragma once

#include <cstdint>

#include "kernels/base/math.h"

// Gumbel noise keyed by (seed, position, token id), the same on every backend: what makes a seeded sample a function of
// the logits.

namespace foretoken::gumbel {

/// The noise takes 40 bits of hash. With the 24 of a float's mantissa the rarest values would repeat: of 248,320 ids 1
/// in 70 draws would have two ids with the same largest noise, and nothing rarer than 2^-24 could ever be chosen.
inline constexpr int kNoiseBits = 40;

/// splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"): the stream's step, and below
/// it the finaliser.
inline constexpr uint64_t kStep = 0x9e3779b97f4a7c15u;

FORETOKEN_MATH uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/// Each position has its own splitmix64 stream, from a start that seed and position pick; the id is the place in it.
FORETOKEN_MATH uint64_t stream_start(uint64_t seed, int64_t position) {
  return mix(mix(seed + kStep) ^ (static_cast<uint64_t>(position) * 0xd1342543de82ef95u + 1));
}

FORETOKEN_MATH uint64_t noise_bits(uint64_t start, int32_t id) {
  return mix(start + kStep * (static_cast<uint64_t>(id) + 1)) >> (64 - kNoiseBits);
}

/// v = (bits + 1/2) / 2^40 is uniform, u = 1 - v. Large noise is small v, where floats are dense and -log(u) = log1p(v
/// / (1 - v)).
FORETOKEN_MATH float noise_from_bits(uint64_t bits) {
  const float scaled = (static_cast<float>(bits) + 0.5f) * 0x1p-40f, most = 1.0f - 0x1p-24f;
  const float v = most < scaled ? most : scaled;
  return -math::log(v > 0.5f ? -math::log(1.0f - v) : math::log1p(v / (1.0f - v)));
}

}  // namespace foretoken::gumbel
