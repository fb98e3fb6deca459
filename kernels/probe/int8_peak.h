#pragma once

#include <cstdint>

#include "kernels/base/isa.h"

namespace foretoken {

class ThreadTeam;

/// The bytes of one round, small enough for L1.
inline constexpr int64_t kInt8BurstBytes = 4096;

/// `rounds` passes over w [kInt8BurstBytes] (0..63) against x [64] (any) in the int8 dot instructions that this
/// instruction set's matrix kernels use: the sum of w[i] * x[i % 64] over all rounds, modulo 2^32. 2 * kInt8BurstBytes
/// operations a round.
[[nodiscard]] uint32_t int8_burst(Isa isa, const uint8_t* w, const int8_t* x, int64_t rounds);

/// Int8 multiplications and additions a second of the whole team out of L1: what the arithmetic of a kernel could reach
/// if memory cost nothing. Takes about `seconds`; the best of its parts.
[[nodiscard]] double measure_int8_peak(Isa isa, ThreadTeam& team, double seconds = 0.2);

}  // namespace foretoken
