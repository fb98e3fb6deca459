#pragma once

#include <cstdint>
#include <string_view>

namespace foretoken::synth {

// Random values by counter: each is a function of a key and an index, so any row of any tensor can be made alone, by
// any thread, on any machine, with the same result (whole-number arithmetic and float operations that are exact or
// rounded once).

/// splitmix64's finaliser (Steele, Lea, Flood 2014).
inline uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/// A key of its own for each index.
inline uint64_t derive(uint64_t key, uint64_t index) {
  return mix(key + 0x9e3779b97f4a7c15u * (index + 1));
}

/// A key for a name (FNV-1a, then mixed).
inline uint64_t derive(uint64_t key, std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return mix(key ^ mix(hash));
}

/// In (0, 1).
inline double uniform(uint64_t bits) {
  return (static_cast<double>(bits >> 12) + 0.5) * 0x1p-52;
}

inline float sign(uint64_t bits) {
  return bits >> 63 ? 1.0f : -1.0f;
}

/// Nearly normal with variance 1: four 16-bit numbers of uniform distribution, added. Tails end at 3.46.
inline float normal(uint64_t bits) {
  const auto part = [&](int shift) { return static_cast<int32_t>(bits >> shift & 0xffff); };
  constexpr float kDeviation = 37837.2f;  // of the sum: 65536 sqrt(4 / 12)
  return static_cast<float>(part(0) + part(16) + part(32) + part(48) - 2 * 65535) * (1.0f / kDeviation);
}

}  // namespace foretoken::synth
