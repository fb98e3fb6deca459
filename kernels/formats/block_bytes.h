#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace foretoken {

// Integers in the bytes of a block, which files hold in little-endian order, wherever they lie. For files that are compiled
// for every processor: one copy of an inline function serves all that include it.
static_assert(std::endian::native == std::endian::little);

inline uint16_t u16_at(const uint8_t* p) {
  uint16_t x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline uint32_t u32_at(const uint8_t* p) {
  uint32_t x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline uint64_t u64_at(const uint8_t* p) {
  uint64_t x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

/// The low 16 bits of x.
inline void put_u16(uint8_t* p, uint32_t x) {
  const auto low = static_cast<uint16_t>(x);
  std::memcpy(p, &low, sizeof low);
}
inline void put_u32(uint8_t* p, uint32_t x) {
  std::memcpy(p, &x, sizeof x);
}
inline void put_u64(uint8_t* p, uint64_t x) {
  std::memcpy(p, &x, sizeof x);
}

}  // namespace foretoken
