#pragma once

#include <cstdint>

#include "kernels/base/simd_intrinsics.h"

// Private: the per-ISA entry points behind int8_burst().

namespace foretoken {

[[nodiscard]] uint32_t avx2_int8_burst(const uint8_t* w, const int8_t* x, int64_t rounds);
[[nodiscard]] uint32_t avx2vnni_int8_burst(const uint8_t* w, const int8_t* x, int64_t rounds);
[[nodiscard]] uint32_t FT_KERNEL(avx512_int8_burst)(const uint8_t* w, const int8_t* x, int64_t rounds);
[[nodiscard]] uint32_t FT_KERNEL(avx512vnni_int8_burst)(const uint8_t* w, const int8_t* x, int64_t rounds);

}  // namespace foretoken
